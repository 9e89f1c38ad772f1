import Devices
import Synchronization
import Testing

/// A serial port as a guest's driver sees it.
private final class Port {
    let sent = Recorder<UInt8>()
    let levels = Recorder<Bool>()
    let drains = Recorder<Void>()
    let device: Serial16550

    init() {
        let (sent, levels, drains) = (sent, levels, drains)
        device = Serial16550(
            interrupt: { levels.add($0) }, transmit: { sent.add($0) }, inputDrained: { drains.add(()) })
    }

    subscript(_ register: Register) -> UInt8 {
        get { UInt8(device.read(at: register.rawValue, byteCount: 1)) }
        set { device.write(at: register.rawValue, byteCount: 1, value: UInt64(newValue)) }
    }

    var isInterrupting: Bool { levels.values.last ?? false }

    enum Register: Int {
        case data, interruptEnable, identification, lineControl, modemControl, lineStatus, modemStatus, scratch
    }

    static let fifoControl = Register.identification
}

@Suite struct Serial16550Tests {
    /// The order of accesses by which Linux tells the models apart (drivers/tty/serial/8250/8250_port.c, autoconfig).
    @Test func linuxRecognizesA16550A() {
        let port = Port()
        // There is a port at all: the interrupt enable register holds 4 bits.
        port[.interruptEnable] = 0
        port[.scratch] = 0  // stands for the write to port 0x80
        #expect(port[.interruptEnable] & 0x0F == 0)
        port[.interruptEnable] = 0x0F
        #expect(port[.interruptEnable] & 0x0F == 0x0F)
        port[.interruptEnable] = 0
        // Loop-back: RTS and OUT2 come back as CTS and DCD.
        let modemControl = port[.modemControl]
        port[.modemControl] = modemControl | 0x10 | 0x0A
        #expect(port[.modemStatus] & 0xF0 == 0x90)
        port[.modemControl] = modemControl
        // Not a port with enhanced features in front of its FIFO register.
        port[.lineControl] = 0xBF
        #expect(port[.identification] != 0)
        port[.lineControl] = 0
        // A FIFO that works: both upper bits.
        port[Port.fifoControl] = 1
        #expect(port[.identification] >> 6 == 3)
        // The models that look like it but are not: extended features under DLAB, 64-byte FIFO, UART unit enable.
        port[Port.fifoControl] = 1
        port[.lineControl] = 0x80
        #expect(port[.identification] & 0x3F == 1)
        port[.lineControl] = 0
        port[Port.fifoControl] = 0x21
        #expect(port[.identification] >> 5 == 6)
        port[Port.fifoControl] = 1
        port[.lineControl] = 0x80
        port[Port.fifoControl] = 0x21
        #expect(port[.identification] >> 5 == 6)
        port[Port.fifoControl] = 1
        port[.lineControl] = 0
        port[.interruptEnable] = 0x40
        #expect(port[.interruptEnable] & 0x40 == 0)
    }

    /// What the driver's start-up tests: enabling the transmitter's interrupt raises it, each time.
    @Test func theTransmitterInterruptComesBackWhenEnabledAgain() {
        let port = Port()
        for _ in 0..<2 {
            port[.interruptEnable] = 0x02
            #expect(port.isInterrupting)
            #expect(port[.identification] == 0x02)
            #expect(!port.isInterrupting)
            #expect(port[.identification] == 0x01)
            port[.interruptEnable] = 0
        }
        #expect(!port.isInterrupting)
    }

    @Test func sendingRaisesTheTransmitterInterruptAgain() {
        let port = Port()
        port[.interruptEnable] = 0x02
        _ = port[.identification]
        port[.data] = UInt8(ascii: "x")
        #expect(port.sent.values == [UInt8(ascii: "x")])
        #expect(port.isInterrupting)
        #expect(port[.lineStatus] == 0x60)
        port[.interruptEnable] = 0
        #expect(!port.isInterrupting)
    }

    @Test func inputWaitsForRequestToSend() {
        let port = Port()
        port[.interruptEnable] = 0x01
        #expect(port.device.receive(Array("ab".utf8)) == 2)
        #expect(port[.lineStatus] & 1 == 0)
        #expect(!port.isInterrupting)
        port[.modemControl] = 0x0B
        #expect(port.isInterrupting)
        #expect(port[.lineStatus] & 1 == 1)
        #expect(port[.data] == UInt8(ascii: "a"))
        #expect(port.isInterrupting)
        #expect(port[.data] == UInt8(ascii: "b"))
        #expect(!port.isInterrupting)
        #expect(port[.data] == 0)
    }

    @Test func theReceiverInterruptTellsTheTriggerLevel() {
        let port = Port()
        port[.modemControl] = 0x0B
        port[Port.fifoControl] = 0x81  // 8 bytes
        port[.interruptEnable] = 0x01
        _ = port.device.receive([1, 2, 3])
        #expect(port[.identification] == 0xCC)
        _ = port.device.receive([4, 5, 6, 7, 8])
        #expect(port[.identification] == 0xC4)
        _ = port[.data]
        #expect(port[.identification] == 0xCC)
    }

