import Devices
import Testing

@Suite struct RealTimeClockTests {
    /// 2024-02-29 23:59:58 UTC, a Thursday.
    private let clock = ManualClock(realTimeSeconds: 1_709_251_198)
    private let levels = Recorder<Bool>()
    private let device: RealTimeClock

    init() {
        let levels = levels
        device = RealTimeClock(
            clock: clock, lowMemoryByteCount: 3 << 30, highMemoryByteCount: 5 << 30, interrupt: { levels.add($0) })
    }

    private func read(_ register: UInt64) -> UInt64 {
        device.write(at: 0, byteCount: 1, value: register)
        return device.read(at: 1, byteCount: 1)
    }

    private func write(_ register: UInt64, _ value: UInt64) {
        device.write(at: 0, byteCount: 1, value: register)
        device.write(at: 1, byteCount: 1, value: value)
    }

    private var isInterrupting: Bool { levels.values.last ?? false }

    @Test func theTimeIsDecimalInTheBeginning() {
        #expect([9, 8, 7, 6, 4, 2, 0, 0x32].map(read) == [0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58, 0x20])
        clock.advance(nanoseconds: 2_000_000_000)
        #expect([9, 8, 7, 6, 4, 2, 0].map(read) == [0x24, 0x03, 0x01, 0x06, 0x00, 0x00, 0x00])
    }

    @Test func binaryAndTwelveHourForms() {
        write(0x0B, 0x06)
        #expect([9, 4, 2, 0].map(read) == [24, 23, 59, 58])
        write(0x0B, 0x04)
        #expect(read(4) == 0x80 | 11)
        write(0x0B, 0x00)
        #expect(read(4) == 0x91)
        write(4, 0x12)  // midnight
        write(0x0B, 0x02)
        #expect(read(4) == 0)
    }

    @Test func settingStopsTheClockAndKeepsTheNewTime() {
        write(0x0B, 0x82)
        for (register, value) in [(9, 0x99), (0x32, 0x19), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
            write(UInt64(register), UInt64(value))
        }
        clock.advance(nanoseconds: 10_000_000_000)
        #expect(read(0) == 0x59)
        write(0x0B, 0x02)
        clock.advance(nanoseconds: 1_000_000_000)
        #expect([0x32, 9, 8, 7, 4, 2, 0].map(read) == [0x20, 0x00, 0x01, 0x01, 0, 0, 0])
    }

    @Test func anUpdateIsAnnounced() {
        #expect(read(0x0A) == 0x26)
        clock.advance(nanoseconds: 999_800_000)
        #expect(read(0x0A) == 0xA6)
        clock.advance(nanoseconds: 200_000)
        #expect(read(0x0A) == 0x26)
    }

    @Test func theAlarmInterruptsOnce() {
        write(1, 0x01)
        write(3, 0x00)
        write(5, 0x00)
        write(0x0B, 0x22)
        clock.advance(nanoseconds: 2_999_999_999)
        #expect(!isInterrupting)
        clock.advance(nanoseconds: 1)
        #expect(isInterrupting)
        #expect(read(0x0C) == 0xB0 | 0x40)  // with update-ended and the periodic flag, which are not enabled
        #expect(!isInterrupting)
        clock.advance(nanoseconds: 60_000_000_000)
        #expect(!isInterrupting)
        clock.advance(nanoseconds: 86_340_000_000_000)
        #expect(isInterrupting)
    }

    @Test func anAlarmThatMatchesEverySecond() {
        for register: UInt64 in [1, 3, 5] { write(register, 0xFF) }
        write(0x0B, 0x22)
        for _ in 0..<3 {
            clock.advance(nanoseconds: 1_000_000_000)
            #expect(isInterrupting)
            #expect(read(0x0C) & 0xA0 == 0xA0)
            #expect(!isInterrupting)
        }
    }

    @Test func periodicInterruptsFollowTheRate() {
        write(0x0A, 0x2F)  // 2 Hz
        write(0x0B, 0x42)
        var count = 0
        for _ in 0..<20 {
            clock.advance(nanoseconds: 100_000_000)
            if isInterrupting {
                count += 1
                #expect(read(0x0C) & 0xC0 == 0xC0)
            }
        }
        #expect(count == 4)
        write(0x0A, 0x20)
        clock.advance(nanoseconds: 5_000_000_000)
        #expect(!isInterrupting)
    }

    @Test func updateEndedInterruptsEachSecond() {
        write(0x0B, 0x12)
        clock.advance(nanoseconds: 1_000_000_000)
        #expect(isInterrupting)
        write(0x0B, 0x02)
        #expect(!isInterrupting)
    }

    @Test func theMemorySizeIsWhereFirmwareLeavesIt() {
        func word(_ low: UInt64) -> UInt64 { read(low) | read(low + 1) << 8 }
        #expect(word(0x15) == 640)
        #expect(word(0x17) == 0xFFFF)
        #expect(word(0x34) == ((3 << 30) - (16 << 20)) >> 16)
        #expect(word(0x5B) | read(0x5D) << 16 == (5 << 30) >> 16)
    }

    @Test func otherRegistersKeepWhatIsWritten() {
        write(0x40, 0x5A)
        #expect(read(0x40) == 0x5A)
        write(0x0D, 0x00)
        #expect(read(0x0D) == 0x80)
        #expect(device.read(at: 0, byteCount: 1) == 0xFF)
    }
}
