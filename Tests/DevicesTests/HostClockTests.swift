import Devices
import Host
import Synchronization
import Testing

@Suite struct HostClockTests {
    @Test func wakeupsComeInTheOrderOfTheirDeadlines() {
        let clock = HostClock()
        let order = Recorder<Int>()
        let arrived = Arrivals()
        let start = clock.monotonicNanoseconds
        clock.wake(afterNanoseconds: 20_000_000) {
            order.add(2)
            arrived.note()
        }
        clock.wake(afterNanoseconds: 10_000_000) {
            order.add(1)
            arrived.note()
        }
        clock.wake(afterNanoseconds: -5) {
            order.add(0)
            arrived.note()
        }
        arrived.wait(for: 3)
        #expect(order.values == [0, 1, 2])
        #expect(clock.monotonicNanoseconds - start >= 20_000_000)
    }

    /// The body may ask for the next wake-up, as devices do.
    @Test func aWakeupMayAskForAnother() {
        let clock = HostClock()
        let arrived = Arrivals()
        clock.wake(afterNanoseconds: 0) {
            clock.wake(afterNanoseconds: 1_000_000) { arrived.note() }
        }
        arrived.wait(for: 1)
    }
}

/// Lets a test wait for other threads.
private final class Arrivals: Sendable {
    private let count = FutexWord()

    func note() {
        count.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        count.wake()
    }

    func wait(for expected: UInt32) {
        while true {
            let now = count.atomic.pointee.load(ordering: .acquiring)
            if now >= expected { return }
            count.wait(while: now)
        }
    }
}
