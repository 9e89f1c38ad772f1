import CZydis
import MMU
import X86

// Control registers, EFER and XCR0. The setters serve instructions; `replaceControlRegisters` serves a client that sets
// all at once.

extension Processor {
    /// Writes CR0 as MOV does: long mode becomes active or inactive with paging.
    public func setCR0(_ value: UInt64) throws(GuestFault) {
        let old = system.cr0
        guard ControlRegisterRules.isValidCR0(value),
            ControlRegisterRules.allowsCR0(
                value, over: old, cr4: system.cr4, efer: system.efer, hasLongCode: system.cs.isLong)
        else { throw .generalProtection() }
        let new = ControlRegisterRules.effectiveCR0(value)
        let changed = old ^ new
        if changed & CR0.paging != 0 { try checkPointers(cr0: new, cr3: system.cr3, cr4: system.cr4) }
        system.cr0 = new
        if changed & CR0.paging != 0 && system.efer & EFER.longModeEnable != 0 {
            system.efer ^= EFER.longModeActive
            mirrorSegmentBases()
        }
        if changed & (CR0.paging | CR0.writeProtect | CR0.protection) != 0 { flushTLB(.all) }
        modeDidChange()
    }

    /// Writes CR3 as MOV does. With PCIDs, bit 63 keeps the context's translations.
    public func setCR3(_ value: UInt64) throws(GuestFault) {
        let keep: UInt64 = 1 << 63
        let hasContexts = system.cr4 & CR4.processContextIdentifiers != 0
        let new = hasContexts ? value & ~keep : value
        // CPUID is asked only for addresses that not every processor has.
        if new >> 36 != 0 && !ControlRegisterRules.isValidCR3(new, physicalAddressBits: physicalAddressBits) {
            throw .generalProtection()
        }
        try checkPointers(cr0: system.cr0, cr3: new, cr4: system.cr4)
        system.cr3 = new
        flushTLB(.contextSwitch(preserving: hasContexts && value & keep != 0))
    }

    /// Writes CR4 as MOV does.
    public func setCR4(_ value: UInt64) throws(GuestFault) {
        let old = system.cr4
        guard
            ControlRegisterRules.allowsCR4(
                value, over: old, allowed: cr4Bits, cr3: system.cr3, efer: system.efer)
        else { throw .generalProtection() }
        let paging =
            CR4.pageSizeExtension | CR4.physicalAddressExtension | CR4.globalPages | CR4.processContextIdentifiers
            | CR4.supervisorExecutionPrevention | CR4.supervisorAccessPrevention
        if (old ^ value) & paging != 0 { try checkPointers(cr0: system.cr0, cr3: system.cr3, cr4: value) }
        system.cr4 = value
        if (old ^ value) & paging != 0 {
            flushTLB(.all)
            // With PCIDs going on or off the number of the current context changes.
            if (old ^ value) & CR4.processContextIdentifiers != 0 { flushTLB(.contextSwitch(preserving: false)) }
        }
        modeDidChange()
    }

    /// Fails with #GP(0) if paging is PAE's with these registers and its pointer table cannot be loaded.
    private func checkPointers(cr0: UInt64, cr3: UInt64, cr4: UInt64) throws(GuestFault) {
        try checkPointers(cr0: cr0, cr3: cr3, cr4: cr4, efer: system.efer)
    }

    /// As the other, with another EFER.
    func checkPointers(cr0: UInt64, cr3: UInt64, cr4: UInt64, efer: UInt64) throws(GuestFault) {
        let context = PagingContext(
            cr0: cr0, cr3: cr3, cr4: cr4, efer: efer, isSystemManagement: system.systemManagement.isActive)
        guard context.isPaging, cr4 & CR4.physicalAddressExtension != 0, efer & EFER.longModeEnable == 0 else {
            return
        }
        guard let areValid = memory.withReadSection({ walk.hasValidPointers(context) }) else {
            throw .hostMemory(cr3 & 0xFFFF_FFE0)
        }
        if !areValid { throw .generalProtection() }
    }

    /// Writes EFER as WRMSR does: LMA is kept.
    public func setEFER(_ value: UInt64) throws(GuestFault) {
        let old = system.efer
        let extended = platform.cpuid(function: 0x8000_0001, index: 0)
        guard
            ControlRegisterRules.allowsEFER(
                value, over: old, allowed: ControlRegisterRules.eferBits(extendedEDX: extended.edx), cr0: system.cr0)
        else { throw .generalProtection() }
        system.efer = value & ~EFER.longModeActive | old & EFER.longModeActive
        if (old ^ system.efer) & EFER.noExecute != 0 { flushTLB(.all) }
        modeDidChange()
    }

    /// Writes XCR0 as XSETBV does.
    public func setXCR0(_ value: UInt64) throws(GuestFault) {
        let leaf = platform.cpuid(function: 0xD, index: 0)
        let supported = UInt64(leaf.edx) << 32 | UInt64(leaf.eax)
        guard ControlRegisterRules.isValidXCR0(value, supported: supported) else { throw .generalProtection() }
        system.xcr0 = value
        modeDidChange()
    }

