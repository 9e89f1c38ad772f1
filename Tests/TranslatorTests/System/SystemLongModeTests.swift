import Testing
import Translator
import X86

@Suite struct SystemLongModeTests {
    private func machine() throws -> SystemMachine {
        let m = try SystemMachine()
        try m.enterLongMode()
        for vector in [6, 8, 13, 14] as [UInt64] {
            m.setGate64(vector, 0xFFFF_8000_0000_5000 + vector, access: 0x8E)
        }
        m.setGate64(0x80, 0xFFFF_8000_0000_5080, access: 0xEF)
        return m
    }

    @Test func entry() throws {
        let m = try machine()
        #expect(m.processor.isCode64)
        #expect(m.processor.system.efer == 0xD01)
        m.enterUserMode64()
        #expect(m.processor.cpl == 3)
        #expect(m.state.rip == 0x4500 && m.state[.rsp] == 0x7FFF_FFFF_9000 && m.state.rflags == 0x202)
        #expect(m.processor.system.ss.selector == 0x23)
    }

    @Test func pageFaultFromUserMode() throws {
        let m = try machine()
        m.enterUserMode64()
        m.state.rflags = 0x10302
        let fault = GuestException.pageFault(address: 0x1234_5000, code: 6)
        #expect(m.processor.deliverWithEscalation(PendingEvent(fault)) == nil)
        #expect(m.processor.system.cr2 == 0x1234_5000)
        #expect(m.processor.cpl == 0 && m.state.rip == 0xFFFF_8000_0000_500E && m.state.rflags == 2)
        #expect(m.processor.system.ss.isUnusable && m.processor.system.ss.selector == 0)
        // RSP0 is aligned down to 16.
        let frame = m.slots(6, of: UInt64.self, at: 0x7000 - 48)
        #expect(m.state[.rsp] == 0x7000 - 48)
        #expect(frame == [6, 0x4500, 0x2B, 0x10302, 0x7FFF_FFFF_9000, 0x23])
        m.state[.rsp] += 8
        #expect(m.execute("iretq", 0x48, 0xCF) == nil)
        #expect(m.processor.cpl == 3 && m.state.rflags == 0x10302 && m.state.rip == 0x4500)
    }

    @Test func softwareInterrupts() throws {
        let m = try machine()
        m.enterUserMode64()
        #expect(m.execute("int 13", 0xCD, 13) == .generalProtection(13 * 8 + 2))
        #expect(m.execute("int 80h", 0xCD, 0x80) == nil)
        #expect(m.load(0x7000 - 40) as UInt64 == 0x4502 && m.state.rflags == 0x202)
        #expect(m.execute("iretq", 0x48, 0xCF) == nil)
        let external = PendingEvent(kind: .externalInterrupt, vector: 0x90)
        #expect(m.deliver(external) == .generalProtection(0x90 * 8 + 3), "EXT is set")
        let software = PendingEvent(kind: .softwareInterrupt, vector: 0x90)
        #expect(m.deliver(software) == .generalProtection(0x90 * 8 + 2), "EXT is clear")
        #expect(m.processor.deliverWithEscalation(external) == nil)
        #expect(m.state.rip == 0xFFFF_8000_0000_500D && m.load(m.state[.rsp]) as UInt64 == 0x90 * 8 + 3)
    }

    @Test func interruptStackTable() throws {
        let m = try machine()
        m.setGate64(2, 0x5002, access: 0x8E, interruptStack: 1)
        m.store(0xB00F as UInt64, at: 0x3024)
        #expect(m.deliver(PendingEvent(kind: .nonMaskableInterrupt, vector: 2)) == nil)
        #expect(m.processor.system.nmiBlocked && m.state[.rsp] == 0xB000 - 40)
        #expect(m.slots(2, of: UInt64.self, at: 0xB000 - 16) == [0x8000, 0x10])
        #expect(m.execute("iretq", 0x48, 0xCF) == nil)
        #expect(!m.processor.system.nmiBlocked && m.state[.rsp] == 0x8000 && m.processor.system.ss.selector == 0x10)
    }

