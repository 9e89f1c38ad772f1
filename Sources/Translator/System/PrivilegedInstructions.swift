import CZydis
import X86

// Privileged instructions that stand alone: interrupts on and off, TLB and cache control, segment bases, hypercalls.

extension Processor {
    func executeHalt(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        system.activity = .halted
        advance(i)
    }

    // MARK: Interrupts

    /// CLI.
    func executeClearInterrupt(_ i: DecodedInstruction) throws(GuestFault) {
        state.systemFlags &= ~(try interruptFlag())
        advance(i)
    }

    /// STI. If interrupts were off, they stay off for one more instruction.
    func executeSetInterrupt(_ i: DecodedInstruction) throws(GuestFault) {
        let flag = try interruptFlag()
        if flag == RFlags.virtualInterrupt {
            if state.systemFlags & RFlags.virtualInterruptPending != 0 { throw .generalProtection() }
        } else if state.systemFlags & RFlags.interrupt == 0 {
            system.interruptShadow = true
        }
        state.systemFlags |= flag
        advance(i)
    }

    /// The flag that CLI and STI change: IF, or VIF where an extension virtualises it.
    private func interruptFlag() throws(GuestFault) -> UInt64 {
        if !system.isProtectedMode || (isVirtual8086 ? iopl == 3 : cpl <= iopl) { return RFlags.interrupt }
        let extensions = isVirtual8086 ? CR4.virtual8086Extensions : CR4.protectedVirtualInterrupts
        guard cpl == 3, system.cr4 & extensions != 0 else { throw .generalProtection() }
        return RFlags.virtualInterrupt
    }

    // MARK: Supervisor-mode access prevention

    /// CLAC and STAC.
    func executeAccessCheck(_ i: DecodedInstruction, isOn: Bool) throws(GuestFault) {
        let isOffered =
            system.cr4 & CR4.supervisorAccessPrevention != 0
            || platform.cpuid(function: 7, index: 0).ebx >> 20 & 1 != 0
        guard isOffered, cpl == 0 else { throw .invalidOpcode }
        let flags = state.systemFlags & ~RFlags.alignmentCheck
        state.systemFlags = isOn ? flags | RFlags.alignmentCheck : flags
        advance(i)
        modeDidChange()
    }

    // MARK: Segment bases

    func executeSwapGS(_ i: DecodedInstruction) throws(GuestFault) {
        guard isCode64 else { throw .invalidOpcode }
        try requirePrivilege()
        let old = system.gs.base
        system.gs.base = system.kernelGSBase
        system.kernelGSBase = old
        state.setSegmentBase(.gs, system.gs.base)
        advance(i)
    }

    /// RDFSBASE and RDGSBASE.
    func executeReadBase(_ i: DecodedInstruction, _ register: SegmentRegister) throws(GuestFault) {
        guard isCode64, system.cr4 & CR4.fsgsbase != 0 else { throw .invalidOpcode }
        writeRegister(i.operand(0).register, system[register].base)
        advance(i)
    }

    /// WRFSBASE and WRGSBASE.
    func executeWriteBase(_ i: DecodedInstruction, _ register: SegmentRegister) throws(GuestFault) {
        guard isCode64, system.cr4 & CR4.fsgsbase != 0 else { throw .invalidOpcode }
        let base = readRegister(i.operand(0).register)
        if !isCanonical(base) { throw .generalProtection() }
        setBase(register, base)
        advance(i)
    }

    /// Changes the base of FS or GS and nothing else of it; also what WRMSR of FS.base and GS.base does.
    public func setBase(_ register: SegmentRegister, _ base: UInt64) {
        system[register].base = base
        state.setSegmentBase(register, base)
    }

    // MARK: Translations and caches

    func executeInvalidatePage(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        let linear = linearAddress(i.operand(0).memory, of: i)
        let next = nextRIP(i)
        if !isCode64 || isCanonical(linear) { flushTLB(.page(linear)) }
        state.rip = next
    }

