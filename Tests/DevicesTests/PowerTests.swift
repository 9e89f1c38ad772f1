import Devices
import Testing

@Suite struct ACPIPowerManagementTests {
    private let clock = ManualClock(realTimeSeconds: 0)
    private let levels = Recorder<Bool>()
    private let powerOffs = Recorder<Void>()
    private let device: ACPIPowerManagement

    init() {
        let (levels, powerOffs) = (levels, powerOffs)
        device = ACPIPowerManagement(
            clock: clock, softOffSleepType: 5, interrupt: { levels.add($0) }, powerOff: { powerOffs.add(()) })
    }

    @Test func softOffPowersOff() {
        device.write(at: 4, byteCount: 2, value: 5 << 10)
        #expect(powerOffs.values.isEmpty)
        device.write(at: 4, byteCount: 2, value: 5 << 10 | 1 << 13)
        #expect(powerOffs.values.count == 1)
    }

    @Test func softOffByTheUpperByteAlone() {
        device.write(at: 5, byteCount: 1, value: 5 << 2 | 1 << 5)
        #expect(powerOffs.values.count == 1)
    }

    @Test func otherSleepStatesDoNothing() {
        device.write(at: 4, byteCount: 2, value: 3 << 10 | 1 << 13)
        #expect(powerOffs.values.isEmpty)
        #expect(device.read(at: 4, byteCount: 2) == 3 << 10 | 1)
    }

    @Test func theMachineIsInACPIMode() {
        #expect(device.read(at: 4, byteCount: 2) & 1 == 1)
        device.write(at: 4, byteCount: 2, value: 0)
        #expect(device.read(at: 4, byteCount: 2) == 1)
    }

    @Test func thePowerButtonInterruptsWhenEnabled() {
        device.pressPowerButton()
        #expect(device.read(at: 0, byteCount: 2) == 1 << 8)
        #expect(levels.values.isEmpty)
        device.write(at: 2, byteCount: 2, value: 1 << 8)
        #expect(levels.values == [true])
        #expect(device.read(at: 0, byteCount: 4) == 1 << 24 | 1 << 8)
        device.write(at: 0, byteCount: 2, value: 1 << 9)
        #expect(levels.values == [true])
        device.write(at: 0, byteCount: 2, value: 1 << 8)
        #expect(levels.values == [true, false])
        #expect(device.read(at: 0, byteCount: 2) == 0)
    }

    @Test func theTimerRunsAtItsRateAndWraps() {
        #expect(device.read(at: 8, byteCount: 4) == 0)
        clock.advance(nanoseconds: 1_000_000_000)
        #expect(device.read(at: 8, byteCount: 4) == 3_579_545)
        #expect(device.read(at: 9, byteCount: 1) == 3_579_545 >> 8 & 0xFF)
        clock.advance(nanoseconds: 4_000_000_000)
        #expect(device.read(at: 8, byteCount: 4) == 5 * 3_579_545 - (1 << 24))
        clock.advance(nanoseconds: 1_000_000_000_000_000)
        #expect(device.read(at: 8, byteCount: 4) < 1 << 24)
    }
}

@Suite struct ResetTests {
    @Test func onlyTheByteAccessResets() {
        let resets = Recorder<Void>()
        let register = ResetRegister { resets.add(()) }
        let ports = DeviceMap([.init(0xCF8..<0xCFC, register)])
        ports.write(at: 0xCF8, byteCount: 4, value: 0x8000_FF00)
        #expect(ports.read(at: 0xCF8, byteCount: 4) == 0xFFFF_FFFF)
        ports.write(at: 0xCFB, byteCount: 1, value: 1)
        ports.write(at: 0xCF9, byteCount: 1, value: 2)
        #expect(resets.values.isEmpty)
        #expect(ports.read(at: 0xCF9, byteCount: 1) == 2)
        ports.write(at: 0xCF9, byteCount: 1, value: 6)
        #expect(resets.values.count == 1)
    }

    @Test func theKeyboardControllerResets() {
        let resets = Recorder<Void>()
        let controller = KeyboardController { resets.add(()) }
        // Linux waits for an empty input buffer first.
        #expect(controller.read(at: KeyboardController.commandOffset, byteCount: 1) & 0x02 == 0)
        controller.write(at: KeyboardController.commandOffset, byteCount: 1, value: 0xFE)
        #expect(resets.values.count == 1)
        controller.write(at: KeyboardController.commandOffset, byteCount: 1, value: 0xD1)
        controller.write(at: KeyboardController.dataOffset, byteCount: 1, value: 0x02)
        #expect(resets.values.count == 2)
    }
}

@Suite struct KeyboardControllerTests {
    private let controller = KeyboardController { Issue.record("reset") }

    private var status: UInt64 { controller.read(at: KeyboardController.commandOffset, byteCount: 1) }
    private var data: UInt64 { controller.read(at: KeyboardController.dataOffset, byteCount: 1) }

    private func command(_ value: UInt64) {
        controller.write(at: KeyboardController.commandOffset, byteCount: 1, value: value)
    }

    @Test func itAnswersItsOwnCommands() {
        #expect(status & 0x01 == 0)
        command(0xAA)
        #expect(status & 0x01 == 1)
        #expect(data == 0x55)
        #expect(status & 0x01 == 0)
        command(0x60)
        controller.write(at: KeyboardController.dataOffset, byteCount: 1, value: 0x47)
        command(0x20)
        #expect(data == 0x47)
        command(0xA7)
        command(0x20)
        #expect(data == 0x67)
    }

    @Test func noKeyboardAnswers() {
        controller.write(at: KeyboardController.dataOffset, byteCount: 1, value: 0xFF)
        #expect(status & 0x41 == 0x41)
        #expect(data == 0xFE)
        #expect(status & 0x41 == 0)
    }
}

@Suite struct DebugPortTests {
    @Test func bytesGoOutAndThePortShowsItself() {
        let sent = Recorder<UInt8>()
        let port = DebugPort { sent.add($0) }
        port.write(at: 0, byteCount: 1, value: 0x41)
        #expect(sent.values == [0x41])
        #expect(port.read(at: 0, byteCount: 1) == 0xE9)
    }
}
