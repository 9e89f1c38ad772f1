import Glibc
import Host
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
