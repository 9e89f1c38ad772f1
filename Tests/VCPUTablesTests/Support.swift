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

/// Every design there is.
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
