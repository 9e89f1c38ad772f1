import Interrupts
import Testing

@Suite struct PICTests {
    /// A pair as Linux programs it: vectors 0x30–0x3F, all pins unmasked.
    private func makePIC(_ output: Recorder<Bool> = Recorder(), automaticEnd: Bool = false) -> PIC {
        let pic = PIC(output: { output.append($0) })
        let sequence: [(UInt16, UInt8)] = [
            (0x21, 0xFF), (0xA1, 0xFF),
            (0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, automaticEnd ? 0x03 : 0x01),
            (0xA0, 0x11), (0xA1, 0x38), (0xA1, 0x02), (0xA1, 0x01),
            (0x21, 0x00), (0xA1, 0x00)
        ]
        for (port, value) in sequence { pic.writePort(port, value) }
        return pic
    }

    @Test func probeOfLinuxFindsTheMask() {
        let pic = makePIC()
        pic.writePort(0x21, 0xFB)
        #expect(pic.readPort(0x21) == 0xFB)
        #expect(PIC.ownsPort(0x4D1) && !PIC.ownsPort(0x22))
    }

    @Test func edgeIsServedOnce() {
        let output = Recorder<Bool>()
        let pic = makePIC(output)
        #expect(pic.setLine(pin: 1, level: true) == 1)
        #expect(pic.isOutputAsserted)
        #expect(pic.acknowledge() == 0x31)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0x20, 0x61)
        #expect(!pic.isOutputAsserted)
        pic.setLine(pin: 1, level: false)
        pic.setLine(pin: 1, level: true)
        #expect(pic.isOutputAsserted)
        #expect(output.values == [true, false, true])
    }

    @Test func prioritiesNest() {
        let pic = makePIC()
        pic.setLine(pin: 5, level: true)
        #expect(pic.acknowledge() == 0x35)
        pic.setLine(pin: 6, level: true)
        #expect(!pic.isOutputAsserted)
        pic.setLine(pin: 0, level: true)
        #expect(pic.acknowledge() == 0x30)
        pic.writePort(0x20, 0x0B)
        #expect(pic.readPort(0x20) == 1 << 5 | 1)
        pic.writePort(0x20, 0x20)
        #expect(pic.readPort(0x20) == 1 << 5)
        pic.writePort(0x20, 0x20)
        #expect(pic.acknowledge() == 0x36)
    }

