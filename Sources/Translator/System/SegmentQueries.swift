import X86

// LAR, LSL, VERR, VERW and ARPL: they look at descriptors and answer in ZF.

extension Processor {
    private func setZero(_ isSet: Bool) {
        let flags = state.arithmeticFlags & ~RFlags.zero
        state.arithmeticFlags = isSet ? flags | RFlags.zero : flags
    }

    /// The descriptor for `selector` if the current privilege level and the selector's may see it.
    private func visibleDescriptor(_ selector: UInt16) throws(GuestFault) -> SegmentDescriptor? {
        guard usesDescriptors else { throw .invalidOpcode }
        guard let descriptor = try descriptor(selector) else { return nil }
        if descriptor.isConformingCode { return descriptor }
        let dpl = descriptor.privilegeLevel
        return dpl >= cpl && dpl >= Selector.privilegeLevel(selector) ? descriptor : nil
    }

    /// LAR: the access rights, with the selector in the second operand.
    func executeLoadAccessRights(_ i: DecodedInstruction) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(1), of: i))
        let isLong = system.isLongModeActive
        if let descriptor = try visibleDescriptor(selector),
            descriptor.isCodeOrData || descriptor.systemType?.hasAccessRights(inLongMode: isLong) == true
        {
            writeRegister(i.operand(0).register, descriptor.rawValue >> 32 & 0xF0_FF00)
            setZero(true)
        } else {
            setZero(false)
        }
        advance(i)
    }

    /// LSL: the limit in bytes.
    func executeLoadSegmentLimit(_ i: DecodedInstruction) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(1), of: i))
        let isLong = system.isLongModeActive
        if let descriptor = try visibleDescriptor(selector),
            descriptor.isCodeOrData || descriptor.systemType?.hasLimit(inLongMode: isLong) == true
        {
            writeRegister(i.operand(0).register, UInt64(descriptor.limit))
            setZero(true)
        } else {
            setZero(false)
        }
        advance(i)
    }

    /// VERR and VERW.
    func executeVerify(_ i: DecodedInstruction, forWriting: Bool) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(0), of: i))
        let descriptor = try visibleDescriptor(selector)
        setZero(forWriting ? descriptor?.isWritableData == true : descriptor?.isReadable == true)
        advance(i)
    }

    /// ARPL: raises the requester privilege level of the first operand to that of the second.
    func executeAdjustPrivilegeLevel(_ i: DecodedInstruction) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        let target = try readOperand(i.operand(0), of: i) & 0xFFFF
        let level = try readOperand(i.operand(1), of: i) & 3
        if target & 3 < level {
            try writeOperand(i.operand(0), of: i, target & ~3 | level)
            setZero(true)
        } else {
            setZero(false)
        }
        advance(i)
    }
}
