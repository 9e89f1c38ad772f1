import Glibc
import Host
import RCU
import Synchronization

/// Repeatable pseudo-random numbers (SplitMix64).
struct Random: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// True once in `count` times on average.
    mutating func oneIn(_ count: UInt64) -> Bool { next() % count == 0 }
}

/// The seed of this run: that of the environment's `MARTLET_SEED`, or a new one; printed, so that a failure can be
/// repeated.
func runSeed(_ test: String) -> UInt64 {
    let seed = getenv("MARTLET_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 0...UInt64.max)
    print("\(test): MARTLET_SEED=\(seed)")
    return seed
}

/// A counter of several threads.
final class Counter: Sendable {
    private let count = Atomic<Int>(0)
    var value: Int { count.load(ordering: .relaxed) }
    func add(_ number: Int) { count.wrappingAdd(number, ordering: .relaxed) }
    func wait(for number: Int) { while value != number { sched_yield() } }
}

final class Flag: Sendable {
    private let flag = Atomic<Bool>(false)
    var isSet: Bool { flag.load(ordering: .relaxed) }
    func set() { flag.store(true, ordering: .relaxed) }
}

/// Steps that threads take in turn.
final class Stage: Sendable {
    private let stage = Atomic<Int>(0)
    let readerLeft = Atomic<Bool>(false)
    let sawReaderLeave = Atomic<Bool>(false)
    var value: Int { stage.load(ordering: .relaxed) }
    func set(_ number: Int) { stage.store(number, ordering: .relaxed) }
    func wait(for number: Int) { while value < number { sched_yield() } }
}

/// How long a stress test runs: what the environment's `MARTLET_STRESS_SECONDS` says, or `usual`.
func stressSeconds(_ usual: Double) -> Double {
    getenv("MARTLET_STRESS_SECONDS").flatMap { Double(String(cString: $0)) } ?? usual
}

/// The kinds of domains.
enum DomainKind: CaseIterable, Sendable {
    case quiescentState, membarrier, blocking

    /// A new domain, where there can be several.
    func makeDomain() -> ReclamationDomain {
        switch self {
        case .quiescentState: RCUDomain()
        case .membarrier: ThreadRCU.domain
        case .blocking: SRCUDomain()
        }
    }

    /// Runs `body` inside a read section of `domain`.
    func withReadSection(_ domain: ReclamationDomain, _ body: (borrowing ReadSection) -> Void) {
        switch self {
        case .quiescentState:
            let reader = RCUReader(domain as! RCUDomain)
            reader.online()
            reader.withReadSection(body)
            reader.offline()
        case .membarrier: ThreadRCU.withReadSection(body)
        case .blocking: (domain as! SRCUDomain).withReadSection(body)
        }
    }
}
