import Host
import Synchronization
import SystemPackage
import Testing
import UserspaceKVM

/// A stand-in for a vCPU that counts how many exist, and knows whether it was finished before it was published.
private final class Element: VCPUTableElement {
    static let alive = Atomic<Int>(0)
    let id: UInt32
    let index: Int
    let isComplete = Atomic<Bool>(false)

    init(id: UInt32, index: Int) {
        self.id = id
        self.index = index
        Self.alive.wrappingAdd(1, ordering: .relaxed)
        isComplete.store(true, ordering: .relaxed)
    }

    deinit { Self.alive.wrappingSubtract(1, ordering: .relaxed) }
}

/// What any table design has to do.
@Suite(.serialized) struct VCPUTableTests {
    private func makeTable(maximumCount: Int = 4096, maximumID: UInt32 = 16384) -> CopyAndPublishTable<Element> {
        CopyAndPublishTable(maximumCount: maximumCount, maximumID: maximumID)
    }

    private func add(_ id: UInt32, to table: some VCPUTable<Element>) throws(Errno) -> Element {
        try table.append(id: id) { index in Element(id: id, index: index) }
    }

    @Test func emptyTable() {
        let table = makeTable()
        #expect(table.count == 0)
        table.withElement(at: 0) { _ in Issue.record("an element in an empty table") }
        table.withElement(id: 0) { _ in Issue.record("an element in an empty table") }
        table.forEach { _ in
            Issue.record("an element in an empty table")
            return true
        }
    }

    @Test func lookups() throws {
        let table = makeTable()
        let ids: [UInt32] = [0, 7, 1, 16383, 4]
        let elements = try ids.map { try add($0, to: table) }
        #expect(table.count == 5)
        for (index, id) in ids.enumerated() {
            var seen: [UInt32] = []
            table.withElement(at: index) { seen.append($0.id) }
            table.withElement(id: id) { seen.append($0.id) }
            #expect(seen == [id, id])
            #expect(table.index(of: elements[index]) == index)
        }
        table.withElement(at: 5) { _ in Issue.record("an element past the count") }
        table.withElement(at: -1) { _ in Issue.record("an element before the first") }
        table.withElement(id: 2) { _ in Issue.record("an element with an id that is not taken") }
        #expect(table.index(of: Element(id: 0, index: 0)) == nil)
    }

    @Test func iterationStopsEarly() throws {
        let table = makeTable()
        for id: UInt32 in 0..<10 { _ = try add(id, to: table) }
        var seen = 0
        table.forEach { _ in
            seen += 1
            return seen < 2
        }
        #expect(seen == 2)
    }

    @Test func iterationIsASnapshot() throws {
        let table = makeTable()
        for id: UInt32 in 0..<3 { _ = try add(id, to: table) }
        var seen: [UInt32] = []
        try table.forEachThrowing { element in
            if seen.isEmpty { _ = try add(100, to: table) }
            seen.append(element.id)
        }
        #expect(seen == [0, 1, 2])
        #expect(table.count == 4)
    }

    @Test func refusals() throws {
        let table = makeTable(maximumCount: 2, maximumID: 10)
        _ = try add(9, to: table)
        #expect(throws: Errno.invalidArgument) { try add(10, to: table) }
        #expect(throws: Errno.fileExists) { try add(9, to: table) }
        #expect(throws: Errno.noMemory) {
            try table.append(id: 3) { _ throws(Errno) -> Element in throw .noMemory }
        }
        #expect(table.count == 1)
        _ = try add(3, to: table)
        #expect(throws: Errno.invalidArgument) { try add(4, to: table) }
        #expect(table.count == 2)
    }

    @Test func fullTable() throws {
        let table = makeTable()
        for id: UInt32 in 0..<4096 { _ = try add(id * 3, to: table) }
        #expect(table.count == 4096)
        #expect(throws: Errno.invalidArgument) { try add(1, to: table) }
        var found: UInt32?
        table.withElement(id: 3 * 4095) { found = $0.id }
        let expected: UInt32 = 12285
        #expect(found == expected)
    }

    @Test func elementsEndWithTheTable() throws {
        let before = Element.alive.load(ordering: .relaxed)
        do {
            let table = makeTable()
            for id: UInt32 in 0..<100 { _ = try add(id, to: table) }
            #expect(throws: Errno.fileExists) { try add(5, to: table) }
            #expect(Element.alive.load(ordering: .relaxed) == before + 100)
        }
        #expect(Element.alive.load(ordering: .relaxed) == before)
    }

    /// Readers see whole elements, counts that only grow, and all elements below the count, while they are added.
    @Test func readersDuringCreation() throws {
        let table = makeTable()
        let isDone = Atomic<Bool>(false)
        let failures = Atomic<Int>(0)
        let shared = Shared(table: table)
        try withThreads(2) { thread in
            var last = 0
            var round = UInt32(thread)
            while !isDone.load(ordering: .acquiring) {
                let count = shared.table.count
                if count < last { failures.wrappingAdd(1, ordering: .relaxed) }
                last = count
                var seen = 0
                shared.table.forEach { element in
                    let isRight = element.index == seen && element.isComplete.load(ordering: .relaxed)
                    if !isRight { failures.wrappingAdd(1, ordering: .relaxed) }
                    seen += 1
                    return true
                }
                if seen < count { failures.wrappingAdd(1, ordering: .relaxed) }
                if count > 0 {
                    var found = 0
                    round = round &* 1_664_525 &+ 1_013_904_223
                    let id = UInt32(Int(round >> 8) % count)
                    shared.table.withElement(id: id) { if $0.id == id { found += 1 } }
                    shared.table.withElement(at: Int(id)) { if $0.id == id { found += 1 } }
                    if found != 2 { failures.wrappingAdd(1, ordering: .relaxed) }
                }
            }
        } meanwhile: {
            defer { isDone.store(true, ordering: .releasing) }
            for id: UInt32 in 0..<1024 { _ = try add(id, to: table) }
        }
        #expect(failures.load(ordering: .relaxed) == 0)
        #expect(table.count == 1024)
    }

    private struct Shared: @unchecked Sendable {
        let table: CopyAndPublishTable<Element>
    }
}

extension VCPUTable {
    /// `forEach` with a body that throws.
    func forEachThrowing(_ body: (Element) throws -> Void) throws {
        var failure: (any Error)?
        forEach { element in
            do { try body(element) } catch { failure = error }
            return failure == nil
        }
        if let failure { throw failure }
    }
}