    /// INVPCID: the kind in the first operand, context and address in memory.
    func executeInvalidateContext(_ i: DecodedInstruction) throws(GuestFault) {
        guard platform.cpuid(function: 7, index: 0).ebx >> 10 & 1 != 0 else { throw .invalidOpcode }
        try requirePrivilege()
        let kind = readRegister(i.operand(0).register)
        let memory = i.operand(1).memory
        let address = linearAddress(memory, of: i)
        let context = try readData(address, byteCount: 8, segment: memory.segment)
        let second = address &+ 8
        let linear = try readData(isCode64 ? second : second & 0xFFFF_FFFF, byteCount: 8, segment: memory.segment)
        if kind > 3 || context >> 12 != 0 { throw .generalProtection() }
        if kind <= 1 && context != 0 && system.cr4 & CR4.processContextIdentifiers == 0 { throw .generalProtection() }
        let next = nextRIP(i)
        let pcid = UInt16(context)
        switch kind {
        case 0:
            if !isCanonical(linear) { throw .generalProtection() }
            flushTLB(.pageInContext(linear, pcid: pcid))
        case 1: flushTLB(.context(pcid: pcid))
        case 2: flushTLB(.all)
        default: flushTLB(.allNonGlobal)
        }
        state.rip = next
    }

    /// INVD and WBINVD: the host's caches are coherent, there is nothing to write back.
    func executeCacheControl(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        advance(i)
    }

    // MARK: Hypercalls

    /// VMCALL and VMMCALL. That of another vendor is first replaced in the guest's memory, and executed again.
    func executeHypercall(_ i: DecodedInstruction) throws(GuestFault) {
        guard system.isProtectedMode else { throw .invalidOpcode }
        let isVMCALL = i.mnemonic == ZYDIS_MNEMONIC_VMCALL
        if let native = platform.hypercallInstruction, (native == .vmcall) != isVMCALL {
            guard platform.quirks.contains(.patchedHypercalls) else { throw .invalidOpcode }
            return try patchHypercall(native)
        }
        let mask: UInt64 = isCode64 ? ~0 : 0xFFFF_FFFF
        let next = nextRIP(i)
        let result: UInt64
        if cpl == 0 {
            result = platform.hypercall(
                state[.rax] & mask, state[.rbx] & mask, state[.rcx] & mask, state[.rdx] & mask, state[.rsi] & mask)
        } else {
            // −KVM_EPERM.
            result = UInt64(bitPattern: -1)
        }
        state[.rax] = result & mask
        state.rip = next
    }

    private func patchHypercall(_ native: HypercallInstruction) throws(GuestFault) {
        let code: InlineArray<3, UInt8> = [0x0F, 0x01, native == .vmcall ? 0xC1 : 0xD9]
        let address = try currentLinear()
        var bytes = code
        let span = bytes.mutableSpan
        try span.withUnsafeBytes { (buffer) throws(GuestFault) in try writeBytes(address, from: buffer) }
    }

    // MARK: Monitoring

    /// MONITOR and MWAIT, which wait for nothing: as if somebody wrote to the monitored line at once.
    func executeMonitor(_ i: DecodedInstruction) throws(GuestFault) {
        let isOffered = platform.cpuid(function: 1, index: 0).ecx >> 3 & 1 != 0
        guard cpl == 0, isOffered || platform.quirks.contains(.toleratedMonitor) else { throw .invalidOpcode }
        let extensions = state[.rcx] & 0xFFFF_FFFF
        if i.mnemonic == ZYDIS_MNEMONIC_MONITOR {
            if extensions != 0 { throw .generalProtection() }
            let mask: UInt64 = isCode64 && i.addressWidth == 64 ? ~0 : i.addressWidth == 16 ? 0xFFFF : 0xFFFF_FFFF
            let offset = state[.rax] & mask
            _ = try hostPointer(isCode64 ? offset : systemAddress(offset &+ state.segmentBase(.ds)), forWriting: false)
        } else if extensions & ~1 != 0 {
            throw .generalProtection()
        }
        advance(i)
    }
}
