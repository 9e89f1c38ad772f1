import Testing
import Translator
import X86

/// System management mode is entered and left, in each mode and with either layout of the save area.
@Suite struct SystemManagementTests {
    enum Mode: CaseIterable { case real, protected, user, long, longUser }

    private func machine(_ mode: Mode) throws -> SystemMachine {
        let m = try SystemMachine()
        switch mode {
        case .real: break
        case .protected: m.enterProtectedMode()
        case .user:
            m.enterProtectedMode()
            m.enterUserMode()
        case .long: try m.enterLongMode()
        case .longUser:
            try m.enterLongMode()
            m.enterUserMode64()
        }
        for (index, register) in GeneralRegister.allCases.enumerated() where register != .rsp {
            m.state[register] = UInt64(index + 1) &* 0x1111_1111
        }
        m.state.rflags = m.state.rflags | RFlags.direction | RFlags.carry | RFlags.identification
        m.processor.setDebugRegister(6, 0xF)
        m.processor.setDebugRegister(7, 0x300)
        m.processor.system.systemManagement.base = 0x5_0000
        m.processor.modeDidChange()
        return m
    }

    /// What RSM has to bring back.
    private func describe(_ m: SystemMachine) -> [String] {
        let s = m.processor.system
        let registers = GeneralRegister.allCases.map { String(m.state[$0], radix: 16) }
        let segments = SegmentRegister.allCases.map { "\(s[$0]) \(m.state.segmentBase($0))" }
        return registers + segments + [
            "\(s.ldtr)", "\(s.tr)", "\(s.gdtr)", "\(s.idtr)", "\(s.cr0)", "\(s.cr3)", "\(s.cr4)", "\(s.efer)",
            "\(s.dr6)", "\(s.dr7)", "\(s.cpl)", "\(m.state.rip)", "\(m.state.rflags)", "\(s.nmiBlocked)",
            "\(s.activity)", "\(s.systemManagement)"
        ]
    }

    @Test(arguments: Mode.allCases, [false, true]) func roundTrip(mode: Mode, hasLongMode: Bool) throws {
        // Long mode cannot be saved by a processor that does not have it.
        if !hasLongMode, mode == .long || mode == .longUser { return }
        let m = try machine(mode)
        m.hasLongMode = hasLongMode
        let before = describe(m)
        try m.processor.enterSystemManagement(fromHalt: false)
        let inside = m.processor.system
        #expect(inside.systemManagement.isActive && inside.nmiBlocked && inside.cpl == 0)
        #expect(m.state.rip == 0x8000 && m.state.rflags == 2 && inside.dr7 == 0x400)
        #expect(inside.cs.selector == 0x5000 && inside.cs.base == 0x5_0000 && inside.cs.limit == ~0)
        #expect(inside.ds.selector == 0 && inside.ss.base == 0 && inside.ss.limit == ~0)
        #expect(inside.cr0 & 0x8000_000D == 0 && inside.cr4 == 0 && inside.efer == 0)
        #expect(inside.idtr.base == 0 && inside.idtr.limit == 0 && inside.gdtr.limit == m.processor.system.gdtr.limit)
        #expect(m.load(0x5_FEFC, as: UInt32.self) == (hasLongMode ? 0x2_0064 : 0x2_0000))
        // The other layout has no place for the upper eight.
        for register in GeneralRegister.allCases.prefix(hasLongMode ? 16 : 8) { m.state[register] = 0xBAD }
        #expect(m.execute("rsm", 0x0F, 0xAA) == nil)
        #expect(describe(m) == before)
        #expect(m.processor.system.modelSpecific.systemManagementInterruptCount == 1)
    }

    @Test func fieldsOfTheLongLayout() throws {
        let m = try machine(.long)
        try m.processor.enterSystemManagement(fromHalt: true)
        #expect(m.load(0x5_FFF8) as UInt64 == 0x1111_1111, "RAX")
        #expect(m.load(0x5_FF80) as UInt64 == 0x1111_1111 * 16, "R15")
        #expect(m.load(0x5_FF78) as UInt64 == 0x4003, "RIP")
        #expect(m.load(0x5_FF50) as UInt64 == 0x10_0000 && m.load(0x5_FF48) as UInt64 == 0x20, "CR3, CR4")
        #expect(m.load(0x5_FED0) as UInt64 == 0xD01, "EFER")
        #expect(m.load(0x5_FF00) as UInt32 == 0x5_0000, "SMBASE")
        #expect(m.load(0x5_FE10) as UInt16 == 8 && m.load(0x5_FE12, as: UInt16.self) & 0x20FF == 0x209B, "CS")
        #expect(m.load(0x5_FE68) as UInt64 == 0x1000 && m.load(0x5_FE88) as UInt64 == 0x2000, "GDTR, IDTR")
        #expect(m.load(0x5_FEC9) as UInt8 == 1, "halted")
        m.store(0x7_0000 as UInt32, at: 0x5_FF00)
        #expect(m.execute("rsm", 0x0F, 0xAA) == nil)
        #expect(m.processor.system.systemManagement.base == 0x7_0000 && m.processor.system.activity == .halted)
    }

    @Test func nonMaskableInterruptsStayBlocked() throws {
        let m = try machine(.protected)
        m.processor.system.nmiBlocked = true
        try m.processor.enterSystemManagement(fromHalt: false)
        #expect(m.processor.system.systemManagement.isInsideNMI)
        m.processor.system.nmiBlocked = false
        #expect(m.execute("rsm", 0x0F, 0xAA) == nil)
        #expect(!m.processor.system.nmiBlocked, "the handler's IRET lets NMIs in")
        #expect(!m.processor.system.systemManagement.isInsideNMI)
    }

    @Test func outsideTheModeRSMIsUndefined() throws {
        let m = try machine(.protected)
        #expect(m.execute("rsm", 0x0F, 0xAA) == .invalidOpcode)
    }

    /// Control registers that contradict each other, reserved bits, and debug registers that are too wide.
    @Test(arguments: [
        (0xFF58 as UInt64, 0x8000_0000 as UInt64), (0xFF58, 0x1_0000_0011), (0xFF58, 0x2000_0011), (0xFF48, 1 << 40),
        (0xFF48, 0), (0xFF50, 1 << 50), (0xFED0, 1 << 60), (0xFF60, 1 << 32), (0xFF68, 1 << 32)
    ]) func badStateShutsDown(offset: UInt64, value: UInt64) throws {
        let m = try machine(.long)
        try m.processor.enterSystemManagement(fromHalt: false)
        m.store(value, at: 0x5_0000 + offset)
        #expect(m.execute("rsm", 0x0F, 0xAA) == .shutdown)
        #expect(!m.processor.system.systemManagement.isActive)
    }

    @Test func anAreaWithoutMemoryIsNotLeft() throws {
        let m = try machine(.real)
        m.processor.system.systemManagement.base = 0x1000_0000
        try m.processor.enterSystemManagement(fromHalt: false)
        #expect(m.execute("rsm", 0x0F, 0xAA) == .notExecutable)
        #expect(m.processor.system.systemManagement.isActive)
    }
}
