import Glibc
import Host
import Synchronization
import SystemPackage
import VCPUTableDesigns
import VCPUTables

/// A stand-in for a vCPU that knows whether it was finished before it was published, and counts how many exist.
final class Element: VCPUTableElement {
    static let alive = Atomic<Int>(0)
    let id: UInt32
    let index: Int
    /// Plain memory: the thread sanitizer sees whether readers are ordered after the making.
    nonisolated(unsafe) var payload = 0

    init(id: UInt32, index: Int) {
        self.id = id
        self.index = index
        Self.alive.wrappingAdd(1, ordering: .relaxed)
        payload = Int(id) ^ index
    }

    deinit { Self.alive.wrappingSubtract(1, ordering: .relaxed) }

    var isComplete: Bool { payload == Int(id) ^ index }
}

/// Every design there is, by the number of the mail that proposed them.
enum Design: CaseIterable, Sendable {
    case reserved, copiedByOne, copiedByDoubling, segmented, cachedPointer

    func makeTable(
        maximumCount: Int = 4096, maximumID: UInt32 = 16384, memory: TableMemory = TableMemory()
    ) throws(Errno) -> any VCPUTable<Element> {
        switch self {
        case .reserved: try ReservedTable(maximumCount: maximumCount, maximumID: maximumID)
        case .copiedByOne:
            try CopyAndPublishTable(
                maximumCount: maximumCount, maximumID: maximumID, growth: .byOne, memory: memory)
        case .copiedByDoubling:
            try CopyAndPublishTable(
                maximumCount: maximumCount, maximumID: maximumID, growth: .doubling, memory: memory)
        case .segmented: try SegmentedTable(maximumCount: maximumCount, maximumID: maximumID, memory: memory)
        case .cachedPointer: try CachedPointerTable(maximumCount: maximumCount, maximumID: maximumID, memory: memory)
        }
    }
}

extension VCPUTable<Element> {
    func add(_ id: UInt32) throws(Errno) -> Element {
        try append(id: id) { index in Element(id: id, index: index) }
    }

    /// A reader of a vCPU's own.
    func anyReader() -> any VCPUTableReader<Element> { makeReader() }
}

extension VCPUTableReader<Element> {
    /// The ids that an iteration visits.
    var ids: [UInt32] {
        var ids: [UInt32] = []
        forEach { element in
            ids.append(element.id)
            return true
        }
        return ids
    }

    func id(at index: Int) -> UInt32? { withElement(at: index) { $0.id } }
    func index(ofID id: UInt32) -> Int? { withElement(id: id) { $0.index } }
}

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
}

/// The seed of this run: that of the environment's `MARTLET_SEED`, or a new one; printed, so that a failure can be
/// repeated.
func runSeed(_ test: String) -> UInt64 {
    let seed = getenv("MARTLET_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 0...UInt64.max)
    print("\(test): MARTLET_SEED=\(seed)")
    return seed
}

/// How long a stress test runs: what the environment's `MARTLET_STRESS_SECONDS` says, or `usual`.
func stressSeconds(_ usual: Double) -> Double {
    getenv("MARTLET_STRESS_SECONDS").flatMap { Double(String(cString: $0)) } ?? usual
}
