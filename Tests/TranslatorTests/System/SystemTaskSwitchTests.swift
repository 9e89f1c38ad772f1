import Testing
import Translator
import X86

@Suite struct SystemTaskSwitchTests {
    private func machine() throws -> SystemMachine {
        let m = try SystemMachine()
        m.enterProtectedMode()
        m.store(slots: [0x4600, 0x2] as [UInt32], at: 0x3420)
        m.store(slots: [0x100, 0x101, 0x102, 0x103, 0xA000, 0x105, 0x106, 0x107] as [UInt32], at: 0x3428)
        m.store(slots: [0x10, 0x40, 0x10, 0x10, 0, 0] as [UInt32], at: 0x3448)
        return m
    }

    @Test func callAndReturn() throws {
        let m = try machine()
        let p = m.processor
        let next = m.state.rip + 7
        m.state[.rbx] = 0x77
        p.system.dr7 = 0x7FF
        #expect(m.execute("call 48h:0", 0x9A, 0, 0, 0, 0, 0x48, 0) == nil)
        #expect(m.state.rip == 0x4600 && m.state[.rcx] == 0x101 && m.state[.rsp] == 0xA000)
        #expect(m.state.rflags == 0x4002, "a nested task")
        #expect(p.system.tr.selector == 0x48 && p.system.cr0 & CR0.taskSwitched != 0 && p.system.dr7 == 0x6AA)
        #expect(m.load(0x3400) as UInt16 == 0x30 && m.load(0x3020) as UInt32 == UInt32(next))
        #expect(m.load(0x3034) as UInt32 == 0x77)
        #expect(m.load(0x1035) as UInt8 == 0x8B && m.load(0x104D) as UInt8 == 0x8B)
        #expect(m.execute("call 30h:0", 0x9A, 0, 0, 0, 0, 0x30, 0) == .generalProtection(0x30), "busy")
        #expect(m.execute("iretd", 0xCF) == nil)
        #expect(m.state.rip == next && m.state[.rbx] == 0x77 && m.state.rflags == 2)
        #expect(p.system.tr.selector == 0x30 && m.load(0x104D) as UInt8 == 0x89)
        #expect(m.load(0x3424, as: UInt32.self) & 0x4000 == 0, "NT is cleared in what IRET saves")
    }

    @Test func gatesAndTraps() throws {
        let m = try machine()
        let p = m.processor
        #expect(m.execute("jmp 58h:0", 0xEA, 0, 0, 0, 0, 0x58, 0) == nil)
        #expect(p.system.tr.selector == 0x48 && m.load(0x1035) as UInt8 == 0x89 && m.state.rflags == 2)
        // From the second task, a double fault goes back to the first, with an error code.
        m.store(SystemMachine.gate(0x30, 0, access: 0x85), at: 0x2040)
        #expect(p.deliverWithEscalation(PendingEvent(.doubleFault)) == nil)
        #expect(p.system.tr.selector == 0x30 && m.state[.rsp] == 0x7FFC && m.load(0x7FFC) as UInt32 == 0)
        m.store(1 as UInt16, at: 0x3464)
        #expect(m.execute("iretd", 0xCF) == .exception(.debug(DebugRegister.taskSwitch)))
        #expect(p.system.tr.selector == 0x48, "the trap belongs to the new task")
        m.store(0xF0 as UInt16, at: 0x3050)
        #expect(m.execute("jmp 30h:0", 0xEA, 0, 0, 0, 0, 0x30, 0) == .exception(.invalidTSS(0xF0)))
        #expect(p.system.tr.selector == 0x30 && p.system.cs.selector == 0x40)
    }

    @Test func sixteenBitState() throws {
        let m = try machine()
        let p = m.processor
        m.store(SystemMachine.segment(base: 0x3400, limit: 0x2B, access: 0x81), at: 0x1048)
        m.store(slots: [0x4600, 0x202] as [UInt16], at: 0x340E)
        m.store(slots: (0..<8).map { 0x100 + $0 } as [UInt16], at: 0x3412)
        m.store(slots: [0x10, 0x60, 0x68, 0x10, 0] as [UInt16], at: 0x3422)
        let next = m.state.rip + 7
        m.state[.rdx] = 0x5555_6666
        #expect(m.execute("call 48h:0", 0x9A, 0, 0, 0, 0, 0x48, 0) == nil)
        #expect(p.isCode16 && m.state.rip == 0x4600 && m.state.rflags == 0x4202 && p.system.fs.isUnusable)
        #expect(m.state[.rdx] == 0x5555_0102)
        #expect(m.execute("iret", 0xCF) == nil)
        #expect(p.isCode32 && m.state.rip == next && m.state[.rdx] == 0x5555_6666)
        m.store(SystemMachine.segment(base: 0x3400, limit: 0x2A, access: 0x81), at: 0x1048)
        #expect(m.execute("jmp 48h:0", 0xEA, 0, 0, 0, 0, 0x48, 0) == .exception(.invalidTSS(0x48)))
        m.store(SystemMachine.segment(base: 0x3400, limit: 0x2B, access: 0x01), at: 0x1048)
        #expect(m.execute("jmp 48h:0", 0xEA, 0, 0, 0, 0, 0x48, 0) == .exception(.segmentNotPresent(0x48)))
        #expect(p.system.tr.selector == 0x30)
    }
}
