import X86

/// What translated code and Swift tell each other about system registers; see ``SystemMirror``.
extension Processor {
    private func setMirror(_ register: SystemMirror, _ value: UInt64) {
        state.base.storeBytes(of: value, toByteOffset: register.offset, as: UInt64.self)
    }

    private func mirror(_ register: SystemMirror) -> UInt64 {
        state.base.load(fromByteOffset: register.offset, as: UInt64.self)
    }

    /// Puts the system registers where translated code finds them. To be called after everything that may have changed them.
    func mirrorSystem() {
        setMirror(.kernelGSBase, system.kernelGSBase)
        setMirror(.cr0, system.cr0)
        setMirror(.cr2, system.cr2)
        setMirror(.cr3, system.cr3)
        setMirror(.cr4, system.cr4)
        setMirror(.callTarget, system.lstar)
        setMirror(.keptFlags, ~(system.syscallMask | RFlags.resume))
        // The kernel's mode must not depend on the flags, and translated code clears all that live in the host.
        let cleared = RFlags.arithmetic | RFlags.alignmentCheck | RFlags.trap
        let isOn = system.efer & EFER.syscall != 0
        tlb.selectPrivilegeModes(
            privilegeModes, allowsCall: isOn && system.syscallMask & cleared == cleared, allowsReturn: isOn)
    }

    /// Takes over what translated code has changed by itself: the privilege level, GS bases, RFLAGS.AC. To be called first
    /// whenever translated code has left or asks for something.
    @inline(__always)
    func followTranslatedCode() {
        if mirror(.marks) != 0 { takeMarks() }
        followModeTag()
    }

    private func takeMarks() {
        let marks = mirror(.marks)
        setMirror(.marks, 0)
        if marks >> 32 != 0 {
            system.gs.base = state.segmentBase(.gs)
            system.kernelGSBase = mirror(.kernelGSBase)
        }
        switch SystemMirror.Transition(rawValue: UInt32(truncatingIfNeeded: marks)) {
        case .call: loadCallSegments(isLong: true)
        case .callReturn: loadReturnSegments(isLong: true)
        case nil, .some(.none): break
        }
    }
}
