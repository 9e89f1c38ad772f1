import X86

// SYSCALL, SYSRET, SYSENTER and SYSEXIT.
//
// Where vendors differ, both are accepted: SYSCALL works in compatibility mode (AMD), SYSENTER in long mode (Intel).
// > Source: APM volume 3, SYSCALL and SYSRET; Intel SDM volume 2, the same and SYSENTER, SYSEXIT.

extension Processor {
    func executeSyscall(_ i: DecodedInstruction) throws(GuestFault) {
        guard system.efer & EFER.syscall != 0, system.isProtectedMode else { throw .invalidOpcode }
        state[.rcx] = nextRIP(i)
        if system.isLongModeActive {
            let flags = state.rflags & ~RFlags.resume
            state[.r11] = flags
            state.rip = isCode64 ? system.lstar : system.cstar
            state.rflags = flags & ~system.syscallMask
            loadCallSegments(isLong: true)
        } else {
            state.rip = system.star & 0xFFFF_FFFF
            state.systemFlags &= ~(RFlags.virtual8086 | RFlags.interrupt | RFlags.resume)
            loadCallSegments(isLong: false)
        }
        modeDidChange()
    }

    func executeSysret(_ i: DecodedInstruction) throws(GuestFault) {
        guard system.efer & EFER.syscall != 0 else { throw .invalidOpcode }
        guard system.isProtectedMode, cpl == 0 else { throw .generalProtection() }
        if system.isLongModeActive {
            // RF and VM are cleared.
            state.rflags = state[.r11] & 0x3C_7FD7
        } else {
            state.systemFlags |= RFlags.interrupt
        }
        let isLong = system.isLongModeActive && i.operandWidth == 64
        state.rip = isLong ? state[.rcx] : state[.rcx] & 0xFFFF_FFFF
        loadReturnSegments(isLong: isLong)
        modeDidChange()
        // Unlike IRET, a trap flag that SYSRET loads stops before the first instruction there.
        if state.systemFlags & RFlags.trap != 0 { system.pendingEvent = PendingEvent(.debug(DebugRegister.singleStep)) }
    }

    func executeSysenter(_ i: DecodedInstruction) throws(GuestFault) {
        let selector = UInt16(truncatingIfNeeded: system.sysenterCS) & ~3
        guard system.isProtectedMode, selector != 0 else { throw .generalProtection() }
        let isLong = system.isLongModeActive
        state.systemFlags &= ~(RFlags.virtual8086 | RFlags.interrupt | RFlags.resume)
        state[.rsp] = isLong ? system.sysenterESP : system.sysenterESP & 0xFFFF_FFFF
        state.rip = isLong ? system.sysenterEIP : system.sysenterEIP & 0xFFFF_FFFF
        loadFlat(codeSelector: selector, level: 0, isLong: isLong)
        modeDidChange()
    }

    func executeSysexit(_ i: DecodedInstruction) throws(GuestFault) {
        let base = UInt16(truncatingIfNeeded: system.sysenterCS) & ~3
        guard system.isProtectedMode, base != 0, cpl == 0 else { throw .generalProtection() }
        let isLong = system.isLongModeActive && i.operandWidth == 64
        if isLong && !(isCanonical(state[.rdx]) && isCanonical(state[.rcx])) { throw .generalProtection() }
        state.rip = isLong ? state[.rdx] : state[.rdx] & 0xFFFF_FFFF
        state[.rsp] = isLong ? state[.rcx] : state[.rcx] & 0xFFFF_FFFF
        loadFlat(codeSelector: (base &+ (isLong ? 32 : 16)) | 3, level: 3, isLong: isLong)
        modeDidChange()
    }

    /// What SYSCALL does to CS, SS and the privilege level.
    func loadCallSegments(isLong: Bool) {
        loadFlat(codeSelector: UInt16(truncatingIfNeeded: system.star >> 32) & ~3, level: 0, isLong: isLong)
    }

    /// What SYSRET does to CS, SS and the privilege level.
    func loadReturnSegments(isLong: Bool) {
        let base = UInt16(truncatingIfNeeded: system.star >> 48)
        loadFlat(
            codeSelector: (isLong ? base &+ 16 : base) | 3, level: 3, isLong: isLong, stackSelector: (base &+ 8) | 3)
    }

    /// Loads CS and SS with flat segments, without looking at descriptors. SS comes after CS in the table.
    private func loadFlat(codeSelector: UInt16, level: UInt8, isLong: Bool, stackSelector: UInt16? = nil) {
        setSegment(.cs, .flatCode(selector: codeSelector, privilegeLevel: level, isLong: isLong))
        setSegment(.ss, .flatStack(selector: stackSelector ?? codeSelector &+ 8, privilegeLevel: level))
        system.cpl = level
    }
}
