import Interrupts
import Testing

@Suite struct PITTests {
    private final class Bench: Sendable {
        let levels = Recorder<Bool>()
        let armed = Recorder<UInt64?>()
        /// What the interrupt line answers: KVM's status.
        let status: Int

        init(status: Int = 1) { self.status = status }

        func makePIT() -> PIT {
            PIT(
                output: { [self] level in
                    levels.append(level)
                    return status
                },
                armTimer: { [self] in armed.append($0) })
        }

        var tickCount: Int { levels.values.filter { $0 }.count }
    }

    private static let hertz: UInt64 = 1_193_182

    /// The first nanosecond at which `ticks` ticks have passed.
    private static func nanoseconds(_ ticks: UInt64) -> UInt64 { (ticks * 1_000_000_000 + hertz - 1) / hertz }

    private static func program(_ pit: PIT, channel: UInt16, control: UInt8, count: UInt16, now: UInt64) {
        pit.writePort(0x43, control, now: now)
        pit.writePort(0x40 + channel, UInt8(truncatingIfNeeded: count), now: now)
        pit.writePort(0x40 + channel, UInt8(truncatingIfNeeded: count >> 8), now: now)
    }

    private static func latched(_ pit: PIT, channel: UInt16, now: UInt64) -> UInt16 {
        pit.writePort(0x43, UInt8(channel) << 6, now: now)
        let low = UInt16(pit.readPort(0x40 + channel, now: now))
        return UInt16(pit.readPort(0x40 + channel, now: now)) << 8 | low
    }

