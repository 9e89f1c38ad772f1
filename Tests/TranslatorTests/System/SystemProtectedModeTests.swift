import Testing
import Translator
import X86

@Suite struct SystemProtectedModeTests {
    @Test func segmentLoads() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        #expect(m.processor.isCode32)
        #expect(m.processor.system.tr.type == 11)
        #expect(m.load(0x1035) as UInt8 == 0x8B, "LTR makes the task state busy")
        #expect(m.load(0x1015) as UInt8 == 0x93, "a load makes the segment accessed")
        for (selector, error) in [(0x08, 8), (0, 0), (0x23, 0x20), (0xF8, 0xF8)] as [(UInt64, UInt32)] {
            m.state[.rax] = selector
            #expect(m.execute("mov ss, ax", 0x8E, 0xD0) == .generalProtection(error))
        }
        m.state[.rax] = 0x70
        #expect(m.execute("lldt ax", 0x0F, 0x00, 0xD0) == nil)
        m.store(SystemMachine.segment(base: 0x1_0000, limit: 0xFFF, access: 0x92, flags: 4), at: 0x6008)
        m.store(SystemMachine.segment(access: 0x12, flags: 4), at: 0x6010)
        m.state[.rax] = 0x0C
        #expect(m.execute("mov fs, ax", 0x8E, 0xE0) == nil)
        #expect(m.processor.system.fs.base == 0x1_0000)
        #expect(m.state.segmentBase(.fs) == 0x1_0000)
        m.state[.rax] = 0x14
        #expect(m.execute("mov fs, ax", 0x8E, 0xE0) == .exception(.segmentNotPresent(0x14)))
        #expect(m.execute("mov ss, ax", 0x8E, 0xD0) == .exception(.stack(0x14)))
        #expect(m.processor.system.fs.selector == 0x0C)
        #expect(m.execute("push fs", 0x0F, 0xA0) == nil)
        #expect(m.load(0x7FFC) as UInt32 == 0x0C)
        #expect(m.execute("pop gs", 0x0F, 0xA9) == nil)
        #expect(m.processor.system.gs.base == 0x1_0000)
        #expect(m.state[.rsp] == 0x8000)
    }

    @Test func descriptorQueries() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        func isZero() -> Bool { m.state.arithmeticFlags & RFlags.zero != 0 }
        m.state[.rax] = 0x18
        m.execute("lar ebx, eax", 0x0F, 0x02, 0xD8)
        #expect(isZero() && m.state[.rbx] == 0xC0_FA00)
        m.execute("lsl ebx, eax", 0x0F, 0x03, 0xD8)
        #expect(isZero() && m.state[.rbx] == 0xFFFF_FFFF)
        m.execute("verr ax", 0x0F, 0x00, 0xE0)
        #expect(isZero())
        m.execute("verw ax", 0x0F, 0x00, 0xE8)
        #expect(!isZero())
        m.state[.rax] = 0x30
        m.execute("lsl ebx, eax", 0x0F, 0x03, 0xD8)
        #expect(isZero() && m.state[.rbx] == 0x68)
        m.state[.rax] = 0x50
        m.execute("lsl ebx, eax", 0x0F, 0x03, 0xD8)
        #expect(!isZero(), "a call gate has no limit")
        m.execute("lar ebx, eax", 0x0F, 0x02, 0xD8)
        #expect(isZero(), "but it has access rights")
        m.enterUserMode()
        m.state[.rax] = 0x10
        m.execute("lar ebx, eax", 0x0F, 0x02, 0xD8)
        #expect(!isZero(), "ring 3 does not see ring 0 data")
        m.state[.rax] = 0x20
        m.state[.rbx] = 3
        m.execute("arpl ax, bx", 0x63, 0xD8)
        #expect(isZero() && m.state[.rax] == 0x23)
    }

    @Test func privilegeChecks() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        m.enterUserMode()
        #expect(m.processor.cpl == 3)
        #expect(m.state[.rsp] == 0x9000)
        #expect(m.processor.system.ds.isUnusable, "a return outwards drops inner segments")
        #expect(m.execute("hlt", 0xF4) == .generalProtection())
        #expect(m.execute("cli", 0xFA) == .generalProtection())
        #expect(m.execute("mov eax, cr0", 0x0F, 0x20, 0xC0) == .generalProtection())
        #expect(m.execute("clts", 0x0F, 0x06) == .generalProtection())
        #expect(m.execute("lgdt [ebx]", 0x0F, 0x01, 0x13) == .generalProtection())
        #expect(m.execute("mov eax, dr0", 0x0F, 0x21, 0xC0) == .generalProtection())
        #expect(m.execute("invlpg [ebx]", 0x0F, 0x01, 0x3B) == .generalProtection())
    }

    @Test func interruptToInnerRing() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        m.enterUserMode()
        m.setGate(0x80, 0x40, 0x1_2345, access: 0xEF)
        m.setGate(0x81, 0x40, 0x1_2345, access: 0x8E)
        #expect(m.execute("int 81h", 0xCD, 0x81) == .generalProtection(0x81 * 8 + 2))
        m.state.rflags = 0x4302
        #expect(m.execute("int 80h", 0xCD, 0x80) == nil)
        #expect(m.processor.cpl == 0)
        #expect(m.state.rip == 0x1_2345)
        #expect(m.processor.system.ss.selector == 0x10)
        #expect(m.state[.rsp] == 0x6FEC)
        #expect(m.state.rflags == 0x202, "a trap gate leaves IF alone")
        #expect(m.slots(5, of: UInt32.self, at: 0x6FEC) == [0x4502, 0x1B, 0x4302, 0x9000, 0x23])
        m.store(0x202 as UInt32, at: 0x6FF4)
        #expect(m.execute("iretd", 0xCF) == nil)
        #expect(m.processor.cpl == 3)
        #expect(m.state.rip == 0x4502)
    }

    @Test func faultWithErrorCode() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        m.enterUserMode()
        m.setGate(13, 0x40, 0x100, access: 0x8E)
        #expect(m.processor.deliverWithEscalation(PendingEvent(.generalProtection(0x18))) == nil)
        #expect(m.slots(6, of: UInt32.self, at: 0x6FE8) == [0x18, 0x4500, 0x1B, 0x1_0202, 0x9000, 0x23])
        #expect(m.state.rflags == 2)
    }

    @Test func callGate() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        m.enterUserMode()
        m.store(slots: [0x1111, 0x2222] as [UInt32], at: 0x9000)
        #expect(m.execute("call 53h:0", 0x9A, 0, 0, 0, 0, 0x53, 0) == nil)
        #expect(m.processor.cpl == 0)
        #expect(m.state.rip == 0x5000)
        #expect(m.slots(6, of: UInt32.self, at: 0x6FE8) == [0x4507, 0x1B, 0x1111, 0x2222, 0x9000, 0x23])
        #expect(m.execute("retf 8", 0xCA, 8, 0) == nil)
        #expect(m.processor.cpl == 3)
        #expect(m.state.rip == 0x4507)
        #expect(m.state[.rsp] == 0x9008)
        #expect(m.execute("jmp 53h:0", 0xEA, 0, 0, 0, 0, 0x53, 0) == .generalProtection(0x40))
        #expect(m.execute("jmp 93h:6000h", 0xEA, 0, 0x60, 0, 0, 0x93, 0) == nil)
        #expect(m.processor.cpl == 3, "conforming code keeps the privilege level")
        #expect(m.processor.system.cs.selector == 0x93)
    }

    @Test func sixteenBitSegments() throws {
        let m = try SystemMachine()
        m.enterProtectedMode()
        #expect(m.execute("jmp 60h:1000h", 0xEA, 0, 0x10, 0, 0, 0x60, 0) == nil)
        #expect(m.processor.isCode16)
        m.state[.rax] = 0x68
        #expect(m.execute("mov ss, ax", 0x8E, 0xD0) == nil)
        m.state[.rsp] = 0xABCD_0100
        m.setGate(0x30, 0x60, 0x9_1234, access: 0x86)
        m.setGate(0x31, 0x40, 0x9_1234, access: 0x8F)
        m.state.rflags = 0x3302
        #expect(m.execute("int 30h", 0xCD, 0x30) == nil)
        #expect(m.state.rip == 0x1234, "a 16-bit gate has a 16-bit offset")
        #expect(m.state[.rsp] == 0xABCD_00FA)
        #expect(m.slots(3, of: UInt16.self, at: 0xFA) == [0x1004, 0x60, 0x3302])
        #expect(m.execute("iret", 0xCF) == nil)
        #expect(m.state.rflags == 0x3302)
        #expect(m.execute("int 31h", 0xCD, 0x31) == nil)
        #expect(m.processor.isCode32)
        #expect(m.state.rip == 0x9_1234)
        #expect(m.state[.rsp] == 0xABCD_00F4, "four-byte slots on a 16-bit stack")
        #expect(m.execute("iretd", 0xCF) == nil)
        #expect(m.processor.isCode16)
        #expect(m.state[.rsp] == 0xABCD_0100)
        m.state[.rax] = 0x10
        #expect(m.execute("mov cr0, eax", 0x0F, 0x22, 0xC0) == nil)
        #expect(m.execute("jmp 300h:2000h", 0xEA, 0, 0x20, 0x00, 0x03) == nil)
        #expect(m.processor.system.cs.base == 0x3000, "back in real mode")
    }
}

