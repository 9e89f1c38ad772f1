import Addressing
import Glibc
import GuestMemory
import Host
import Synchronization
import SystemPackage

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

extension UserMemoryRegion {
    /// A region in pages. The host address is unlike that of every other slot, unless given.
    init(_ slot: UInt32, frame: UInt64, pages: UInt64, host: UInt64? = nil, flags: UInt32 = 0) {
        self.init(
            slot: slot, flags: flags, guestPhysicalAddress: frame << 12, memorySize: pages << 12,
            userspaceAddress: host ?? (UInt64(slot) + 1) << 24)
    }
}

extension GuestMemory {
    /// A change whose flush has nothing to do.
    func set(_ region: UserMemoryRegion) throws(Errno) { try setUserMemoryRegion(region) { _ in } }

    /// What a change throws; nil if it succeeds.
    func error(_ region: UserMemoryRegion) -> Errno? {
        do throws(Errno) { try set(region) } catch { return error }
        return nil
    }

    /// The id of the slot that backs a frame, for a caller no writer runs against.
    func owner(of frame: UInt64, addressSpace: Int = 0) -> UInt16? {
        lookup(GuestFrameNumber(frame), addressSpace: addressSpace)?.pointee.id
    }
}