    @Test func rateGeneratorTicksWithoutDrift() {
        let bench = Bench()
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x34, count: 4773, now: 1000)
        for tick in 1...1000 as ClosedRange<UInt64> {
            let due = 1000 + Self.nanoseconds(4773 * tick)
            #expect(bench.armed.values.last == due)
            pit.service(now: due - 1)
            #expect(bench.tickCount == Int(tick) - 1)
            pit.service(now: due)
            #expect(bench.tickCount == Int(tick))
        }
        #expect(bench.levels.values.last == false)
    }

    @Test func countOfModesTwoAndThree() {
        let bench = Bench()
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x34, count: 1000, now: 0)
        #expect(Self.latched(pit, channel: 0, now: 0) == 1000)
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(300)) == 700)
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(1300)) == 700)
        Self.program(pit, channel: 0, control: 0x36, count: 1000, now: 0)
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(100)) == 800)
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(600)) == 800)
    }

    @Test func modeZeroFiresOnce() {
        let bench = Bench()
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x30, count: 0, now: 0)
        let due = Self.nanoseconds(0x10000)
        #expect(bench.armed.values.last == due)
        pit.service(now: due)
        #expect(bench.tickCount == 1)
        #expect(bench.armed.values.last == .some(nil))
        pit.service(now: due * 3)
        #expect(bench.tickCount == 1)
        // The counter runs on.
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(0x10000 + 5)) == 0xFFFB)
    }

    @Test func controlWordStopsTheTimer() {
        let bench = Bench()
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x34, count: 1000, now: 0)
        pit.writePort(0x43, 0x30, now: 10)
        #expect(bench.armed.values.last == .some(nil))
        pit.service(now: 10_000_000)
        #expect(bench.tickCount == 0)
    }

    @Test func calibrationThroughGateTwo() {
        let pit = Bench().makePIT()
        let start: UInt64 = 12_345
        let count: UInt64 = 59_659
        pit.writePort(0x61, pit.readPort(0x61, now: start) & ~2 | 1, now: start)
        pit.writePort(0x43, 0xB0, now: start)
        #expect(pit.readPort(0x61, now: start) & 0x21 == 1)
        pit.writePort(0x42, UInt8(count & 0xFF), now: start)
        pit.writePort(0x42, UInt8(count >> 8), now: start)
        let end = start + Self.nanoseconds(count)
        #expect(pit.readPort(0x61, now: end - 1) & 0x20 == 0)
        #expect(pit.readPort(0x61, now: end) & 0x20 == 0x20)
        // And the quick variant, which reads the running count.
        pit.writePort(0x43, 0xB0, now: end)
        pit.writePort(0x42, 0xFF, now: end)
        pit.writePort(0x42, 0xFF, now: end)
        for high in stride(from: UInt64(0xFF), to: 0xF0, by: -1) {
            let now = end + Self.nanoseconds(0xFFFF - (high << 8 | 0x80))
            _ = pit.readPort(0x42, now: now)
            #expect(pit.readPort(0x42, now: now) == UInt8(high))
        }
    }

    @Test func gateHoldsTheCounter() {
        let pit = Bench().makePIT()
        pit.writePort(0x61, 1, now: 0)
        Self.program(pit, channel: 2, control: 0xB0, count: 1000, now: 0)
        pit.writePort(0x61, 0, now: Self.nanoseconds(100))
        #expect(Self.latched(pit, channel: 2, now: Self.nanoseconds(5000)) == 900)
        #expect(pit.readPort(0x61, now: Self.nanoseconds(5000)) & 0x20 == 0)
        pit.writePort(0x61, 3, now: Self.nanoseconds(5000))
        #expect(Self.latched(pit, channel: 2, now: Self.nanoseconds(5000) + Self.nanoseconds(101)) == 799)
        #expect(pit.readPort(0x61, now: Self.nanoseconds(5000)) & 3 == 3)
        // In mode 3 a rising gate begins a new period.
        Self.program(pit, channel: 2, control: 0xB6, count: 1000, now: 0)
        pit.writePort(0x61, 0, now: 1000)
        #expect(pit.readPort(0x61, now: Self.nanoseconds(700)) & 0x20 == 0x20)
        pit.writePort(0x61, 1, now: Self.nanoseconds(2000))
        #expect(pit.readPort(0x61, now: Self.nanoseconds(2000)) & 0x20 == 0x20)
        #expect(pit.readPort(0x61, now: Self.nanoseconds(2000) + Self.nanoseconds(501)) & 0x20 == 0)
    }

    @Test func readBackLatchesStatusAndCount() {
        let pit = Bench().makePIT()
        pit.writePort(0x43, 0x34, now: 0)
        pit.writePort(0x43, 0xE2, now: 0)
        // Output high, null count, both bytes, mode 2.
        #expect(pit.readPort(0x40, now: 0) == 0xF4)
        pit.writePort(0x40, 0xE8, now: 0)
        pit.writePort(0x40, 0x03, now: 0)
        pit.writePort(0x43, 0xC2, now: Self.nanoseconds(10))
        #expect(pit.readPort(0x40, now: 99_999) == 0xB4)
        #expect(pit.readPort(0x40, now: 99_999) == UInt8(990 & 0xFF))
        #expect(pit.readPort(0x40, now: 99_999) == UInt8(990 >> 8))
    }

    @Test func singleByteAccessAndDecimal() {
        let pit = Bench().makePIT()
        pit.writePort(0x43, 0x14, now: 0)
        pit.writePort(0x40, 100, now: 0)
        #expect(pit.readPort(0x40, now: Self.nanoseconds(30)) == 70)
        #expect(pit.readPort(0x40, now: Self.nanoseconds(40)) == 60)
        Self.program(pit, channel: 0, control: 0x31, count: 0x1234, now: 0)
        #expect(Self.latched(pit, channel: 0, now: Self.nanoseconds(35)) == 0x1199)
    }

    @Test func coalescedTicksAreGivenLater() {
        let waiting = Recorder<Bool>()
        let pending = Recorder<Int>()
        let pit = PIT(
            output: { level in
                guard level else { return 1 }
                waiting.append(true)
                return pending.values.count
            },
            armTimer: { _ in })
        Self.program(pit, channel: 0, control: 0x34, count: 11932, now: 0)
        // The guest takes nothing for three periods; then it does.
        for tick in 1...3 as ClosedRange<UInt64> { pit.service(now: Self.nanoseconds(11932 * tick)) }
        #expect(waiting.values.count == 3)
        pending.append(1)
        for step in 1...5 as ClosedRange<UInt64> { pit.service(now: Self.nanoseconds(11932 * 3) + step * 1_000_000) }
        #expect(waiting.values.count == 6)
        // Late service counts too, unless the client gave that up.
        pit.service(now: Self.nanoseconds(11932 * 6))
        for step in 1...5 as ClosedRange<UInt64> { pit.service(now: Self.nanoseconds(11932 * 6) + step * 1_000_000) }
        #expect(waiting.values.count == 9)
        pit.setReinjection(false)
        pit.service(now: Self.nanoseconds(11932 * 9))
        for step in 1...5 as ClosedRange<UInt64> { pit.service(now: Self.nanoseconds(11932 * 9) + step * 1_000_000) }
        #expect(waiting.values.count == 10)
    }

    @Test func ignoredTicksAreLost() {
        let bench = Bench(status: -1)
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x34, count: 11932, now: 0)
        pit.service(now: Self.nanoseconds(11932 * 3))
        #expect(bench.tickCount == 1)
        #expect(bench.armed.values.last == Self.nanoseconds(11932 * 4))
    }

    @Test func stateSurvivesARoundTrip() {
        let bench = Bench()
        let pit = bench.makePIT()
        Self.program(pit, channel: 0, control: 0x34, count: 1000, now: 0)
        pit.writePort(0x61, 3, now: 0)
        var saved = pit.saveState()
        #expect(saved.channels[0].count == 1000 && saved.channels[0].mode == 2 && saved.isSpeakerOn)
        #expect(saved.channels[2].gate)
        let other = Bench()
        let copy = other.makePIT()
        copy.loadState(saved, now: 500)
        #expect(other.armed.values == [500 + Self.nanoseconds(1000)])
        saved.isReplacedByHPET = true
        copy.loadState(saved, now: 500)
        copy.service(now: 10_000_000)
        #expect(other.tickCount == 0)
    }
}