    @Test func emptyingTheFIFOLosesOnlyWhatIsInIt() {
        let port = Port()
        port[.modemControl] = 0x0B
        port[Port.fifoControl] = 0x01
        #expect(port.device.receive((0..<20).map { UInt8($0) }) == 20)
        port[Port.fifoControl] = 0x07
        #expect((0..<4).map { _ in port[.data] } == [16, 17, 18, 19])
        #expect(port[.lineStatus] & 1 == 0)
    }

    @Test func probingDoesNotLoseTypedAheadInput() {
        let port = Port()
        _ = port.device.receive(Array("uname\n".utf8))
        for control: UInt8 in [0x01, 0x07, 0x00] { port[Port.fifoControl] = control }
        for _ in 0..<16 { _ = port[.data] }
        port[.modemControl] = 0x0B
        #expect(String(decoding: (0..<6).map { _ in port[.data] }, as: UTF8.self) == "uname\n")
    }

    @Test func aFullQueueRefusesAndTellsWhenItIsEmpty() {
        let port = Port()
        port[.modemControl] = 0x0B
        let capacity = Serial16550.inputCapacity
        #expect(port.device.receive([UInt8](repeating: 7, count: capacity + 500)) == capacity)
        #expect(port.device.receive([8]) == 1)
        #expect(port.drains.values.isEmpty)
        for _ in 0..<(capacity + 1) { _ = port[.data] }
        #expect(port.drains.values.count == 1)
        #expect(port[.lineStatus] & 1 == 0)
    }

    @Test func loopbackReturnsBytesAndKeepsThemFromTheLine() {
        let port = Port()
        port[Port.fifoControl] = 0x01
        port[.modemControl] = 0x12
        _ = port.device.receive([0x99])
        port[.data] = 0x42
        #expect(port.sent.values.isEmpty)
        #expect(port[.data] == 0x42)
        #expect(port[.lineStatus] & 1 == 0)
        port[.modemControl] = 0x0B
        #expect(port[.data] == 0x99)
    }

    @Test func loopbackOverrunIsALineStatusInterrupt() {
        let port = Port()
        port[.interruptEnable] = 0x04
        port[.modemControl] = 0x10
        port[.data] = 1
        port[.data] = 2
        #expect(port.isInterrupting)
        #expect(port[.identification] == 0x06)
        #expect(port[.lineStatus] == 0x63)
        #expect(!port.isInterrupting)
        #expect(port[.data] == 1)
    }

    @Test func modemStatusChangesAreReportedOnce() {
        let port = Port()
        #expect(port[.modemStatus] == 0xB0)
        port[.interruptEnable] = 0x08
        port[.modemControl] = 0x10  // all four inputs drop
        #expect(port[.identification] == 0x00)
        #expect(port[.modemStatus] == 0x0B)
        #expect(port[.modemStatus] == 0x00)
        #expect(!port.isInterrupting)
        port[.modemControl] = 0x14
        #expect(port[.modemStatus] == 0x40)
        port[.modemControl] = 0x10  // the ring's end counts
        #expect(port[.modemStatus] == 0x04)
    }

    @Test func receivedDataComesBeforeTheTransmitter() {
        let port = Port()
        port[.modemControl] = 0x0B
        port[.interruptEnable] = 0x03
        _ = port.device.receive([1])
        #expect(port[.identification] == 0x04)
        _ = port[.data]
        #expect(port[.identification] == 0x02)
    }

    @Test func divisorAndScratchHoldTheirValues() {
        let port = Port()
        port[.lineControl] = 0x83
        port[.data] = 0x01
        port[.interruptEnable] = 0x02
        #expect(port[.data] == 1)
        #expect(port[.interruptEnable] == 2)
        port[.lineControl] = 0x03
        #expect(port[.interruptEnable] == 0)
        #expect(port.sent.values.isEmpty)
        port[.scratch] = 0xA5
        #expect(port[.scratch] == 0xA5)
    }

    /// Writers on several threads: every byte arrives, and the line ends as the registers say.
    @Test func threadsShareThePort() async {
        let port = Port()
        let device = port.device
        device.write(at: 4, byteCount: 1, value: 0x0B)
        device.write(at: 1, byteCount: 1, value: 0x03)
        await withTaskGroup(of: Void.self) { group in
            for thread in 0..<4 {
                group.addTask {
                    for _ in 0..<500 {
                        device.write(at: 0, byteCount: 1, value: UInt64(thread))
                        _ = device.receive([UInt8(thread)])
                        _ = device.read(at: 2, byteCount: 1)
                        _ = device.read(at: 0, byteCount: 1)
                    }
                }
            }
        }
        #expect(port.sent.values.count == 2000)
        while port[.lineStatus] & 1 != 0 { _ = port[.data] }
        _ = port[.identification]
        #expect(!port.isInterrupting)
        let levels = port.levels.values
        #expect(zip(levels, levels.dropFirst()).allSatisfy { $0 != $1 })
    }
}