    /// Gives CR0, CR2, CR3, CR4 and EFER the values a client chose, which go together
    /// (``ControlRegisterRules/areConsistent(cr0:cr4:efer:)``).
    ///
    /// Segments have to be set first (see ``setSegment(_:_:)``).
    public func replaceControlRegisters(cr0: UInt64, cr2: UInt64, cr3: UInt64, cr4: UInt64, efer: UInt64) {
        system.cr2 = cr2
        loadControlRegisters(cr0: cr0, cr3: cr3, cr4: cr4, efer: efer)
        // The client may have written the tables as well, which nobody catches.
        if let shadow, shadow.mmu.tracksFrames { shadow.mmu.zapAll {} }
    }

    /// Gives CR0, CR3, CR4 and EFER values that go together, and forgets what was translated under the old ones.
    ///
    /// Segments and the address space have to be set first.
    func loadControlRegisters(cr0: UInt64, cr3: UInt64, cr4: UInt64, efer: UInt64) {
        system.cr0 = ControlRegisterRules.effectiveCR0(cr0)
        system.cr3 = cr3
        system.cr4 = cr4
        system.efer = efer
        mirrorSegmentBases()
        flushTLB(.all)
        flushTLB(.contextSwitch(preserving: false))
        modeDidChange()
    }

    /// The client gave the platform other CPUID leaves.
    public func cpuidDidChange() {
        walk.physicalAddressBits = physicalAddressBits
        walk.flush()
    }

    var physicalAddressBits: UInt64 {
        let bits = UInt64(platform.cpuid(function: 0x8000_0008, index: 0).eax & 0xFF)
        return bits == 0 ? 36 : min(bits, 52)
    }

    /// The bits of CR4 that exist on this processor.
    var cr4Bits: UInt64 {
        let leaf1 = platform.cpuid(function: 1, index: 0)
        let leaf7 = platform.cpuid(function: 7, index: 0)
        return ControlRegisterRules.cr4Bits(
            leaf1ECX: leaf1.ecx, leaf1EDX: leaf1.edx, leaf7EBX: leaf7.ebx, leaf7ECX: leaf7.ecx)
    }
}

// MARK: Instructions

extension Processor {
    /// MOV from a control register.
    func executeMoveFromControl(_ i: DecodedInstruction) throws(GuestFault) {
        let value: UInt64
        switch i.operand(1).register {
        case ZYDIS_REGISTER_CR0: value = system.cr0
        case ZYDIS_REGISTER_CR2: value = system.cr2
        case ZYDIS_REGISTER_CR3: value = system.cr3
        case ZYDIS_REGISTER_CR4: value = system.cr4
        case ZYDIS_REGISTER_CR8: value = UInt64(platform.taskPriority)
        default: throw .invalidOpcode
        }
        try requirePrivilege()
        writeRegister(i.operand(0).register, value)
        advance(i)
    }

    /// MOV to a control register.
    func executeMoveToControl(_ i: DecodedInstruction) throws(GuestFault) {
        let register = i.operand(0).register
        switch register {
        case ZYDIS_REGISTER_CR0, ZYDIS_REGISTER_CR2, ZYDIS_REGISTER_CR3, ZYDIS_REGISTER_CR4, ZYDIS_REGISTER_CR8: break
        default: throw .invalidOpcode
        }
        try requirePrivilege()
        let value = readRegister(i.operand(1).register)
        let next = nextRIP(i)
        switch register {
        case ZYDIS_REGISTER_CR0: try setCR0(value)
        case ZYDIS_REGISTER_CR2: system.cr2 = value
        case ZYDIS_REGISTER_CR3: try setCR3(value)
        case ZYDIS_REGISTER_CR4: try setCR4(value)
        default:
            if value > 15 { throw .generalProtection() }
            platform.taskPriority = UInt8(value)
        }
        state.rip = next
    }

    /// CLTS.
    func executeClearTaskSwitched(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        system.cr0 &= ~CR0.taskSwitched
        advance(i)
        modeDidChange()
    }

    /// LMSW: the low four bits of CR0; PE can be set but not cleared.
    func executeLoadMachineStatus(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        let status = try readOperand(i.operand(0), of: i) & 0xF | system.cr0 & CR0.protection
        let next = nextRIP(i)
        try setCR0(system.cr0 & ~0xF | status)
        state.rip = next
    }

    /// XGETBV.
    func executeGetExtendedControl(_ i: DecodedInstruction) throws(GuestFault) {
        guard system.cr4 & CR4.xsave != 0 else { throw .invalidOpcode }
        let index = UInt32(truncatingIfNeeded: state[.rcx])
        // Register 1 tells which components are in use: all that are enabled may be.
        let hasInUse = index == 1 && platform.cpuid(function: 0xD, index: 1).eax & 4 != 0
        guard index == 0 || hasInUse else { throw .generalProtection() }
        state[.rax] = system.xcr0 & 0xFFFF_FFFF
        state[.rdx] = system.xcr0 >> 32
        advance(i)
    }

    /// XSETBV.
    func executeSetExtendedControl(_ i: DecodedInstruction) throws(GuestFault) {
        guard system.cr4 & CR4.xsave != 0 else { throw .invalidOpcode }
        try requirePrivilege()
        guard state[.rcx] & 0xFFFF_FFFF == 0 else { throw .generalProtection() }
        try setXCR0(state[.rdx] << 32 | state[.rax] & 0xFFFF_FFFF)
        advance(i)
    }
}