    @Test func faultsWhileDelivering() throws {
        let m = try machine()
        m.enterUserMode64()
        m.setPresent(6, false)
        m.store(0x7010 as UInt64, at: 0x3004)
        let old = (m.state.rip, m.state[.rsp], m.processor.system.cs, m.processor.system.ss, m.state.rflags)
        m.store(0x1122 as UInt64, at: 0x7008)
        let interrupt = PendingEvent(kind: .externalInterrupt, vector: 14)
        #expect(m.deliver(interrupt) == .exception(.pageFault(address: 0x6FF8, code: 2)))
        #expect(old.0 == m.state.rip && old.1 == m.state[.rsp] && old.2 == m.processor.system.cs)
        #expect(old.3 == m.processor.system.ss && old.4 == m.state.rflags && m.processor.cpl == 3)
        #expect(m.load(0x7008) as UInt64 == 0x1122, "not even the slots that could be written are")

        // #UD meets a page fault on the stack, the page fault another one: a double fault on its own stack.
        m.setGate64(8, 0x5008, access: 0x8E, interruptStack: 2)
        m.store(0xE000 as UInt64, at: 0x302C)
        #expect(m.processor.deliverWithEscalation(PendingEvent(.invalidOpcode)) == nil)
        #expect(m.state.rip == 0x5008 && m.processor.system.cr2 >> 12 == 6)
        #expect(m.load(0xE000 - 48) as UInt64 == 0)
        m.setPresent(0xD, false)
        m.state[.rsp] = 0x6800
        #expect(m.processor.deliverWithEscalation(PendingEvent(.invalidOpcode)) == .shutdown)
    }

    @Test func nonCanonicalAddresses() throws {
        let m = try machine()
        m.state[.rsp] = 0x8000_0000_1000
        let interrupt = PendingEvent(kind: .externalInterrupt, vector: 14)
        #expect(m.deliver(interrupt) == .exception(.stack(1)))
        #expect(m.state[.rsp] == 0x8000_0000_1000)
        m.state[.rsp] = 0x8000
        m.setGate64(0x91, 0x8000_0000_0000, access: 0x8E)
        #expect(m.deliver(PendingEvent(kind: .externalInterrupt, vector: 0x91)) == .generalProtection(1))
        #expect(m.deliver(interrupt) == nil)
        m.store(0x8000_0000_0000 as UInt64, at: m.state[.rsp])
        #expect(m.execute("iretq", 0x48, 0xCF) == .generalProtection())
        m.state.systemFlags |= RFlags.nestedTask
        #expect(m.execute("iretq", 0x48, 0xCF) == .generalProtection())
    }

    @Test func nullStackSegment() throws {
        let m = try machine()
        m.state[.rax] = 0
        #expect(m.execute("mov ss, ax", 0x8E, 0xD0) == nil)
        #expect(m.deliver(PendingEvent(kind: .externalInterrupt, vector: 14)) == nil)
        #expect(m.execute("iretq", 0x48, 0xCF) == nil)
        #expect(m.processor.system.ss.isUnusable && m.processor.cpl == 0)
        m.enterUserMode64()
        m.state[.rax] = 0
        #expect(m.execute("mov ss, ax", 0x8E, 0xD0) == .generalProtection())
    }

    @Test func callGateAndCompatibilityMode() throws {
        let m = try machine()
        m.enterUserMode64()
        m.state[.rbx] = 0xA000
        m.store(slots: [0, 0, 0x83] as [UInt16], at: 0xA000)
        #expect(m.execute("call far [rbx]", 0xFF, 0x1B) == nil)
        #expect(m.processor.cpl == 0 && m.state.rip == 0x5100 && m.state[.rsp] == 0x7008 - 32)
        let frame = m.slots(4, of: UInt64.self, at: 0x7008 - 32)
        #expect(frame == [0x4502, 0x2B, 0x7FFF_FFFF_9000, 0x23])
        #expect(m.execute("retfq", 0x48, 0xCB) == nil)
        #expect(m.processor.cpl == 3 && m.state.rip == 0x4502)

        m.store(slots: [0x4700, 0, 0x1B] as [UInt16], at: 0xA000)
        #expect(m.execute("jmp far [rbx]", 0xFF, 0x2B) == nil)
        #expect(m.processor.isCode32 && m.state.rip == 0x4700)
        m.state[.rsp] = 0x9800
        #expect(m.execute("int 80h", 0xCD, 0x80) == nil)
        #expect(m.processor.isCode64 && m.state[.rsp] == 0x7000 - 40)
        #expect(m.execute("iretq", 0x48, 0xCF) == nil)
        #expect(m.processor.isCode32 && m.state[.rsp] == 0x9800 && m.state.rip == 0x4702)
    }

