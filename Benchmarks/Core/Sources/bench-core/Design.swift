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

    private func makeTable() throws(Errno) -> any VCPUTable<Element> & Reading {
        let (count, id): (Int, UInt32) = (4096, 16384)
        return switch self {
        case .reserved: try ReservedTable<Element>(maximumCount: count, maximumID: id)
        case .copiedByOne:
            try CopyAndPublishTable<Element>(maximumCount: count, maximumID: id, growth: .byOne)
        case .copiedByDoubling:
            try CopyAndPublishTable<Element>(maximumCount: count, maximumID: id, growth: .doubling)
        case .segmented: try SegmentedTable<Element>(maximumCount: count, maximumID: id)
        case .cachedPointer: try CachedPointerTable<Element>(maximumCount: count, maximumID: id)
        }
    }

    /// The ways to read a table with `count` elements.
    func makeReaders(count: Int, firstID: UInt32) -> [(String, any Reading)] {
        guard let table = try? makeTable() else { fatalError("no memory for \(name)") }
        for number in 0..<UInt32(count) {
            _ = try? table.append(id: firstID + number) { _ in Element(id: firstID + number) }
        }
        guard let cached = table as? CachedPointerTable<Element> else { return [(name, table)] }
        return [(name, cached.makeReader()), (name + ", read by another thread", cached)]
    }

    /// Makes a table and fills it; ids are in order.
    func create(_ elements: [Element]) -> UInt64 {
        guard let table = try? makeTable() else { fatalError("no memory for \(name)") }
        for element in elements { _ = try? table.append(id: element.id) { _ in element } }
        return UInt64(table.count)
    }
}