@Suite struct SystemVirtual8086Tests {
    private func enter(_ m: SystemMachine) {
        m.enterProtectedMode()
        m.state[.rsp] = 0x7F00
        m.store(slots: [0x1234, 0x2000, 0x2_0202, 0xFFF0, 0x3000, 1, 2, 3, 4] as [UInt32], at: 0x7F00)
        #expect(m.execute("iretd", 0xCF) == nil)
    }

    @Test func entryAndExit() throws {
        let m = try SystemMachine()
        enter(m)
        let p = m.processor
        #expect(p.isVirtual8086 && p.cpl == 3 && p.isCode16)
        #expect(p.system.cs.base == 0x20000 && p.system.ss.base == 0x30000 && p.system.gs.base == 0x40)
        #expect(m.execute("int 10h", 0xCD, 0x10) == .generalProtection())
        #expect(m.execute("sti", 0xFB) == .generalProtection())
        #expect(m.execute("sldt ax", 0x0F, 0x00, 0xC0) == .invalidOpcode)
        m.state[.rax] = 0x50
        #expect(m.execute("mov ds, ax", 0x8E, 0xD8) == nil)
        #expect(p.system.ds == .virtual8086(selector: 0x50))
        m.setGate(0x20, 0x40, 0x4000, access: 0x8E)
        m.setGate(0x21, 0x18, 0x4000, access: 0x8E)
        #expect(m.deliver(PendingEvent(kind: .externalInterrupt, vector: 0x21)) == .generalProtection(0x19))
        #expect(m.deliver(PendingEvent(kind: .externalInterrupt, vector: 0x20)) == nil)
        #expect(p.cpl == 0 && !p.isVirtual8086 && p.system.ds.isUnusable && m.state.rip == 0x4000)
        let frame = m.slots(9, of: UInt32.self, at: m.state[.rsp])
        #expect(frame == [0x1236, 0x2000, 0x2_0202, 0xFFF0, 0x3000, 1, 0x50, 3, 4])
        #expect(m.execute("iretd", 0xCF) == nil)
        #expect(p.isVirtual8086 && p.system.ds.base == 0x500)
    }

    @Test func redirectedInterrupt() throws {
        let m = try SystemMachine()
        enter(m)
        m.processor.system.cr4 |= CR4.virtual8086Extensions
        m.processor.system.tr.limit = 0x2068
        m.store(0x88 as UInt16, at: 0x3066)
        m.store(1 << 0x11 as UInt32, at: 0x3068)
        m.store(0x4000_0123 as UInt32, at: 0x10 * 4)
        m.state.systemFlags |= RFlags.virtualInterrupt
        #expect(m.execute("int 11h", 0xCD, 0x11) == .generalProtection(), "not redirected")
        #expect(m.execute("int 10h", 0xCD, 0x10) == nil)
        #expect(m.state.rip == 0x123 && m.processor.isVirtual8086)
        #expect(m.slots(3, of: UInt16.self, at: 0x3FFEA) == [0x1236, 0x2000, 0x3202], "IF is VIF, IOPL reads as 3")
        #expect(m.state.systemFlags & (RFlags.virtualInterrupt | RFlags.interrupt) == RFlags.interrupt)
        #expect(m.execute("iret", 0xCF) == nil)
        #expect(m.state.rip == 0x1236)
        #expect(m.state.systemFlags & RFlags.virtualInterrupt != 0)
    }
}