    @Test func fastSystemCalls() throws {
        let m = try machine()
        let p = m.processor
        m.enterUserMode64()
        p.system.star = 0x0013_0008 << 32
        p.system.lstar = 0xFFFF_FFFF_8000_0000
        p.system.syscallMask = 0x4_7700
        m.state.rflags = 0x4_0306
        #expect(m.execute("syscall", 0x0F, 0x05) == nil)
        #expect(m.state.rip == p.system.lstar && m.state[.rcx] == 0x4502 && m.state[.r11] == 0x4_0306)
        #expect(m.state.rflags == 6 && p.system.cs.selector == 8 && p.system.ss.selector == 0x10 && p.cpl == 0)
        #expect(m.execute("sysretq", 0x48, 0x0F, 0x07) == nil)
        #expect(p.cpl == 3 && m.state.rip == 0x4502 && m.state.rflags == 0x4_0306)
        #expect(p.system.cs.selector == 0x23 && p.system.ss.selector == 0x1B && p.isCode64)
        #expect(m.execute("sysretq", 0x48, 0x0F, 0x07) == .generalProtection())

        #expect(m.execute("sysenter", 0x0F, 0x34) == .generalProtection(), "no code segment is configured")
        p.system.sysenterCS = 8
        p.system.sysenterESP = 0x8000
        p.system.sysenterEIP = 0x1_2345_6789
        #expect(m.execute("sysenter", 0x0F, 0x34) == nil)
        #expect(p.isCode64 && p.cpl == 0 && m.state.rip == 0x1_2345_6789 && m.state[.rsp] == 0x8000)
        m.state[.rcx] = 0x9000
        m.state[.rdx] = 0x1_0000_4500
        #expect(m.execute("sysexit", 0x0F, 0x35) == nil)
        #expect(p.isCode32 && p.cpl == 3 && m.state.rip == 0x4500 && p.system.cs.selector == 0x1B)
    }

    @Test func segmentBases() throws {
        let m = try machine()
        let p = m.processor
        #expect(m.state.segmentBase(.ds) == 0)
        p.system.kernelGSBase = 0xFFFF_8888_0000_0000
        #expect(m.execute("swapgs", 0x0F, 0x01, 0xF8) == nil)
        #expect(m.state.segmentBase(.gs) == 0xFFFF_8888_0000_0000 && p.system.kernelGSBase == 0)
        m.state[.rax] = 0x7_7777_7777
        #expect(m.execute("wrgsbase rax", 0xF3, 0x48, 0x0F, 0xAE, 0xD8) == .invalidOpcode)
        try p.setCR4(p.system.cr4 | CR4.fsgsbase)
        #expect(m.execute("wrgsbase rax", 0xF3, 0x48, 0x0F, 0xAE, 0xD8) == nil)
        #expect(m.state.segmentBase(.gs) == 0x7_7777_7777)
        #expect(m.execute("rdgsbase ecx", 0xF3, 0x0F, 0xAE, 0xC9) == nil)
        #expect(m.state[.rcx] == 0x7777_7777)
        m.state[.rax] = 1 << 47
        #expect(m.execute("wrfsbase rax", 0xF3, 0x48, 0x0F, 0xAE, 0xD0) == .generalProtection())
        // A null FS may have a base, which a return to user mode keeps.
        m.state[.rbx] = 0
        #expect(m.execute("mov fs, bx", 0x8E, 0xE3) == nil)
        p.setBase(.fs, 0x1234)
        m.enterUserMode64()
        #expect(m.state.segmentBase(.fs) == 0x1234)
        #expect(m.execute("swapgs", 0x0F, 0x01, 0xF8) == .generalProtection())
    }
}
