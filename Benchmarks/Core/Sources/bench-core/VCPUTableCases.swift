import VCPUTableDesigns
import VCPUTables

/// Lookups in the designs of a vCPU table.
enum VCPUTableCases {
    final class Element: VCPUTableElement {
        let id: UInt32
        init(id: UInt32) { self.id = id }
    }

    static var groups: [Group] {
        [8, 256, 4096].flatMap { count in
            [
                Group(title: "vCPU by index, \(count)", cases: cases(count) { byIndex($0, count, $1) }),
                Group(title: "vCPU by id, \(count), ids in order", cases: cases(count) { byID($0, count, $1) }),
                Group(
                    title: "vCPU by id, \(count), ids not in order",
                    cases: cases(count, firstID: 8192, operations: max(50_000 / count, 10)) {
                        byOtherID($0, count, $1)
                    }),
                Group(title: "iteration over \(count), each vCPU", cases: cases(count) { iterate($0, count, $1) })
            ]
        }
            + [8, 256, 4096].map { count in
                Group(title: "creation of \(count), each vCPU", cases: creations(count))
            }
    }

    /// A way to measure that works with a reader of any design.
    typealias Body = (_ reader: any Reading, _ operations: Int) -> UInt64

    private static func cases(
        _ count: Int, firstID: UInt32 = 0, operations: Int = 50_000, _ body: @escaping Body
    ) -> [Case] {
        // The same for all designs, so that none is luckier with where they lie.
        let elements = (0..<UInt32(count)).map { Element(id: firstID + $0) }
        return Design.allCases.flatMap { design in
            design.makeReaders(elements).map { name, reader in
                Case(name: name, operations: operations) { body(reader, operations) }
            }
        }
    }

    private static func creations(_ count: Int) -> [Case] {
        // Made before, so that the table alone is measured.
        let elements = (0..<count).map { Element(id: UInt32($0)) }
        return Design.allCases.map { design in
            Case(name: design.name, operations: count) {
                guard let table = try? design.makeTable(elements) else { fatalError("no memory for \(design.name)") }
                return UInt64(table.count)
            }
        }
    }

    private static func byIndex(_ reader: any Reading, _ count: Int, _ operations: Int) -> UInt64 {
        reader.sumByIndex(count, operations)
    }

    private static func byID(_ reader: any Reading, _ count: Int, _ operations: Int) -> UInt64 {
        reader.sumByID(count, 0, operations)
    }

    private static func byOtherID(_ reader: any Reading, _ count: Int, _ operations: Int) -> UInt64 {
        reader.sumByID(count, 8192, operations)
    }

    private static func iterate(_ reader: any Reading, _ count: Int, _ operations: Int) -> UInt64 {
        reader.sumOfAll(operations / count)
    }
}

/// The loops; each conformance below is compiled for its design alone.
protocol Reading {
    func sumByIndex(_ count: Int, _ operations: Int) -> UInt64
    func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64
    func sumOfAll(_ times: Int) -> UInt64
}

extension Reading where Self: VCPUTableReader, Element == VCPUTableCases.Element {
    // `count` is a power of two: every element comes once in `count` steps, in no order.

    @inline(__always)
    func doSumByIndex(_ count: Int, _ operations: Int) -> UInt64 {
        var sum: UInt64 = 0
        var index = 0
        for _ in 0..<operations {
            index = (index &* 5 &+ 1) & (count &- 1)
            withElement(at: index) { sum &+= UInt64($0.id) }
        }
        return sum
    }

    @inline(__always)
    func doSumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        var sum: UInt64 = 0
        var index = 0
        for _ in 0..<operations {
            index = (index &* 5 &+ 1) & (count &- 1)
            withElement(id: firstID &+ UInt32(truncatingIfNeeded: index)) { sum &+= UInt64($0.id) }
        }
        return sum
    }

    @inline(__always)
    func doSumOfAll(_ times: Int) -> UInt64 {
        var sum: UInt64 = 0
        for _ in 0..<times {
            forEach { element in
                sum &+= UInt64(element.id)
                return true
            }
        }
        return sum
    }
}

typealias Element = VCPUTableCases.Element

extension ReservedTable: Reading where Element == VCPUTableCases.Element {
    @inline(never) func sumByIndex(_ count: Int, _ operations: Int) -> UInt64 { doSumByIndex(count, operations) }
    @inline(never) func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        doSumByID(count, firstID, operations)
    }
    @inline(never) func sumOfAll(_ times: Int) -> UInt64 { doSumOfAll(times) }
}

extension CopyAndPublishTable: Reading where Element == VCPUTableCases.Element {
    @inline(never) func sumByIndex(_ count: Int, _ operations: Int) -> UInt64 { doSumByIndex(count, operations) }
    @inline(never) func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        doSumByID(count, firstID, operations)
    }
    @inline(never) func sumOfAll(_ times: Int) -> UInt64 { doSumOfAll(times) }
}

extension SegmentedTable: Reading where Element == VCPUTableCases.Element {
    @inline(never) func sumByIndex(_ count: Int, _ operations: Int) -> UInt64 { doSumByIndex(count, operations) }
    @inline(never) func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        doSumByID(count, firstID, operations)
    }
    @inline(never) func sumOfAll(_ times: Int) -> UInt64 { doSumOfAll(times) }
}

extension CachedPointerTable: Reading where Element == VCPUTableCases.Element {
    @inline(never) func sumByIndex(_ count: Int, _ operations: Int) -> UInt64 { doSumByIndex(count, operations) }
    @inline(never) func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        doSumByID(count, firstID, operations)
    }
    @inline(never) func sumOfAll(_ times: Int) -> UInt64 { doSumOfAll(times) }
}

extension CachedPointerReader: Reading where Element == VCPUTableCases.Element {
    @inline(never) func sumByIndex(_ count: Int, _ operations: Int) -> UInt64 { doSumByIndex(count, operations) }
    @inline(never) func sumByID(_ count: Int, _ firstID: UInt32, _ operations: Int) -> UInt64 {
        doSumByID(count, firstID, operations)
    }
    @inline(never) func sumOfAll(_ times: Int) -> UInt64 { doSumOfAll(times) }
}
