import GuestMemory
import Host
import MMU
import Testing
import X86

/// Large pages, devices, slots that change, and the limits.
@Suite struct ZapTests {
    @Test func aLargePageIsOneEntryWhereItCanBe() throws {
        let machine = try TestMachine(frameCount: 2048)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 512, level: 2)
        // Reaches beyond the slot.
        tables.map(0x4000_0000, 0, level: 3)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_0000, .supervisorWrite)
        #expect(cpu.isHit(0x3F_F000, .supervisorWrite))
        #expect(machine.mmu.statistics.pageCounts == [0, 1, 1, 1])
        #expect(cpu.access(0x4000_1000) == .memory(1))
        #expect(cpu.access(0x4000_0000 + 0x80_0000) == .device(2048))
        #expect(machine.mmu.statistics.pageCounts == [1, 2, 1, 1])
        guard case .memory(let page) = cpu.lookup(0x4000_1000, .supervisorRead) else { return #expect(Bool(false)) }
        #expect(page.pageShift == 30)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aGuardedFrameSplitsItsLargePage() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 512, level: 2)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_0000, .supervisorWrite)
        machine.setGuarded(520, true)
        #expect(!cpu.isHit(0x20_0000, .supervisorWrite))
        cpu.access(0x20_0000, .supervisorWrite)
        cpu.access(0x20_8000, .supervisorWrite)
        #expect(cpu.isHit(0x20_0000, .supervisorWrite))
        #expect(cpu.isHit(0x20_8000) && !cpu.isHit(0x20_8000, .supervisorWrite))
        machine.setGuarded(520, false)
        cpu.access(0x20_8000, .supervisorWrite)
        #expect(cpu.isHit(0x20_8000, .supervisorWrite))
        // All parts belong to one page of the guest.
        machine.store(0, tables.entry(0x20_0000, level: 2))
        cpu.invalidate(0x20_3000)
        #expect(cpu.access(0x20_0000) == .fault && cpu.access(0x20_8000) == .fault)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func writesAreLoggedAgainAfterTheLogWasRead() throws {
        let machine = try TestMachine()
        let extra = try MemoryMapping.anonymous(byteCount: 16 << 12)
        let host = UInt(bitPattern: extra.baseAddress)
        try machine.set(slot: 1, frame: 0x8000, pages: 16, host: host, flags: 1)
        var tables = TableBuilder(machine)
        tables.map(0x1000, 0x8003)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        func log() throws -> UInt64 {
            try machine.memory.getDirtyLog(slot: 1) { machine.mmu.revokeWrites(frames: TestMachine.frames(of: $0)) }[0]
        }
        func write() -> Bool {
            let isHit = cpu.isHit(0x1000, .supervisorWrite)
            _ = cpu.fill(0x1000, .supervisorWrite)
            return isHit
        }
        _ = cpu.fill(0x1000, .supervisorRead)
        #expect(try log() == 0)
        #expect(!write() && write())
        #expect(try log() == 8)
        #expect(!write())
        #expect(try log() == 8)
        // Without a log nothing has to be marked.
        try machine.set(slot: 1, frame: 0x8000, pages: 16, host: host, flags: 0)
        #expect(!write() && write())
        try machine.set(slot: 1, frame: 0x8000, pages: 16, host: host, flags: 1)
        #expect(!write())
        #expect(try log() == 8)
    }

    @Test func aReadOnlySlotIsNeverWrittenThrough() throws {
        let machine = try TestMachine()
        let extra = try MemoryMapping.anonymous(byteCount: 16 << 12)
        try machine.set(slot: 1, frame: 0x8000, pages: 16, host: UInt(bitPattern: extra.baseAddress), flags: 2)
        var tables = TableBuilder(machine)
        tables.map(0x1000, 0x8003)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        _ = cpu.fill(0x1000, .supervisorWrite)
        #expect(cpu.isHit(0x1000) && !cpu.isHit(0x1000, .supervisorWrite))
    }

    @Test func aSlotThatGoesTakesItsTranslationsAlong() throws {
        let machine = try TestMachine()
        let extra = try MemoryMapping.anonymous(byteCount: 512 << 12)
        let host = UInt(bitPattern: extra.baseAddress)
        try machine.set(slot: 1, frame: 0x8000, pages: 512, host: host)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 0x8000, level: 2)
        tables.map(0x40_0000, 0x8003)
        tables.map(0x40_1000, 7)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for page: UInt64 in [0x20_0000, 0x40_0000, 0x40_1000] { _ = cpu.fill(page, .supervisorRead) }
        #expect(cpu.isHit(0x20_0000) && cpu.isHit(0x40_0000))
        try machine.set(slot: 1, frame: 0x9000, pages: 512, host: host)
        #expect(!cpu.isHit(0x20_0000) && !cpu.isHit(0x40_0000) && cpu.isHit(0x40_1000))
        #expect(cpu.access(0x40_0000) == .device(0x8003))
        #expect(cpu.isHit(0x40_0000))
        // Memory appears where a device was thought to be.
        try machine.set(slot: 1, frame: 0x8000, pages: 512, host: host)
        #expect(!cpu.isHit(0x40_0000))
        guard case .translated = cpu.fill(0x40_0000, .supervisorRead) else { return #expect(Bool(false)) }
        #expect(cpu.isHit(0x40_0000))
        machine.mmu.zap(hostRange: host + 0x3000..<host + 0x4000) {}
        #expect(!cpu.isHit(0x40_0000) && cpu.isHit(0x40_1000))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func tablesInASlotThatGoesAreForgotten() throws {
        let machine = try TestMachine()
        let extra = try MemoryMapping.anonymous(byteCount: 16 << 12)
        try machine.set(slot: 1, frame: 0x8000, pages: 16, host: UInt(bitPattern: extra.baseAddress))
        var tables = TableBuilder(machine)
        // The last-level table lies in the other slot.
        machine.store(0x8002 << 12 | Bit.table, tables.entry(0x20_0000, level: 2))
        (extra.baseAddress + 0x2000).storeBytes(of: 77 << 12 | Bit.table, as: UInt64.self)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        #expect(cpu.access(0x20_0000) == .memory(77))
        #expect(cpu.isHit(0x20_0000))
        try machine.set(slot: 1, frame: 0, pages: 0, host: 0)
        cpu.walk.flush()
        #expect(cpu.access(0x20_0000) == .fault)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func zapAllTakesEverything() throws {
        let machine = try TestMachine(trackingThreshold: 1)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_0000)
        cpu.loadCR3(tables.root)
        cpu.access(0x20_0000)
        cpu.track()
        var hasFlushed = false
        machine.mmu.zapAll { hasFlushed = true }
        #expect(hasFlushed && !cpu.isHit(0x20_0000))
        #expect(machine.mmu.statistics.trackedFrameCount == 0)
        cpu.access(0x20_0000)
        #expect(cpu.isHit(0x20_0000))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    // MARK: Devices

    @Test(arguments: [(1 << 13) - 8, (1 << 26) - 8, (1 << 63) - 8] as [UInt64])
    func deviceEntriesDoNotOutliveAGenerationThatComesAgain(_ initialGeneration: UInt64) throws {
        let machine = try TestMachine(initialGeneration: initialGeneration)
        let extra = try MemoryMapping.anonymous(byteCount: 1 << 12)
        let host = UInt(bitPattern: extra.baseAddress)
        var tables = TableBuilder(machine)
        tables.map(0x1000, 0xFEE00)
        tables.map(0x2000, 0xFEC00)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        func isKnown(_ page: UInt64) -> Bool {
            let isHit = cpu.isHit(page)
            #expect(cpu.access(page) == .device(page == 0x1000 ? 0xFEE00 : 0xFEC00))
            return isHit
        }
        _ = isKnown(0x1000)
        // Until the stored part of the generation is the same again.
        let first = machine.memory.generation().rawValue & 0x1FFF
        var changes = 0
        repeat {
            try machine.set(slot: 1, frame: 0x8000, pages: changes % 2 == 0 ? 1 : 0, host: changes % 2 == 0 ? host : 0)
            changes += 1
            #expect(!cpu.isHit(0x1000))
            // Another entry is made now and then, which is what moves the era on.
            if changes % 5 == 0 { #expect(!isKnown(0x2000) && isKnown(0x2000)) }
        } while machine.memory.generation().rawValue & 0x1FFF != first && changes < 10000
        #expect(changes > 100 && changes < 10000)
        #expect(!isKnown(0x1000) && isKnown(0x1000))
        #expect(machine.mmu.statistics.deviceDropCount >= 1)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func aDeviceIsWrittenOnlyOnceItsPageIsDirty() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x1000, 0xFEE00)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x1000)
        #expect(cpu.isHit(0x1000) && !cpu.isHit(0x1000, .supervisorWrite))
        #expect(cpu.access(0x1000, .supervisorWrite) == .device(0xFEE00))
        #expect(machine.load(tables.entry(0x1000)) & Bit.dirty != 0)
        #expect(cpu.isHit(0x1000, .supervisorWrite) && cpu.isHit(0x1000, .userRead))
        #expect(cpu.walker.mayBeDevice(0x1000))
    }

    // MARK: Limits

    @Test func pagesAreRecycledAtTheLimit() throws {
        let machine = try TestMachine(pageLimit: 32)
        var tables = TableBuilder(machine)
        for i in 0..<200 as Range<UInt64> { tables.map(i << 21, 1000 + i) }
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for round in 0..<3 {
            for i in 0..<200 as Range<UInt64> {
                #expect(cpu.access(i << 21) == .memory(1000 + i))
                if round == 0 && i < 20 { #expect(cpu.isHit(i << 21)) }
                // What waits to be freed counts as pages.
                if i % 16 == 0 { cpu.reader.whileOffline { machine.domain.barrier() } }
            }
        }
        let statistics = machine.mmu.statistics
        #expect(statistics.pageCounts.reduce(0, +) <= 32)
        #expect(statistics.recycledPageCount > 100)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func garbageStaysBoundedWhileAReaderStandsStill() throws {
        let machine = try TestMachine(pageLimit: 64)
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        // This processor never passes a quiescent state: no grace period ends.
        for _ in 0..<1000 {
            cpu.access(0x20_0000)
            machine.mmu.zap(frames: 0..<64) {}
        }
        #expect(cpu.access(0x20_0000) == .memory(50))
        let garbage = machine.mmu.statistics.garbagePageCount
        #expect(garbage >= 64 && garbage < 64 + 8)
        cpu.reader.whileOffline { machine.domain.barrier() }
        #expect(machine.mmu.statistics.garbagePageCount == 0)
        cpu.access(0x20_0000)
        #expect(cpu.isHit(0x20_0000))
    }

    // MARK: Inspection

    @Test func theTreeIsDescribedInOrder() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 50)
        tables.map(0x20_1000, 0xFEE00)
        tables.map(0x40_0000, 512, 3 | Bit.global, level: 2)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for page: UInt64 in [0x20_0000, 0x20_1000, 0x40_0000] { cpu.access(page) }
        let pages = machine.mmu.describePages()
        #expect(pages.map(\.role.level) == [4, 3, 2, 1])
        #expect(pages.map(\.isRoot) == [true, false, false, false])
        #expect(pages[0].frame == 1)
        #expect(pages[0].entries.map(\.target) == [.page(frame: pages[1].frame, role: pages[1].role)])
        #expect(
            pages[2].entries.map(\.target) == [.page(frame: pages[3].frame, role: pages[3].role), .memory(frame: 512)])
        #expect(pages[2].entries.map(\.isGlobal) == [false, true])
        #expect(pages[3].entries.map(\.target) == [.memory(frame: 50), .device(frame: 0xFEE00)])
        #expect(machine.mmu.statistics.memoryEntryCount == 2 && machine.mmu.statistics.deviceEntryCount == 1)
    }
}
