import GuestMemory
import Host
import MMU
import Testing
import X86

/// Two address spaces of slots: system management mode sees the second.
@Suite struct AddressSpaceTests {
    private let managed = { (context: PagingContext) -> PagingContext in
        var context = context
        context.isSystemManagement = true
        return context
    }

    private func host(_ cpu: TestProcessor, _ linear: UInt64, _ access: PageAccess = .supervisorRead)
        -> UnsafeMutableRawPointer?
    {
        guard case .memory(let page) = cpu.lookup(linear, access) else { return nil }
        return page.host
    }

    /// The same tables by address, with other contents and other memory behind them.
    @Test func spacesAreToldApart() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x1000, 100)
        tables.map(0x2000, 8000)
        let second = try MemoryMapping.anonymous(byteCount: 4096 << 12)
        second.baseAddress.copyMemory(from: machine.ram.baseAddress, byteCount: 4096 << 12)
        let entry = second.baseAddress + Int(tables.entry(0x1000))
        entry.storeBytes(of: entry.load(as: UInt64.self) + 1 << 12, as: UInt64.self)
        try machine.set(slot: 1 << 16, frame: 0, pages: 4096, host: UInt(bitPattern: second.baseAddress))
        let cpu = TestProcessor(machine, .long(root: tables.root))
        let other = TestProcessor(machine, managed(.long(root: tables.root)))
        for _ in 0..<2 {
            _ = cpu.fill(0x1000, .supervisorRead)
            _ = other.fill(0x1000, .supervisorRead)
            #expect(host(cpu, 0x1000) == machine.ram.baseAddress + 100 << 12)
            #expect(host(other, 0x1000) == second.baseAddress + 101 << 12)
        }
        // Devices of one space outlive changes of the other's slots.
        _ = cpu.fill(0x2000, .supervisorRead)
        _ = other.fill(0x2000, .supervisorRead)
        #expect(cpu.lookup(0x2000, .supervisorRead) == .device(8000 << 12))
        #expect(other.lookup(0x2000, .supervisorRead) == .device(8000 << 12))
        try machine.set(slot: 1 << 16 | 1, frame: 8000, pages: 1, host: UInt(bitPattern: second.baseAddress))
        #expect(cpu.isHit(0x2000) && !other.isHit(0x2000))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    /// A processor that goes from one space to the other, with the same CR3, finds nothing of the first.
    @Test func oneProcessorInBoth() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x1000, 100)
        let second = try MemoryMapping.anonymous(byteCount: 4096 << 12)
        second.baseAddress.copyMemory(from: machine.ram.baseAddress, byteCount: 4096 << 12)
        try machine.set(slot: 1 << 16, frame: 0, pages: 4096, host: UInt(bitPattern: second.baseAddress))
        let cpu = TestProcessor(machine, .long(root: tables.root))
        for isManaged in [false, true, false, true] {
            cpu.walk.flush()
            cpu.walker.flushAll()
            cpu.context.isSystemManagement = isManaged
            cpu.walker.switchContext(to: cpu.context, preserving: false)
            #expect(!cpu.isHit(0x1000))
            _ = cpu.fill(0x1000, .supervisorRead)
            let memory = isManaged ? second.baseAddress : machine.ram.baseAddress
            #expect(host(cpu, 0x1000) == memory + 100 << 12)
        }
    }

    /// Memory that both spaces show, at different addresses, is guarded in both.
    @Test func guardsReachBothSpaces() throws {
        let machine = try TestMachine()
        var tables = TableBuilder(machine)
        tables.map(0x20_0000, 512, level: 2)
        tables.map(0x40_0000, 8192 + 512, level: 2)
        let ram = UInt(bitPattern: machine.ram.baseAddress)
        try machine.set(slot: 1 << 16, frame: 0, pages: 512, host: ram)
        try machine.set(slot: 1 << 16 | 1, frame: 8192, pages: 2048, host: ram)
        let cpu = TestProcessor(machine, .long(root: tables.root))
        let other = TestProcessor(machine, managed(.long(root: tables.root)))
        cpu.access(0x20_0000, .supervisorWrite)
        _ = other.fill(0x40_0000, .supervisorWrite)
        #expect(cpu.isHit(0x20_8000, .supervisorWrite) && other.isHit(0x40_8000, .supervisorWrite))
        machine.setGuarded(520, true)
        #expect(!cpu.isHit(0x20_8000, .supervisorWrite) && !other.isHit(0x40_8000, .supervisorWrite))
        _ = other.fill(0x40_0000, .supervisorWrite)
        _ = other.fill(0x40_8000, .supervisorWrite)
        #expect(other.isHit(0x40_0000, .supervisorWrite) && other.isHit(0x40_8000))
        #expect(!other.isHit(0x40_8000, .supervisorWrite))
        #expect(machine.mmu.brokenInvariant() == nil)
    }

    /// A slot that comes when a page is guarded already is not mapped by a large page around it.
    @Test func laterSlotsSeeGuards() throws {
        let machine = try TestMachine()
        machine.setGuarded(520, true)
        var tables = TableBuilder(machine)
        tables.map(0x40_0000, 8192 + 512, level: 2)
        try machine.set(slot: 1 << 16, frame: 0, pages: 512, host: UInt(bitPattern: machine.ram.baseAddress))
        try machine.set(slot: 1 << 16 | 1, frame: 8192, pages: 2048, host: UInt(bitPattern: machine.ram.baseAddress))
        let other = TestProcessor(machine, managed(.long(root: tables.root)))
        _ = other.fill(0x40_0000, .supervisorWrite)
        #expect(other.isHit(0x40_0000, .supervisorWrite) && !other.isHit(0x40_8000, .supervisorWrite))
        _ = other.fill(0x40_8000, .supervisorWrite)
        #expect(other.isHit(0x40_8000) && !other.isHit(0x40_8000, .supervisorWrite))
    }
}
