import CHost
import Glibc
import Host
import RCU
import Synchronization
import TestSupport
import Testing

/// One reader and one writer that meet as often as possible at the instants that fences or barriers are for.
///
/// The reader fills its processor's store buffer with writes that miss every cache, so that what it writes next, to say
/// that it enters or leaves, becomes visible microseconds after it has gone on. Found in this way: a domain without either
/// of its two barriers.
@Suite(.serialized) struct RaceTests {
    private struct Element: ~Copyable {
        /// As in the torture test; 2 once a grace period has passed since the element was unlinked.
        let age = Atomic<Int>(0)
    }

    private final class Pair: @unchecked Sendable {
        let elements = UnsafeMutablePointer<Element>.allocate(capacity: 2)
        let current: RCUPointer<Element>
        init() {
            elements.initialize(to: Element())
            (elements + 1).initialize(to: Element())
            current = RCUPointer(elements)
        }
        deinit {
            elements.deinitialize(count: 2)
            elements.deallocate()
        }
    }

    /// Writes that take long to leave the store buffer.
    private struct SlowWrites: ~Copyable {
        private static let byteCount = 64 << 20
        private let memory: MemoryMapping
        private var random: SeededGenerator

        init(seed: UInt64) throws {
            memory = try .anonymous(byteCount: Self.byteCount)
            memory.baseAddress.initializeMemory(as: UInt8.self, repeating: 1, count: Self.byteCount)
            random = SeededGenerator(seed: seed)
        }

        mutating func write() {
            for _ in 0..<48 {
                memory.baseAddress.storeBytes(of: 1, toByteOffset: Int(random.next() % (64 << 20)), as: UInt8.self)
            }
        }
    }

    /// A writer that looks while a reader enters sees the reader, or the reader sees what the writer published.
    @Test(arguments: DomainKind.allCases) func aReaderThatEntersIsSeen(kind: DomainKind) throws {
        let seed = runSeed("entering reader \(kind)")
        let domain = kind.makeDomain()
        let pair = Pair()
        let tooOld = Counter()
        let stop = Flag()
        let body: @Sendable (borrowing ReadSection) -> Void = { section in
            guard let element = pair.current.load(in: section) else { return }
            for _ in 0..<400 where element.pointee.age.load(ordering: .relaxed) >= 2 { tooOld.add(1) }
        }
        let reader = try HostThread(name: "reader") {
            var writes = try! SlowWrites(seed: seed)
            switch kind {
            case .quiescentState:
                let reader = RCUReader(domain as! RCUDomain)
                while !stop.isSet {
                    writes.write()
                    reader.online()
                    reader.withReadSection(body)
                    reader.offline()
                }
            case .membarrier:
                while !stop.isSet {
                    writes.write()
                    ThreadRCU.withReadSection(body)
                }
            case .blocking:
                let domain = domain as! SRCUDomain
                while !stop.isSet {
                    writes.write()
                    domain.withReadSection(body)
                }
            }
        }
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(0.3) * 1e9)
        var next = 1
        while MonotonicClock.nanoseconds() < deadline {
            (pair.elements + next).pointee.age.store(0, ordering: .relaxed)
            let old = pair.current.exchange(pair.elements + next)!
            old.pointee.age.store(1, ordering: .relaxed)
            domain.synchronize()
            old.pointee.age.store(2, ordering: .relaxed)
            next ^= 1
        }
        stop.set()
        reader.join()
        #expect(tooOld.value == 0)
    }

    /// A section that ends while the writer falls asleep, and no other reader to wake it: a lost wake-up hangs, and the
    /// watchdog ends the process.
    @Test(arguments: DomainKind.allCases) func theLastReaderWakesTheWriter(kind: DomainKind) throws {
        let seed = runSeed("last reader \(kind)")
        let domain = kind.makeDomain()
        let rounds = 20_000
        let (entered, synchronized) = (Counter(), Counter())
        alarm(60)
        defer { alarm(0) }
        let reader = try HostThread(name: "reader") {
            var random = SeededGenerator(seed: seed)
            var writes = try! SlowWrites(seed: seed)
            for round in 1...rounds {
                kind.withReadSection(domain) { _ in
                    entered.add(1)
                    // About as long as the writer spins before it sleeps.
                    for _ in 0..<Int.random(in: 0...400, using: &random) { martlet_pause() }
                    writes.write()
                }
                synchronized.wait(for: round)
            }
        }
        for round in 1...rounds {
            entered.wait(for: round)
            domain.synchronize()
            synchronized.add(1)
        }
        reader.join()
    }
}