    @Test func cascade() {
        let pic = makePIC()
        #expect(pic.setLine(pin: 8, level: true) == 1)
        #expect(pic.acknowledge() == 0x38)
        // A second interrupt of the second chip waits for both ends, a lower pin of the first does too.
        pic.setLine(pin: 9, level: true)
        pic.setLine(pin: 3, level: true)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0xA0, 0x60)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0x20, 0x62)
        #expect(pic.acknowledge() == 0x39)
        pic.writePort(0xA0, 0x61)
        pic.writePort(0x20, 0x62)
        #expect(pic.acknowledge() == 0x33)
    }

    @Test func specialFullyNestedModeLetsTheSecondChipNest() {
        let pic = makePIC()
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 0x11)] as [(UInt16, UInt8)] {
            pic.writePort(port, value)
        }
        pic.setLine(pin: 9, level: true)
        #expect(pic.acknowledge() == 0x39)
        pic.setLine(pin: 8, level: true)
        #expect(pic.acknowledge() == 0x38)
    }

    @Test func spuriousInterrupt() {
        let pic = makePIC()
        pic.writePort(0x4D0, 0x20)
        pic.setLine(pin: 5, level: true)
        #expect(pic.isOutputAsserted)
        pic.setLine(pin: 5, level: false)
        #expect(!pic.isOutputAsserted)
        #expect(pic.acknowledge() == 0x37)
        pic.writePort(0x20, 0x0B)
        #expect(pic.readPort(0x20) == 0)
    }

    @Test func levelIsServedWhileItLasts() {
        let pic = makePIC()
        pic.writePort(0x4D1, 0xFF)
        #expect(pic.readPort(0x4D1) == 0xDE)
        pic.writePort(0x4D0, 0xFF)
        #expect(pic.readPort(0x4D0) == 0xF8)
        pic.setLine(pin: 11, level: true)
        for _ in 0..<3 {
            #expect(pic.acknowledge() == 0x3B)
            pic.writePort(0xA0, 0x20)
            pic.writePort(0x20, 0x20)
        }
        pic.setLine(pin: 11, level: false)
        #expect(!pic.isOutputAsserted)
    }

    @Test func automaticEnd() {
        let ended = Recorder<Int>()
        let pic = PIC(output: { _ in }, acknowledged: { ended.append($0) })
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] as [(UInt16, UInt8)] {
            pic.writePort(port, value)
        }
        for _ in 0..<2 {
            pic.setLine(pin: 4, level: true)
            #expect(pic.acknowledge() == 0x34)
            pic.setLine(pin: 4, level: false)
        }
        #expect(ended.values == [4, 4])
    }

    @Test func rotation() {
        let pic = makePIC()
        pic.setLine(pin: 0, level: true)
        #expect(pic.acknowledge() == 0x30)
        pic.writePort(0x20, 0xA0)
        pic.setLine(pin: 0, level: false)
        pic.setLine(pin: 0, level: true)
        pic.setLine(pin: 7, level: true)
        #expect(pic.acknowledge() == 0x37)
        pic.writePort(0x20, 0x20)
        #expect(pic.acknowledge() == 0x30)
    }

    @Test func specialMaskIgnoresMaskedServices() {
        let pic = makePIC()
        pic.setLine(pin: 3, level: true)
        #expect(pic.acknowledge() == 0x33)
        pic.setLine(pin: 6, level: true)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0x21, 1 << 3)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0x20, 0x68)
        #expect(pic.acknowledge() == 0x36)
    }

    @Test func pollIsAnAcknowledge() {
        let pic = makePIC()
        pic.writePort(0x20, 0x0C)
        #expect(pic.readPort(0x20) & 0x80 == 0)
        pic.setLine(pin: 4, level: true)
        pic.writePort(0x20, 0x0C)
        #expect(pic.readPort(0x20) == 0x84)
        #expect(!pic.isOutputAsserted)
        #expect(pic.readPort(0x20) == 0)
    }

    @Test func maskedPinsWait() {
        let pic = makePIC()
        pic.writePort(0x21, 0xFF)
        #expect(pic.setLine(pin: 4, level: true) == -1)
        #expect(!pic.isOutputAsserted)
        pic.writePort(0x21, 0xEF)
        #expect(pic.isOutputAsserted)
    }

    @Test func stateSurvivesARoundTrip() {
        let source = makePIC()
        source.setLine(pin: 1, level: true)
        _ = source.acknowledge()
        source.setLine(pin: 0, level: true)
        let target = PIC(output: { _ in })
        target.loadState(source.saveState(ofSecond: false), ofSecond: false)
        target.loadState(source.saveState(ofSecond: true), ofSecond: true)
        #expect(target.saveState(ofSecond: false) == source.saveState(ofSecond: false))
        #expect(target.isOutputAsserted)
        #expect(target.acknowledge() == 0x30)
    }

    @Test func routerKicksTheProcessorThatTakesIt() {
        let machine = TestMachine(vcpuCount: 2)
        let pic = machine.router.pic!
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] as [(UInt16, UInt8)] {
            pic.writePort(port, value)
        }
        // Enabling left LINT0 of the boot processor as it was: external and unmasked.
        let before = machine.vcpus.map { $0.kicks.load(ordering: .relaxed) }
        #expect(machine.router.setLine(4, level: true) == 1)
        #expect(machine.vcpus[0].kicks.load(ordering: .relaxed) == before[0] + 1)
        #expect(machine.vcpus[1].kicks.load(ordering: .relaxed) == before[1])
        #expect(pic.acknowledge() == 0x34)
    }
}
