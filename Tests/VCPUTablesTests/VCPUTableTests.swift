import Glibc
import RCU
import SystemPackage
import Testing
import VCPUTableDesigns
import VCPUTables

/// What every design of a vCPU table has to do, for the table itself and for a vCPU's own reader.
@Suite(.serialized) struct VCPUTableTests {
    @Test(arguments: Design.allCases) func emptyTable(design: Design) throws {
        let table = try design.makeTable()
        for reader in [table, table.anyReader()] as [any VCPUTableReader<Element>] {
            #expect(reader.count == 0)
            #expect(reader.id(at: 0) == nil)
            #expect(reader.index(ofID: 0) == nil)
            #expect(reader.ids == [])
        }
    }

    @Test(arguments: Design.allCases) func lookups(design: Design) throws {
        let table = try design.makeTable()
        let early = table.anyReader()
        let ids: [UInt32] = [0, 7, 1, 16383, 4]
        let elements = try ids.map { try table.add($0) }
        for reader in [table, early, table.anyReader()] as [any VCPUTableReader<Element>] {
            #expect(reader.count == 5)
            #expect(reader.ids == ids)
            for (index, id) in ids.enumerated() {
                #expect(reader.id(at: index) == id)
                #expect(reader.index(ofID: id) == index)
                #expect(reader.index(of: elements[index]) == index)
            }
            for index in [5, 6, 4096, -1, Int.min, Int.max] { #expect(reader.id(at: index) == nil) }
            for id: UInt32 in [2, 3, 16384, .max] { #expect(reader.index(ofID: id) == nil) }
            #expect(reader.index(of: Element(id: 0, index: 0)) == nil)
        }
    }

    @Test(arguments: Design.allCases) func iterationStopsEarly(design: Design) throws {
        let table = try design.makeTable()
        for id: UInt32 in 0..<40 { _ = try table.add(id) }
        for reader in [table, table.anyReader()] as [any VCPUTableReader<Element>] {
            for limit in [1, 2, 9, 30] {
                var seen = 0
                reader.forEach { _ in
                    seen += 1
                    return seen < limit
                }
                #expect(seen == limit)
            }
        }
    }

    /// Elements created in the loop do not appear in it, and do in lookups made inside.
    @Test(arguments: Design.allCases) func iterationIsASnapshot(design: Design) throws {
        for isOwnReader in [false, true] {
            let table = try design.makeTable()
            let reader: any VCPUTableReader<Element> = isOwnReader ? table.anyReader() : table
            for id: UInt32 in 0..<3 { _ = try table.add(id) }
            var seen: [UInt32] = []
            reader.forEach { element in
                // Enough for every design to grow more than once.
                for id in 0..<100 where seen.isEmpty { _ = try? table.add(UInt32(1000 + id)) }
                seen.append(element.id)
                #expect(reader.count == 103)
                #expect(reader.index(ofID: 1099) == 102)
                #expect(reader.id(at: 102) == 1099)
                #expect(reader.ids.count == 103)
                return true
            }
            #expect(seen == [0, 1, 2])
            #expect(reader.ids.count == 103)
        }
    }

    @Test(arguments: Design.allCases) func refusals(design: Design) throws {
        let table = try design.makeTable(maximumCount: 2, maximumID: 10)
        _ = try table.add(9)
        #expect(throws: Errno.invalidArgument) { try table.add(10) }
        #expect(throws: Errno.invalidArgument) { try table.add(.max) }
        #expect(throws: Errno.fileExists) { try table.add(9) }
        #expect(throws: Errno.noMemory) {
            try table.append(id: 3) { _ throws(Errno) -> Element in throw .noMemory }
        }
        #expect(table.count == 1)
        #expect(table.ids == [9])
        _ = try table.add(0)
        #expect(throws: Errno.invalidArgument) { try table.add(4) }
        // A full table says so before it looks for the id.
        #expect(throws: Errno.invalidArgument) { try table.add(9) }
        #expect(table.ids == [9, 0])
    }

    @Test(arguments: Design.allCases) func fullTable(design: Design) throws {
        let table = try design.makeTable(maximumID: 4096 * 3)
        let reader = table.anyReader()
        for id: UInt32 in 0..<4096 { _ = try table.add(id * 3) }
        #expect(throws: Errno.invalidArgument) { try table.add(1) }
        for reader in [table, reader] as [any VCPUTableReader<Element>] {
            #expect(reader.count == 4096)
            #expect(reader.index(ofID: 12285) == 4095)
            #expect(reader.ids == (0..<4096).map { $0 * 3 })
            for index in 0..<4096 { #expect(reader.id(at: index) == UInt32(index * 3)) }
        }
    }

    @Test(arguments: Design.allCases) func anElementIsCompleteBeforeItCanBeFound(design: Design) throws {
        let table = try design.makeTable()
        for id: UInt32 in 0..<20 {
            _ = try table.append(id: id) { (index) throws(Errno) -> Element in
                #expect(table.count == Int(id))
                #expect(table.id(at: index) == nil)
                #expect(table.index(ofID: id) == nil)
                return Element(id: id, index: index)
            }
            #expect(table.index(ofID: id) == Int(id))
        }
    }

    // MARK: Unplugging

    @Test(arguments: Design.allCases) func parkedElementsKeepTheirSlot(design: Design) throws {
        let table = try design.makeTable()
        let early = table.anyReader()
        let elements = try (0..<12).map { try table.add($0) }
        try table.park(id: 3)
        try table.park(id: 11)
        for reader in [table, early, table.anyReader()] as [any VCPUTableReader<Element>] {
            #expect(reader.count == 12)
            #expect(reader.id(at: 3) == nil)
            #expect(reader.index(ofID: 3) == nil)
            #expect(reader.index(of: elements[3]) == nil)
            #expect(reader.index(of: elements[4]) == 4)
            #expect(reader.ids == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
        }
        #expect(throws: Errno.noSuchFileOrDirectory) { try table.park(id: 3) }
        #expect(throws: Errno.noSuchFileOrDirectory) { try table.park(id: 12) }
        #expect(throws: Errno.fileExists) { try table.add(3) }
        // It stays parked while the table grows, and comes back to its slot.
        for id: UInt32 in 100..<200 { _ = try table.add(id) }
        var prepared: [UInt32] = []
        let back = try table.unpark(id: 3) { prepared.append($0.id) }
        #expect(back === elements[3])
        #expect(prepared == [3])
        for reader in [table, early, table.anyReader()] as [any VCPUTableReader<Element>] {
            #expect(reader.id(at: 3) == 3)
            #expect(reader.id(at: 11) == nil)
            #expect(reader.ids.count == 111)
        }
    }

    @Test(arguments: Design.allCases) func comingBackMayFail(design: Design) throws {
        let table = try design.makeTable()
        _ = try table.add(5)
        #expect(throws: Errno.noSuchFileOrDirectory) { try table.unpark(id: 5) { _ in } }
        #expect(throws: Errno.noSuchFileOrDirectory) { try table.unpark(id: 6) { _ in } }
        try table.park(id: 5)
        #expect(throws: Errno.noMemory) { try table.unpark(id: 5) { _ throws(Errno) in throw .noMemory } }
        #expect(table.ids == [])
        _ = try table.unpark(id: 5) { _ in #expect(table.ids == []) }
        #expect(table.ids == [5])
    }

    // MARK: Memory

    @Test(arguments: Design.allCases) func elementsEndWithTheTable(design: Design) throws {
        let before = Element.alive.load(ordering: .relaxed)
        let memory = TableMemory()
        do {
            let table = try design.makeTable(memory: memory)
            let reader = table.anyReader()
            for id: UInt32 in 0..<100 { _ = try table.add(id) }
            try table.park(id: 7)
            #expect(throws: Errno.fileExists) { try table.add(5) }
            #expect(Element.alive.load(ordering: .relaxed) == before + 100)
            withExtendedLifetime(reader) {}
        }
        #expect(Element.alive.load(ordering: .relaxed) == before)
        ThreadRCU.domain.barrier()
        #expect(memory.liveCount == 0)
    }

    /// Every allocation fails in turn: the caller hears of it, and nothing is published or lost.
    @Test(arguments: Design.allCases) func failureOfEachAllocation(design: Design) throws {
        let count = 40
        var allocations = 0
        while true {
            let before = Element.alive.load(ordering: .relaxed)
            let memory = TableMemory()
            memory.remaining.store(allocations, ordering: .relaxed)
            var failures = 0
            do {
                let table = try design.makeTable(memory: memory)
                let reader = table.anyReader()
                for id in 0..<UInt32(count) {
                    do { _ = try table.add(id) } catch {
                        failures += 1
                        #expect(error == .noMemory)
                        #expect(table.ids == (0..<id).map { $0 })
                        #expect(reader.ids == (0..<id).map { $0 })
                        #expect(Element.alive.load(ordering: .relaxed) == before + Int(id))
                        // There is memory again.
                        memory.remaining.store(-1, ordering: .relaxed)
                        _ = try table.add(id)
                    }
                    #expect(reader.index(ofID: id) == Int(id))
                }
                #expect(reader.ids == (0..<UInt32(count)).map { $0 })
            } catch {
                // The table itself.
                failures += 1
                #expect(error == .noMemory)
            }
            #expect(Element.alive.load(ordering: .relaxed) == before)
            ThreadRCU.domain.barrier()
            #expect(memory.liveCount == 0)
            if failures == 0 { break }
            allocations += 1
        }
        // Otherwise the designs allocate elsewhere.
        #expect(design == .reserved ? allocations == 0 : allocations >= 4)
    }

    /// Failure of the vCPU's own making, at every size at which a design may grow.
    @Test(arguments: Design.allCases) func failureOfEachMaking(design: Design) throws {
        let before = Element.alive.load(ordering: .relaxed)
        let memory = TableMemory()
        do {
            let table = try design.makeTable(memory: memory)
            let reader = table.anyReader()
            for id: UInt32 in 0..<130 {
                #expect(throws: Errno.ioError) {
                    try table.append(id: id) { _ throws(Errno) -> Element in throw .ioError }
                }
                #expect(reader.count == Int(id))
                #expect(reader.index(ofID: id) == nil)
                let element = try table.add(id)
                #expect(element.index == Int(id))
            }
        }
        #expect(Element.alive.load(ordering: .relaxed) == before)
        ThreadRCU.domain.barrier()
        #expect(memory.liveCount == 0)
    }

    @Test func noAddressSpace() {
        #expect(throws: Errno.noMemory) { try ReservedTable<Element>(maximumCount: .max, maximumID: 1) }
        #expect(throws: Errno.noMemory) { try ReservedTable<Element>(maximumCount: .max / 8, maximumID: 1) }
    }

    /// Room for many vCPUs costs no memory before they come.
    @Test func reservedRoomIsNotMemory() throws {
        let memory = try residentPages()
        let tables = try (0..<64).map { _ in
            let table = try ReservedTable<Element>(maximumCount: 1 << 20, maximumID: 1 << 20)
            for id: UInt32 in 0..<8 { _ = try table.add(id) }
            return table
        }
        // All of it would be 64 × 2,048 pages; the bound leaves room for what other threads do.
        #expect(try residentPages() - memory < 4096)
        #expect(tables.allSatisfy { $0.ids.count == 8 })
    }

    private func residentPages() throws -> Int {
        let file = try #require(fopen("/proc/self/statm", "r"))
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        _ = try #require(fgets(&line, Int32(line.count), file))
        let fields = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            .split(separator: " ")
        return try #require(Int(fields[1]))
    }
}
