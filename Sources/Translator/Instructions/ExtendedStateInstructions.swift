import X86

// FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR, LDMXCSR and STMXCSR.

extension Processor {
    func executeFXSave(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        let linear = try alignedAddress(i, to: 16)
        try withImage(linear, byteCount: ExtendedState.legacyByteCount, forWriting: true) { (image) in
            ExtendedState.saveX87(state, to: image)
            ExtendedState.saveMXCSR(state, to: image)
            ExtendedState.saveXMM(state, to: image, registerCount: legacyXMMCount)
        }
        advance(i)
    }

    func executeFXRestore(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        let linear = try alignedAddress(i, to: 16)
        try withImage(linear, byteCount: ExtendedState.legacyByteCount, forWriting: false) {
            (image) throws(GuestFault) in
            try ExtendedState.restoreLegacy(state, from: image, xmmCount: legacyXMMCount)
        }
        advance(i)
    }

    func executeXSave(_ i: DecodedInstruction, isOptimized: Bool) throws(GuestFault) {
        try requireXSave()
        let linear = try alignedAddress(i, to: 64)
        let requested = requestedComponents
        try withImage(linear, byteCount: ExtendedState.byteCount(requested), forWriting: true) { (image) in
            ExtendedState.save(
                state, to: image, requested: requested, registerCount: vectorRegisterCount, isOptimized: isOptimized)
        }
        advance(i)
    }

    func executeXRestore(_ i: DecodedInstruction) throws(GuestFault) {
        try requireXSave()
        let linear = try alignedAddress(i, to: 64)
        let requested = requestedComponents
        try withImage(linear, byteCount: ExtendedState.byteCount(requested), forWriting: false) {
            (image) throws(GuestFault) in
            try ExtendedState.restore(
                state, from: image, requested: requested, enabled: system.xcr0, registerCount: vectorRegisterCount)
        }
        advance(i)
    }

    /// LDMXCSR and VLDMXCSR.
    func executeLoadMXCSR(_ i: DecodedInstruction) throws(GuestFault) {
        try requireVector(i)
        let value = UInt32(truncatingIfNeeded: try readOperand(i.operand(0), of: i))
        if value & ~ExtendedState.mxcsrMask != 0 { throw .generalProtection() }
        state.mxcsr = value
        advance(i)
    }

    /// STMXCSR and VSTMXCSR.
    func executeStoreMXCSR(_ i: DecodedInstruction) throws(GuestFault) {
        try requireVector(i)
        try writeOperand(i.operand(0), of: i, UInt64(state.mxcsr))
        advance(i)
    }
}

extension Processor {
    /// XMM registers that exist in the current mode.
    private var vectorRegisterCount: Int { system.is64BitMode ? 16 : 8 }

    /// XMM registers that FXSAVE handles: without CR4.OSFXSR, none.
    private var legacyXMMCount: Int { system.cr4 & CR4.fxsave != 0 ? vectorRegisterCount : 0 }

    /// The components that EDX:EAX asks for and XCR0 allows.
    private var requestedComponents: UInt64 {
        (state[.rdx] << 32 | state[.rax] & 0xFFFF_FFFF) & system.xcr0
    }

    /// The address of the memory operand, which is operand 0.
    private func alignedAddress(_ i: DecodedInstruction, to alignment: UInt64) throws(GuestFault) -> UInt64 {
        let linear = linearAddress(i.operand(0).memory, of: i)
        if linear & (alignment - 1) != 0 { throw .generalProtection() }
        return linear
    }

    /// Gives `body` the `byteCount` bytes (at most 832) at `linear` as a copy, which is written back `forWriting`.
    func withImage(
        _ linear: UInt64, byteCount: Int, forWriting: Bool,
        _ body: (UnsafeMutableRawPointer) throws(GuestFault) -> Void
    ) throws(GuestFault) {
        if forWriting { try probeWrite(linear, byteCount: byteCount) }
        var copy = InlineArray<104, UInt64>(repeating: 0)
        try withUnsafeMutableBytes(of: &copy) { (bytes) throws(GuestFault) in
            // Bytes that the instruction does not write keep their values.
            let part = UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount])
            try readBytes(linear, into: part)
            // SAFETY: the buffer is not empty, so it has an address, and `body` stays within `byteCount` bytes.
            try body(part.baseAddress!)
            if forWriting { try writeBytes(linear, from: UnsafeRawBufferPointer(part)) }
        }
    }

    /// Fails unless x87 instructions can be executed.
    func requireX87() throws(GuestFault) {
        if system.cr0 & (CR0.emulation | CR0.taskSwitched) != 0 { throw .exception(.deviceNotAvailable) }
    }

    /// Fails if an unmasked x87 exception is waiting.
    func requireNoPendingX87Exception() throws(GuestFault) {
        let status = state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self)
        if status & 0x80 != 0 { throw .exception(.floatingPoint) }
    }

    private func requireXSave() throws(GuestFault) {
        if system.cr4 & CR4.xsave == 0 { throw .invalidOpcode }
        if system.cr0 & CR0.taskSwitched != 0 { throw .exception(.deviceNotAvailable) }
    }

    /// Fails unless `i`, an SSE or AVX instruction, can be executed.
    func requireVector(_ i: DecodedInstruction) throws(GuestFault) {
        if i.encoding == .vex {
            let needed = ExtendedState.sse | ExtendedState.avx
            guard usesDescriptors, system.cr4 & CR4.xsave != 0, system.xcr0 & needed == needed else {
                throw .invalidOpcode
            }
        } else if system.cr0 & CR0.emulation != 0 || system.cr4 & CR4.fxsave == 0 {
            throw .invalidOpcode
        }
        if system.cr0 & CR0.taskSwitched != 0 { throw .exception(.deviceNotAvailable) }
    }
}
