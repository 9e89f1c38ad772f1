import SystemPackage
import VCPUTableDesigns
import VCPUTables

/// The designs to compare; the product's comes first.
enum Design: CaseIterable {
    case reserved, copiedByOne, copiedByDoubling, segmented, cachedPointer

    var name: String {
        switch self {
        case .reserved: "reserved address space (the product's)"
        case .copiedByOne: "copied under RCU, growing by 1"
        case .copiedByDoubling: "copied under RCU, growing ×2"
        case .segmented: "segments that never move"
        case .cachedPointer: "pointer cached by each vCPU"
        }
    }

    private static let maximumCount = 4096
    private static let maximumID: UInt32 = 16384

    /// The ways to read a table that holds `elements`.
    func makeReaders(_ elements: [Element]) -> [(String, any Reading)] {
        guard let table = try? makeTable(elements) else { fatalError("no memory for \(name)") }
        guard let cached = table as? CachedPointerTable<Element> else { return [(name, table)] }
        return [(name, cached.makeReader()), (name + ", read by another thread", cached)]
    }

    /// Makes a table and adds `elements` one after the other.
    func makeTable(_ elements: [Element]) throws(Errno) -> any VCPUTable<Element> & Reading {
        let (count, id) = (Self.maximumCount, Self.maximumID)
        return switch self {
        case .reserved: try Self.fill(ReservedTable(maximumCount: count, maximumID: id), elements)
        case .copiedByOne:
            try Self.fill(CopyAndPublishTable(maximumCount: count, maximumID: id, growth: .byOne), elements)
        case .copiedByDoubling:
            try Self.fill(CopyAndPublishTable(maximumCount: count, maximumID: id, growth: .doubling), elements)
        case .segmented: try Self.fill(SegmentedTable(maximumCount: count, maximumID: id), elements)
        case .cachedPointer: try Self.fill(CachedPointerTable(maximumCount: count, maximumID: id), elements)
        }
    }

    @inline(__always)
    private static func fill<Table: VCPUTable<Element>>(_ table: Table, _ elements: [Element]) throws(Errno) -> Table {
        for element in elements { _ = try table.append(id: element.id) { _ in element } }
        return table
    }
}
