import MMU
import Testing
import X86

/// What may be stale, and until when.
@Suite struct FlushTests {
    private static let withContexts = CR4.processContextIdentifiers

    @Test func aChangedEntryIsFollowedAfterItsFlush() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        let pages: [UInt64] = [0x40_0000, 0x40_1000]
        for page in pages { tables.map(page, 50 + page >> 12 & 1) }
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for page in pages { cpu.access(page) }
        tables.map(pages[0], 60, Bit.table | Bit.accessed)
        tables.map(pages[1], 61, Bit.table | Bit.accessed)
        // Not flushed yet: the old ones still serve.
        #expect(cpu.access(pages[0]) == .memory(50))
        cpu.invalidate(pages[0])
        #expect(cpu.access(pages[0]) == .memory(60))
        cpu.loadCR3(tables.root)
        #expect(cpu.access(pages[1]) == .memory(61))
        machine.store(0, tables.entry(pages[0]))
        cpu.invalidate(pages[0])
        #expect(cpu.access(pages[0]) == .fault)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aFlushOfOneProcessorLeavesTheOthersTheirs() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x1000, 50)
        let cpus = (0..<2).map { _ in TestProcessor(machine, .long(root: tables.root)) }
        for cpu in cpus { cpu.access(0x1000) }
        tables.map(0x1000, 60)
        cpus[0].loadCR3(tables.root)
        #expect(cpus[0].access(0x1000) == .memory(60))
        cpus[1].invalidate(0x1000)
        #expect(cpus[1].access(0x1000) == .memory(60))
    }

    @Test func tablesThatMoveAreFollowed() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        // A table moves from one directory entry to another, and a third page lies under the first.
        tables.map(0x20_0000, 50)
        tables.map(0x40_0000, 70)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_0000)
        cpu.access(0x40_0000)
        let moved = machine.load(tables.entry(0x20_0000, level: 2))
        machine.store(moved, tables.entry(0x40_0000, level: 2))
        machine.store(0, tables.entry(0x20_0000, level: 2))
        // A flush of any page drops what is cached of upper levels.
        cpu.invalidate(0x9999_0000)
        #expect(cpu.access(0x20_0000) == .fault)
        #expect(cpu.access(0x40_0000) == .memory(50))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aPageFlushReachesATableThatIsLinkedLater() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        // A table under two directory entries; its page is made through the second.
        tables.map(0x20_0000, 50)
        tables.map(0x20_1000, 51)
        let table = machine.load(tables.entry(0x20_0000, level: 2))
        machine.store(table, tables.entry(0x40_0000, level: 2))
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x40_0000)
        tables.map(0x20_0000, 60, Bit.table | Bit.accessed)
        // Nothing is linked at the flushed address yet.
        cpu.invalidate(0x20_0000)
        cpu.access(0x20_1000)
        #expect(cpu.access(0x20_0000) == .memory(60))
    }

    @Test func globalPagesOutliveALoadOfCR3AndNoPageFlush() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        let page: UInt64 = 0xFFFF_8000_0000_0000
        tables.map(page, 50, 3 | Bit.global)
        tables.map(page + 0x1000, 51, 3)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(page)
        cpu.access(page + 0x1000)
        tables.map(page, 60, 3 | Bit.global | Bit.accessed)
        tables.map(page + 0x1000, 61, 3 | Bit.accessed)
        cpu.loadCR3(tables.root)
        #expect(cpu.access(page + 0x1000) == .memory(61))
        cpu.invalidate(page)
        #expect(cpu.access(page) == .memory(60))
        tables.map(page, 70, 3 | Bit.global)
        cpu.walk.flush()
        cpu.walker.flushNonGlobal()
        cpu.walker.flushAll()
        #expect(cpu.access(page) == .memory(70))
    }

    @Test func aPageFlushReachesGlobalPagesOfOtherContexts() throws {
        let machine = try TestMachine()
        // Two contexts whose tables have nothing in common map the same global page.
        var first = TableBuilder(machine, firstFrame: 1)
        var second = TableBuilder(machine, firstFrame: 20)
        let page: UInt64 = 0xFFFF_8000_0000_0000
        first.map(page, 50, 3 | Bit.global)
        second.map(page, 50, 3 | Bit.global)
        let cpu = TestProcessor(machine, .long(root: first.root | 1, cr4: Self.withContexts))
        cpu.access(page)
        cpu.loadCR3(second.root | 2)
        cpu.access(page)
        first.map(page, 60, 3 | Bit.global | Bit.accessed)
        second.map(page, 60, 3 | Bit.global | Bit.accessed)
        cpu.invalidate(page)
        #expect(cpu.access(page) == .memory(60))
        cpu.loadCR3(first.root | 1, preserving: true)
        #expect(cpu.access(page) == .memory(60))
    }

    @Test func aPageFlushReachesGlobalLargePagesInPartsOfOtherContexts() throws {
        let machine = try TestMachine()
        machine.setGuarded(1024 + 3, true)
        var first = TableBuilder(machine, firstFrame: 1)
        var second = TableBuilder(machine, firstFrame: 20)
        let page: UInt64 = 0xFFFF_8000_0000_0000
        first.map(page, 1024, 3 | Bit.global, level: 2)
        second.map(page, 1024, 3 | Bit.global, level: 2)
        let cpu = TestProcessor(machine, .long(root: first.root | 1, cr4: Self.withContexts))
        cpu.access(page)
        cpu.loadCR3(second.root | 2)
        cpu.access(page)
        #expect(machine.mmu.statistics.directPageCount == 1)
        first.map(page, 2048, 3 | Bit.global | Bit.accessed, level: 2)
        second.map(page, 2048, 3 | Bit.global | Bit.accessed, level: 2)
        cpu.invalidate(page)
        #expect(cpu.access(page) == .memory(2048))
        cpu.loadCR3(first.root | 1, preserving: true)
        #expect(cpu.access(page) == .memory(2048))
    }

    @Test func contextsAreFlushedOneByOne() throws {
        let machine = try TestMachine()
        var first = TableBuilder(machine, firstFrame: 1)
        var second = TableBuilder(machine, firstFrame: 20)
        first.map(0x1000, 50)
        second.map(0x1000, 51)
        let cpu = TestProcessor(machine, .long(root: first.root | 1, cr4: Self.withContexts))
        cpu.access(0x1000)
        cpu.loadCR3(second.root | 2)
        cpu.access(0x1000)
        first.map(0x1000, 60, Bit.table | Bit.accessed)
        second.map(0x1000, 61, Bit.table | Bit.accessed)
        // The first context is flushed from within the second, which keeps its own.
        cpu.walk.flush()
        cpu.walker.flush(pcid: 1)
        #expect(cpu.access(0x1000) == .memory(51))
        cpu.loadCR3(first.root | 1, preserving: true)
        #expect(cpu.access(0x1000) == .memory(60))
        cpu.loadCR3(second.root | 2, preserving: true)
        #expect(cpu.access(0x1000) == .memory(51))
        cpu.walk.flush()
        cpu.walker.flush(page: 0x1000, pcid: 2, cpu.context)
        #expect(cpu.access(0x1000) == .memory(61))
    }

    @Test func newTablesOfAContextAreNotTakenForTheOldOnes() throws {
        let machine = try TestMachine()
        var first = TableBuilder(machine, firstFrame: 1)
        var second = TableBuilder(machine, firstFrame: 20)
        first.map(0x1000, 50)
        second.map(0x1000, 51)
        let other = TestProcessor(machine, .long(root: second.root))
        other.access(0x1000)
        let cpu = TestProcessor(machine, .long(root: first.root | 1, cr4: Self.withContexts))
        cpu.access(0x1000)
        second.map(0x1000, 61, Bit.table | Bit.accessed)
        cpu.invalidate(0x1000)
        // The same context with other tables, whose page another processor has made.
        cpu.loadCR3(second.root | 1, preserving: true)
        #expect(cpu.access(0x1000) == .memory(61))
    }
}
