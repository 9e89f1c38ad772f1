import GuestMemory
import MMU
import TestSupport
import Testing
import X86

@Suite struct TranslationTests {
    @Test func aPageIsFoundOnceItWasWalked() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x7F12_3456_7000, 99)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        #expect(!cpu.isHit(0x7F12_3456_7000))
        #expect(cpu.access(0x7F12_3456_7ABC) == .memory(99))
        #expect(cpu.isHit(0x7F12_3456_7ABC))
        #expect(cpu.access(0x7F12_3456_7ABC) == .memory(99))
        #expect(cpu.access(0x7F12_3456_8000) == .fault)
        #expect(machine.mmu.statistics.pageCounts == [1, 1, 1, 1])
        let statistics = cpu.walker.statistics
        #expect([statistics.memoryHitCount, statistics.deviceHitCount, statistics.missCount] == [2, 0, 3])
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func everyFormatOfTablesIsUnderstood() throws {
        let machine = try TestMachine(frameCount: 8192)
        // 32-bit paging: a 4 KiB page in each half of a table, and a 4 MiB page.
        machine.store32(0x2000 | 7, 0x1000 + 3 * 4)
        machine.store32(0x55 << 12 | 7, 0x2000 + 7 * 4)
        machine.store32(0x66 << 12 | 7, 0x2000 + 700 * 4)
        machine.store32(0x40_0000 | 0x87, 0x1000 + 513 * 4)
        var cpu = TestProcessor(
            machine, PagingContext(cr0: CR0.paging, cr3: 0x1000, cr4: CR4.pageSizeExtension, efer: 0))
        for _ in 0..<2 {
            #expect(cpu.access(3 << 22 | 7 << 12) == .memory(0x55))
            #expect(cpu.access(3 << 22 | 700 << 12) == .memory(0x66))
            #expect(cpu.access(513 << 22 | 0x5000) == .memory(0x405))
            #expect(cpu.access(513 << 22 | 0x20_5000) == .memory(0x605))
        }
        #expect(cpu.isHit(3 << 22 | 700 << 12) && cpu.isHit(513 << 22 | 0x20_5000))
        // The same table without 4 MiB pages: bit 7 means nothing.
        machine.store32(0x77 << 12 | 7, 0x40_0000 + 5 * 4)
        cpu = TestProcessor(machine, PagingContext(cr0: CR0.paging, cr3: 0x1000, cr4: 0, efer: 0))
        #expect(cpu.access(513 << 22 | 0x5000) == .memory(0x77))
        #expect(cpu.access(513 << 22 | 0x5000) == .memory(0x77))

        // PAE, with the pointer table in the middle of a page.
        machine.store(0x5001, 0x4060 + 3 * 8)
        machine.store(0x6007, 0x5000 + 9 * 8)
        machine.store(0x88007, 0x6000 + 11 * 8)
        machine.store(0x60_0087, 0x5000 + 10 * 8)
        cpu = TestProcessor(
            machine, PagingContext(cr0: CR0.paging, cr3: 0x4060, cr4: CR4.physicalAddressExtension, efer: 0))
        for _ in 0..<2 {
            #expect(cpu.access(3 << 30 | 9 << 21 | 11 << 12) == .memory(0x88))
            #expect(cpu.access(3 << 30 | 10 << 21 | 12 << 12) == .memory(0x60C))
            #expect(cpu.access(2 << 30) == .fault)
        }
        #expect(cpu.isHit(3 << 30 | 10 << 21))

        // No paging.
        cpu = TestProcessor(machine, PagingContext(cr0: 0, cr3: 0x1000, cr4: 0, efer: 0))
        #expect(cpu.access(0x123_4567, .supervisorWrite) == .memory(0x1234))
        #expect(cpu.isHit(0x123_4567, .supervisorWrite) && cpu.isHit(0x12F_4567))
        #expect(cpu.access(0xFEE0_0000) == .device(0xFEE00))
        #expect(cpu.isHit(0xFEE0_0000))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func whatIsFoundIsWhatTheGuestsTablesAllow() throws {
        var random = SeededGenerator(seed: runSeed("shadow rights"))
        let machine = try TestMachine(frameCount: 4096, pageLimit: 64)
        var hits = 0
        for _ in 0..<300 {
            // Two levels with any rights; all four of a context's rules.
            var tables = TableBuilder(machine)
            let linear: UInt64 = 0x1234_5000 + random.next() % 4 << 30
            let isLarge = random.oneIn(3)
            let bits = random.next() & (Bit.writable | Bit.user | Bit.status | Bit.noExecute | Bit.global)
            tables.map(linear & ~0x1F_FFFF, 512, 7, level: 2)
            if isLarge {
                tables.map(linear, 512 * (random.next() % 8), bits, level: 2)
            } else {
                machine.store(0, tables.entry(linear, level: 2))
                tables.map(linear, random.next() % 4096, bits)
            }
            for level in [3, 4] {
                let address = tables.entry(linear, level: level)
                let rights = random.next() & (Bit.writable | Bit.user | Bit.noExecute)
                machine.store(machine.load(address) & ~(Bit.table | Bit.noExecute) | Bit.present | rights, address)
            }
            let context = PagingContext.long(
                root: tables.root, cr0: random.next() & CR0.writeProtect,
                cr4: random.next() & (CR4.supervisorAccessPrevention | CR4.supervisorExecutionPrevention),
                noExecute: !random.oneIn(4))
            // What waits to be freed counts as pages.
            machine.domain.barrier()
            let cpu = TestProcessor(machine, context)
            let oracle = GuestWalk(memory: machine.memory)
            for _ in 0..<24 {
                let access = PageAccess.all.randomElement(using: &random)!
                let found = cpu.lookup(linear, access)
                let before = machine.load(tables.entry(linear, level: isLarge ? 2 : 1))
                let expected = machine.memory.withReadSection { oracle.translate(linear, access, context) }
                switch (found, expected) {
                case (.memory(let page), .translated(let translation)):
                    #expect(machine.frame(page.host) == translation.physical >> 12)
                    #expect(page.isGlobal == translation.isGlobal && page.pageShift == translation.pageShift)
                    // A hit means that no bit had to be set.
                    #expect(before == machine.load(tables.entry(linear, level: isLarge ? 2 : 1)))
                    hits += 1
                case (.none, .translated):
                    _ = cpu.fill(linear, access)
                    #expect(cpu.isHit(linear, access))
                case (.none, .fault): break
                // Tables of former rounds are read as others: they may map anything.
                case (.device(let physical), .translated(let translation)): #expect(physical == translation.physical)
                default: Issue.record("\(access) under \(context) finds \(found), not \(expected)")
                }
            }
        }
        #expect(hits > 1000)
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    @Test func accessedAndDirtyBitsAreSetAgainAfterTheyWereCleared() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        let page: UInt64 = 0x40_0000
        tables.map(page, 50)
        let entry = tables.entry(page)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(page)
        #expect(machine.load(entry) & Bit.status == Bit.accessed)
        // A page that was read only must not be written unnoticed.
        #expect(!cpu.isHit(page, .supervisorWrite))
        cpu.access(page, .supervisorWrite)
        #expect(machine.load(entry) & Bit.status == Bit.status)
        #expect(cpu.isHit(page, .supervisorWrite))

        machine.store(machine.load(entry) & ~Bit.dirty, entry)
        cpu.invalidate(page)
        cpu.access(page)
        #expect(cpu.isHit(page) && !cpu.isHit(page, .supervisorWrite))
        cpu.access(page, .supervisorWrite)
        #expect(machine.load(entry) & Bit.dirty != 0)

        machine.store(machine.load(entry) & ~Bit.status, entry)
        cpu.loadCR3(tables.root)
        cpu.access(page)
        #expect(machine.load(entry) & Bit.status == Bit.accessed)
        #expect(!cpu.isHit(page, .supervisorWrite))

        // Upper levels.
        let directory = tables.entry(page, level: 2)
        machine.store(machine.load(directory) & ~Bit.accessed, directory)
        cpu.invalidate(page)
        #expect(!cpu.isHit(page))
        cpu.access(page)
        #expect(machine.load(directory) & Bit.accessed != 0)
    }

    @Test func aLargePagesDirtyBitIsSetBeforeItsPartsAreWritten() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 1024, level: 2)
        // One guarded frame: the page is mapped in parts.
        machine.setGuarded(1024 + 3, true)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        cpu.access(0x20_1000)
        cpu.access(0x20_2000)
        #expect(!cpu.isHit(0x20_1000, .supervisorWrite))
        cpu.access(0x20_1000, .supervisorWrite)
        #expect(machine.load(tables.entry(0x20_0000, level: 2)) & Bit.dirty != 0)
        #expect(cpu.isHit(0x20_1000, .supervisorWrite))
        cpu.access(0x20_3000, .supervisorWrite)
        #expect(cpu.isHit(0x20_3000) && !cpu.isHit(0x20_3000, .supervisorWrite))
        #expect(machine.mmu.statistics.directPageCount == 1)
        #expect(machine.mmu.brokenInvariant() == nil)
    }
}
