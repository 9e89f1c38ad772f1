import Glibc
import Interrupts
import Synchronization
import Testing

/// The promise of the posting protocol: whatever is posted is acknowledged once, and never without a kick.
@Suite struct PostingTests {
    /// An owner that only looks at its APIC after a kick.
    private final class Owner: LocalAPICHost, @unchecked Sendable {
        private(set) var apic: LocalAPIC!
        private let attention = Atomic<Bool>(false)
        private(set) var acknowledged = 0

        init() {
            apic = LocalAPIC(id: 0, isBootstrapProcessor: true, host: self)
            apic.writePage(offset: APICRegister.spurious, byteCount: 4, value: 0x1FF, now: GuestTime(nanoseconds: 0))
        }

        func kick() { attention.store(true, ordering: .sequentiallyConsistent) }
        func postSystemManagementInterrupt() {}
        func send(_ message: InterruptMessage) {}
        func broadcastEndOfInterrupt(vector: UInt8) {}
        func armTimer(deadlineNanoseconds: UInt64?) {}

        func work() {
            guard attention.exchange(false, ordering: .sequentiallyConsistent) else { return }
            while apic.acknowledge() != nil {
                acknowledged += 1
                apic.endOfInterrupt()
            }
        }
    }

    private final class Counters: Sendable {
        let delivered = Atomic<Int>(0)
        let finished = Atomic<Int>(0)
    }

    @Test func nothingIsLostOrDoubled() {
        let owner = Owner()
        let counters = Counters()
        let posterCount = 3
        let posters = (0..<posterCount).map { poster in
            { @Sendable in
                for round in 0..<40_000 {
                    let vector = UInt8(16 + (round &* 7 &+ poster) % 240)
                    let message = InterruptMessage(destination: 0, vector: vector)
                    if owner.apic.accept(message) == .delivered {
                        counters.delivered.wrappingAdd(1, ordering: .relaxed)
                    }
                    if round % 64 == 0 { sched_yield() }
                }
                counters.finished.wrappingAdd(1, ordering: .sequentiallyConsistent)
            }
        }
        runThreads(
            posters + [
                { @Sendable in
                    while counters.finished.load(ordering: .sequentiallyConsistent) < posterCount {
                        owner.work()
                        sched_yield()
                    }
                    owner.work()
                }
            ])
        #expect(owner.acknowledged == counters.delivered.load(ordering: .relaxed))
        #expect(owner.acknowledged > 0)
        #expect(!owner.apic.hasPendingInterrupt)
    }
}
