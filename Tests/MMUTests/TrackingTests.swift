import MMU
import Testing
import X86

/// Tables whose stores are caught.
@Suite struct TrackingTests {
    /// A machine whose upper tables are tracked.
    private func tracked() throws -> (TestMachine, TableBuilder, TestProcessor) {
        let machine = try TestMachine(trackingThreshold: 2)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        tables.map(0x40_0000, 51)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for _ in 0..<3 {
            cpu.loadCR3(tables.root)
            cpu.access(0x20_0000)
            cpu.access(0x40_0000)
        }
        #expect(cpu.walker.hasTrackingCandidates)
        cpu.track()
        return (machine, tables, cpu)
    }

    @Test func steadyUpperTablesAreTracked() throws {
        var (machine, tables, cpu) = try tracked()
        #expect(machine.mmu.statistics.trackedFrameCount == 3)
        for level in 2...4 { #expect(machine.mmu.isTracked(tables.entry(0x20_0000, level: level) >> 12)) }
        #expect(!machine.mmu.isTracked(tables.entry(0x20_0000) >> 12))
        // A flush asks only for a comparison of the last level.
        let before = machine.mmu.statistics.syncCount
        cpu.loadCR3(tables.root)
        cpu.access(0x20_0000)
        #expect(machine.mmu.statistics.syncCount == before + 1)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aCaughtStoreDropsWhatItChanged() throws {
        var (machine, tables, cpu) = try tracked()
        let entry = tables.entry(0x20_0000, level: 2)
        machine.store(0, entry)
        #expect(machine.mmu.statistics.caughtStoreCount == 1)
        #expect(!cpu.isHit(0x20_0000) && cpu.isHit(0x40_0000))
        tables.map(0x20_0000, 60)
        // The guest walk has a cache of its own.
        cpu.walk.flush()
        #expect(cpu.access(0x20_0000) == .memory(60))
        // Setting the same value again, or an accessed bit, changes nothing.
        let count = machine.mmu.statistics.linkCount
        machine.store(machine.load(entry) | Bit.accessed, entry)
        #expect(machine.mmu.statistics.linkCount == count)
        #expect(cpu.isHit(0x20_0000))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aTableIsNotWritableThroughItsOwnMapping() throws {
        var (_, tables, cpu) = try tracked()
        let frame = tables.entry(0x20_0000, level: 2) >> 12
        tables.map(0x40_1000, frame, Bit.table | Bit.status)
        cpu.access(0x40_1000, .supervisorWrite)
        #expect(cpu.isHit(0x40_1000) && !cpu.isHit(0x40_1000, .supervisorWrite))
    }

    @Test func aLargePageBecomesDirtyInATrackedTable() throws {
        var (machine, tables, cpu) = try tracked()
        tables.map(0x60_0000, 1024, level: 2)
        machine.setGuarded(1024 + 3, true)
        cpu.access(0x60_1000)
        #expect(cpu.isHit(0x60_1000) && !cpu.isHit(0x60_1000, .supervisorWrite))
        cpu.access(0x60_1000, .supervisorWrite)
        #expect(cpu.isHit(0x60_1000, .supervisorWrite))
        #expect(machine.mmu.isTracked(tables.entry(0x60_0000, level: 2) >> 12))
        // The guest clears the bit.
        let entry = tables.entry(0x60_0000, level: 2)
        machine.store(machine.load(entry) & ~Bit.dirty, entry)
        #expect(!cpu.isHit(0x60_1000, .supervisorWrite))
        cpu.access(0x60_1000, .supervisorWrite)
        #expect(machine.load(entry) & Bit.dirty != 0)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aMappingMadeBeforeLosesItsWritePermission() throws {
        let machine = try TestMachine(trackingThreshold: 1)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        let frame = tables.entry(0x20_0000, level: 2) >> 12
        tables.map(0x20_1000, frame)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_1000, .supervisorWrite)
        #expect(cpu.isHit(0x20_1000, .supervisorWrite))
        cpu.loadCR3(tables.root)
        cpu.access(0x20_0000)
        cpu.track()
        #expect(machine.mmu.isTracked(frame))
        #expect(!cpu.isHit(0x20_1000, .supervisorWrite))
    }

    @Test func aFrameThatIsPlainDataAgainIsNotCaughtForever() throws {
        var (machine, tables, cpu) = try tracked()
        let directory = tables.entry(0x20_0000, level: 2)
        let frame = directory >> 12
        // The guest unhooks the table and fills the frame with something else.
        machine.store(0, tables.entry(0x20_0000, level: 3))
        for i in 0..<100 { machine.store(UInt64(i) << 20, frame << 12 + UInt64(i) * 8) }
        #expect(!machine.mmu.isTracked(frame))
        #expect(machine.mmu.statistics.caughtStoreCount < 50)
        cpu.walk.flush()
        #expect(cpu.access(0x20_0000) == .fault)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aTableInUseThatIsFloodedIsBuiltAgain() throws {
        var (machine, tables, cpu) = try tracked()
        let directory = tables.entry(0x20_0000, level: 2) & ~0xFFF
        for i in 100..<200 { machine.store(0x7F_F000 | Bit.table, directory + UInt64(i) * 8) }
        #expect(machine.mmu.statistics.floodCount == 1)
        #expect(!machine.mmu.isTracked(directory >> 12))
        #expect(cpu.access(0x20_0000) == .memory(50))
        // Not caught any more: the next flush finds the change.
        tables.map(0x20_0000, 70)
        machine.store(0, tables.entry(0x40_0000, level: 2))
        cpu.loadCR3(tables.root)
        #expect(cpu.access(0x20_0000) == .memory(70))
        #expect(cpu.access(0x40_0000) == .fault)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aTrackingThatWasOvertakenIsNotFinished() throws {
        let machine = try TestMachine(trackingThreshold: 1)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_0000)
        cpu.loadCR3(tables.root)
        cpu.access(0x20_0000)
        let tickets = machine.mmu.beginTracking(cpu.walker.takeTrackingCandidates())
        #expect(tickets.count == 3)
        machine.mmu.zapAll {}
        machine.mmu.finishTracking(tickets)
        #expect(machine.mmu.statistics.trackedFrameCount == 0)
        #expect(machine.mmu.brokenInvariant() == nil)
    }
}
