import Testing
import Translator
import X86

@Suite struct SystemControlRegisterTests {
    @Test func cr0() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        for value in [0x11, 0x1_8000_0011, 0x8000_0010, 0xA000_0011] as [UInt64] {
            m.state[.rax] = value
            #expect(m.execute("mov cr0, rax", 0x0F, 0x22, 0xC0) == .generalProtection())
        }
        m.state[.rax] = 0x8005_002B
        #expect(m.execute("mov cr0, rax", 0x0F, 0x22, 0xC0) == nil)
        #expect(m.processor.system.cr0 == 0x8005_003B, "ET is always set")
        #expect(m.execute("clts", 0x0F, 0x06) == nil)
        #expect(m.processor.system.cr0 == 0x8005_0033)
        m.state[.rax] = 0xC
        #expect(m.execute("lmsw ax", 0x0F, 0x01, 0xF0) == nil)
        #expect(m.processor.system.cr0 == 0x8005_003D, "LMSW cannot clear PE")
        #expect(m.execute("smsw rcx", 0x48, 0x0F, 0x01, 0xE1) == nil)
        #expect(m.state[.rcx] == 0x8005_003D)
    }

    @Test func contextsAndPages() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        let p = m.processor
        m.state[.rax] = 0
        #expect(m.execute("mov cr4, rax", 0x0F, 0x22, 0xE0) == .generalProtection(), "PAE is needed")
        m.state[.rax] = 1 << 22 | 0x20
        #expect(m.execute("mov cr4, rax", 0x0F, 0x22, 0xE0) == .generalProtection(), "protection keys are not offered")
        m.state[.rcx] = 1 << 63 | 0x10_0000
        #expect(m.execute("mov cr3, rcx", 0x0F, 0x22, 0xD9) == .generalProtection())
        m.state[.rcx] = 0x10_0001
        #expect(m.execute("mov cr3, rcx", 0x0F, 0x22, 0xD9) == nil)
        m.state[.rax] = 0x2_0020
        #expect(m.execute("mov cr4, rax", 0x0F, 0x22, 0xE0) == .generalProtection(), "a context is selected")
        m.state[.rcx] = 0x10_0000
        #expect(m.execute("mov cr3, rcx", 0x0F, 0x22, 0xD9) == nil)
        #expect(m.execute("mov cr4, rax", 0x0F, 0x22, 0xE0) == nil)
        m.state[.rcx] = 1 << 63 | 0x10_0003
        #expect(m.execute("mov cr3, rcx", 0x0F, 0x22, 0xD9) == nil)
        #expect(p.system.cr3 == 0x10_0003)
        m.state[.rcx] = 1 << 50
        #expect(m.execute("mov cr3, rcx", 0x0F, 0x22, 0xD9) == .generalProtection())

        // A page that goes away is seen only after it has been invalidated.
        m.state[.rbx] = 0xA000
        m.state[.rcx] = 0xB000
        m.store(slots: [3, 0xA000] as [UInt64], at: 0xB000)
        #expect(try p.read(0xA000, as: UInt8.self) == 0)
        m.store(0 as UInt64, at: 0x10_3000 + 0xA * 8)
        #expect(m.execute("invlpg [rbx]", 0x0F, 0x01, 0x3B) == nil)
        #expect(throws: GuestFault.exception(.pageFault(address: 0xA000, code: 0))) {
            try p.read(0xA000, as: UInt8.self)
        }
        m.store(0xA007 as UInt64, at: 0x10_3000 + 0xA * 8)
        #expect(try p.read(0xA000, as: UInt8.self) == 0)
        m.store(0 as UInt64, at: 0x10_3000 + 0xA * 8)
        m.state[.rdx] = 0
        #expect(m.execute("invpcid rdx, [rcx]", 0x66, 0x0F, 0x38, 0x82, 0x11) == nil)
        #expect(throws: GuestFault.exception(.pageFault(address: 0xA000, code: 0))) {
            try p.read(0xA000, as: UInt8.self)
        }
        m.state[.rdx] = 4
        #expect(m.execute("invpcid rdx, [rcx]", 0x66, 0x0F, 0x38, 0x82, 0x11) == .generalProtection())
    }

    @Test func taskPriority() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        m.state[.rax] = 16
        #expect(m.execute("mov cr8, rax", 0x44, 0x0F, 0x22, 0xC0) == .generalProtection())
        m.state[.rax] = 9
        #expect(m.execute("mov cr8, rax", 0x44, 0x0F, 0x22, 0xC0) == nil)
        #expect(m.taskPriority == 9)
        #expect(m.execute("mov rcx, cr8", 0x44, 0x0F, 0x20, 0xC1) == nil)
        #expect(m.state[.rcx] == 9)
    }

    @Test func debugRegisters() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        let p = m.processor
        m.state[.rax] = 0xFFFF_FFFF
        #expect(m.execute("mov dr6, rax", 0x0F, 0x23, 0xF0) == nil)
        #expect(p.system.dr6 == 0xFFFF_EFFF)
        m.state[.rax] = 0
        #expect(m.execute("mov dr7, rax", 0x0F, 0x23, 0xF8) == nil)
        #expect(p.system.dr7 == 0x400)
        m.state[.rax] = 1 << 32
        #expect(m.execute("mov dr7, rax", 0x0F, 0x23, 0xF8) == .generalProtection())
        m.state[.rax] = 0x2000
        #expect(m.execute("mov dr7, rax", 0x0F, 0x23, 0xF8) == nil)
        #expect(m.execute("mov rax, dr0", 0x0F, 0x21, 0xC0) == .exception(.debug(0x2000)))
        m.setGate64(1, 0x5001, access: 0x8E)
        #expect(m.deliver(PendingEvent(.debug(0x2000))) == nil)
        #expect(p.system.dr7 == 0x400, "the handler may use debug registers")
        #expect(p.system.dr6 == 0xFFFF_EFF0)
        #expect(m.execute("mov rax, dr4", 0x0F, 0x21, 0xE0) == nil)
        #expect(m.state[.rax] == 0xFFFF_EFF0)
        try p.setCR4(p.system.cr4 | CR4.debuggingExtensions)
        #expect(m.execute("mov rax, dr4", 0x0F, 0x21, 0xE0) == .invalidOpcode)
    }

    @Test func extendedControl() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        m.state[.rcx] = 0
        m.state[.rdx] = 0
        m.state[.rax] = 7
        #expect(m.execute("xsetbv", 0x0F, 0x01, 0xD1) == .invalidOpcode)
        try m.processor.setCR4(m.processor.system.cr4 | CR4.xsave)
        #expect(m.execute("xsetbv", 0x0F, 0x01, 0xD1) == nil)
        for value in [0, 5, 0xF] as [UInt64] {
            m.state[.rax] = value
            #expect(m.execute("xsetbv", 0x0F, 0x01, 0xD1) == .generalProtection())
        }
        #expect(m.execute("xgetbv", 0x0F, 0x01, 0xD0) == nil)
        #expect(m.state[.rax] == 7)
    }

    @Test func monitorDoesNotWait() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        m.state[.rcx] = 0
        #expect(m.execute("monitor", 0x0F, 0x01, 0xC8) == nil)
        #expect(m.execute("mwait", 0x0F, 0x01, 0xC9) == nil)
        m.state[.rcx] = 2
        #expect(m.execute("monitor", 0x0F, 0x01, 0xC8) == .generalProtection())
        #expect(m.execute("mwait", 0x0F, 0x01, 0xC9) == .generalProtection())
        m.processor.system.cpl = 3
        #expect(m.execute("monitor", 0x0F, 0x01, 0xC8) == .invalidOpcode)
    }

    @Test func instructionsThatAreNotOffered() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        #expect(m.execute("monitorx", 0x0F, 0x01, 0xFA) == .invalidOpcode)
        #expect(m.execute("mwaitx", 0x0F, 0x01, 0xFB) == .invalidOpcode)
        #expect(m.execute("vmrun", 0x0F, 0x01, 0xD8) == .invalidOpcode)
        #expect(m.execute("vmlaunch", 0x0F, 0x01, 0xC2) == .invalidOpcode)
        #expect(m.execute("rsm", 0x0F, 0xAA) == .invalidOpcode)
        #expect(m.execute("rdpmc", 0x0F, 0x33) == .generalProtection())
        #expect(m.execute("wbnoinvd", 0xF3, 0x0F, 0x09) == nil)
        #expect(m.execute("rdsspq rax", 0xF3, 0x48, 0x0F, 0x1E, 0xC8) == nil)
    }

    @Test func hypercalls() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        for (register, value) in [(GeneralRegister.rax, 1), (.rbx, 2), (.rcx, 3), (.rdx, 4), (.rsi, 5)] {
            m.state[register] = UInt64(value)
        }
        #expect(m.execute("vmcall", 0x0F, 0x01, 0xC1) == nil)
        #expect(m.state[.rax] == 0x12345)
        m.enterUserMode64()
        #expect(m.execute("vmmcall", 0x0F, 0x01, 0xD9) == nil)
        #expect(m.state[.rax] == ~0, "outer privilege levels are refused")
    }

    @Test func userModeInstructionPrevention() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        m.state[.rbx] = 0xA000
        #expect(m.execute("sgdt [rbx]", 0x0F, 0x01, 0x03) == nil)
        #expect(m.load(0xA000) as UInt16 == m.processor.system.gdtr.limit && m.load(0xA002) as UInt64 == 0x1000)
        m.enterUserMode64()
        #expect(m.execute("str eax", 0x0F, 0x00, 0xC8) == nil)
        #expect(m.state[.rax] == 0x30)
        m.processor.system.cr4 |= CR4.userModeInstructionPrevention
        #expect(m.execute("sgdt [rbx]", 0x0F, 0x01, 0x03) == .generalProtection())
        #expect(m.execute("smsw eax", 0x0F, 0x01, 0xE0) == .generalProtection())
        #expect(m.execute("str eax", 0x0F, 0x00, 0xC8) == .generalProtection())
    }

    @Test func replacement() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        let p = m.processor
        p.setSegment(.ds, Segment(selector: 0x18, base: 0x4_0000, limit: .max, attributes: 0xC093))
        #expect(p.state.segmentBase(.ds) == 0, "64-bit code")
        p.replaceControlRegisters(cr0: 0x8000_0011, cr2: 0x77, cr3: 0x10_0000, cr4: 0x20, efer: 0x500)
        #expect(p.system.cr2 == 0x77 && p.system.efer == 0x500 && p.isCode64)
        p.replaceControlRegisters(cr0: 0x10, cr2: 0, cr3: 0, cr4: 0, efer: 0)
        #expect(!p.isCode64)
        #expect(p.state.segmentBase(.ds) == 0x4_0000)
    }
}
