/// The registers of a ``Serial16550`` and the rules between them.
struct SerialRegisters {
    /// Bytes from outside that the guest cannot see yet.
    var waitingInput = ByteQueue()
    /// The queue was full; its owner wants to hear when it is empty again.
    var refusedInput = false
    /// The level last told to the interrupt controller.
    var isInterruptAsserted = false

    private var receiver = ByteQueue()
    private var divisor: UInt16 = 12  // 9600 baud, as after reset on most boards
    private var interruptEnable: UInt8 = 0
    private var fifoControl: UInt8 = 0
    private var lineControl: UInt8 = 0
    private var modemControl: UInt8 = 0
    private var scratch: UInt8 = 0
    /// Modem status as last read, to find the changes.
    private var lastModemInputs: UInt8 = ModemStatus.connected
    private var modemDeltas: UInt8 = 0
    private var hasOverrun = false
    /// The transmitter became empty since the interrupt identification was last read.
    private var isTransmitterInterruptPending = false

    private enum InterruptEnable {
        static let received: UInt8 = 1 << 0
        static let transmitterEmpty: UInt8 = 1 << 1
        static let lineStatus: UInt8 = 1 << 2
        static let modemStatus: UInt8 = 1 << 3
    }

    private enum ModemControl {
        static let dataTerminalReady: UInt8 = 1 << 0
        static let requestToSend: UInt8 = 1 << 1
        static let output1: UInt8 = 1 << 2
        static let output2: UInt8 = 1 << 3
        static let loopback: UInt8 = 1 << 4
    }

    private enum ModemStatus {
        static let clearToSend: UInt8 = 1 << 4
        static let dataSetReady: UInt8 = 1 << 5
        static let ring: UInt8 = 1 << 6
        static let carrier: UInt8 = 1 << 7
        /// What a terminal that is there presents.
        static let connected = clearToSend | dataSetReady | carrier
    }

    private enum LineStatus {
        static let dataReady: UInt8 = 1 << 0
        static let overrun: UInt8 = 1 << 1
        static let transmitterEmpty: UInt8 = 1 << 5 | 1 << 6
    }

    /// What the interrupt identification register says, in the order of priority.
    enum InterruptCause: UInt8 {
        case lineStatus = 0x06
        case received = 0x04
        /// Bytes below the trigger level. They arrive at once here, so the four idle characters are always over.
        case receiveTimeout = 0x0C
        case transmitterEmpty = 0x02
        case modemStatus = 0x00
    }

    private var isFIFOEnabled: Bool { fifoControl & 1 != 0 }
    private var isDivisorSelected: Bool { lineControl & 0x80 != 0 }
    private var isLoopback: Bool { modemControl & ModemControl.loopback != 0 }
    private var receiverCapacity: Int { isFIFOEnabled ? 16 : 1 }

    private var triggerLevel: Int {
        guard isFIFOEnabled else { return 1 }
        return [1, 4, 8, 14][Int(fifoControl >> 6)]
    }

    /// The most urgent enabled interrupt.
    var interruptCause: InterruptCause? {
        if interruptEnable & InterruptEnable.lineStatus != 0, hasOverrun { return .lineStatus }
        if interruptEnable & InterruptEnable.received != 0, !receiver.isEmpty {
            return receiver.count >= triggerLevel ? .received : .receiveTimeout
        }
        if interruptEnable & InterruptEnable.transmitterEmpty != 0, isTransmitterInterruptPending {
            return .transmitterEmpty
        }
        if interruptEnable & InterruptEnable.modemStatus != 0, modemDeltas != 0 { return .modemStatus }
        return nil
    }

    /// Moves waiting input to where the guest sees it.
    mutating func fillReceiver() {
        guard modemControl & ModemControl.requestToSend != 0, !isLoopback else { return }
        while receiver.count < receiverCapacity, let byte = waitingInput.popFirst() { receiver.append(byte) }
    }

    mutating func read(_ register: Int) -> UInt8 {
        switch register {
        case 0 where isDivisorSelected: return UInt8(truncatingIfNeeded: divisor)
        case 1 where isDivisorSelected: return UInt8(truncatingIfNeeded: divisor >> 8)
        case 0:
            let byte = receiver.popFirst() ?? 0
            fillReceiver()
            return byte
        case 1: return interruptEnable
        case 2: return readInterruptIdentification()
        case 3: return lineControl
        case 4: return modemControl
        case 5:
            let status = LineStatus.transmitterEmpty | (receiver.isEmpty ? 0 : LineStatus.dataReady)
            defer { hasOverrun = false }
            return status | (hasOverrun ? LineStatus.overrun : 0)
        case 6:
            defer { modemDeltas = 0 }
            return modemInputs | modemDeltas
        default: return scratch
        }
    }

    /// - Returns: the byte to send out, if there is one.
    mutating func write(_ register: Int, _ value: UInt8) -> UInt8? {
        switch register {
        case 0 where isDivisorSelected: divisor = divisor & 0xFF00 | UInt16(value)
        case 1 where isDivisorSelected: divisor = divisor & 0x00FF | UInt16(value) << 8
        case 0: return send(value)
        case 1:
            let enabled = value & ~interruptEnable
            interruptEnable = value & 0x0F
            if enabled & InterruptEnable.transmitterEmpty != 0 { isTransmitterInterruptPending = true }
        case 2: writeFIFOControl(value)
        case 3: lineControl = value
        case 4:
            modemControl = value & 0x1F
            noteModemInputs()
            fillReceiver()
        case 5, 6: break  // for factory tests; read-only here
        default: scratch = value
        }
        return nil
    }

    private mutating func readInterruptIdentification() -> UInt8 {
        let fifoBits: UInt8 = isFIFOEnabled ? 0xC0 : 0
        guard let cause = interruptCause else { return fifoBits | 0x01 }
        if cause == .transmitterEmpty { isTransmitterInterruptPending = false }
        return fifoBits | cause.rawValue
    }

    private mutating func send(_ byte: UInt8) -> UInt8? {
        isTransmitterInterruptPending = true
        guard isLoopback else { return byte }
        if receiver.count < receiverCapacity {
            receiver.append(byte)
        } else {
            hasOverrun = true
        }
        return nil
    }

    private mutating func writeFIFOControl(_ value: UInt8) {
        // Turning the FIFOs on or off empties them, and so does the receiver's reset bit.
        let isSwitched = (value ^ fifoControl) & 1 != 0
        fifoControl = value & 0xC9
        if isSwitched || value & 0x03 == 0x03 {
            receiver.removeAll()
            fillReceiver()
        }
    }

    /// The upper half of the modem status: the terminal's lines, or our own outputs in loop-back.
    private var modemInputs: UInt8 {
        guard isLoopback else { return ModemStatus.connected }
        var inputs: UInt8 = 0
        if modemControl & ModemControl.requestToSend != 0 { inputs |= ModemStatus.clearToSend }
        if modemControl & ModemControl.dataTerminalReady != 0 { inputs |= ModemStatus.dataSetReady }
        if modemControl & ModemControl.output1 != 0 { inputs |= ModemStatus.ring }
        if modemControl & ModemControl.output2 != 0 { inputs |= ModemStatus.carrier }
        return inputs
    }

    private mutating func noteModemInputs() {
        let inputs = modemInputs
        let changed = inputs ^ lastModemInputs
        // The ring indicator counts when it goes away.
        let ringEnded = changed & ~inputs & ModemStatus.ring
        modemDeltas |= (changed & ~ModemStatus.ring | ringEnded) >> 4
        lastModemInputs = inputs
    }
}
