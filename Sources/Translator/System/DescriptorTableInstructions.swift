import X86

// GDTR, IDTR, LDTR and TR.

extension Processor {
    /// CR4.UMIP keeps outer privilege levels from reading system registers.
    private func requireReadableSystemRegisters() throws(GuestFault) {
        if cpl != 0 && system.cr4 & CR4.userModeInstructionPrevention != 0 { throw .generalProtection() }
    }

    /// LGDT and LIDT. A 16-bit operand size gives the base 24 bits.
    func executeLoadTable(
        _ i: DecodedInstruction, _ table: WritableKeyPath<SystemRegisters, DescriptorTableRegister>
    ) throws(GuestFault) {
        try requirePrivilege()
        let operand = i.operand(0)
        let segment = operand.memory.segment
        let linear = linearAddress(operand.memory, of: i)
        let limit = UInt16(truncatingIfNeeded: try readData(linear, byteCount: 2, segment: segment))
        var base: UInt64
        if isCode64 {
            base = try readData(linear &+ 2, byteCount: 8, segment: segment)
            if !isCanonical(base) { throw .generalProtection() }
        } else {
            base = try readData((linear &+ 2) & 0xFFFF_FFFF, byteCount: 4, segment: segment)
            if i.operandWidth == 16 { base &= 0xFF_FFFF }
        }
        system[keyPath: table] = DescriptorTableRegister(base: base, limit: limit)
        advance(i)
    }

    /// SGDT and SIDT. All 32 bits of the base are stored whatever the operand size.
    func executeStoreTable(_ i: DecodedInstruction, _ register: DescriptorTableRegister) throws(GuestFault) {
        try requireReadableSystemRegisters()
        let operand = i.operand(0)
        let segment = operand.memory.segment
        let linear = linearAddress(operand.memory, of: i)
        let baseByteCount = isCode64 ? 8 : 4
        do {
            try probeWrite(linear, byteCount: 2 + baseByteCount)
        } catch {
            throw Self.attribute(error, to: segment)
        }
        try writeData(linear, UInt64(register.limit), byteCount: 2, segment: segment)
        let second = linear &+ 2
        try writeData(
            isCode64 ? second : second & 0xFFFF_FFFF, register.base, byteCount: baseByteCount, segment: segment)
        advance(i)
    }

    /// LLDT.
    func executeLoadLocalTable(_ i: DecodedInstruction) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        try requirePrivilege()
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(0), of: i))
        let segment = try localTable(selector) { code in .generalProtection(code) }
        system.ldtr = segment
        advance(i)
    }

    /// The contents of LDTR for `selector`; `invalid` makes the fault for a selector that names no LDT.
    func localTable(
        _ selector: UInt16, invalid: (UInt32) -> GuestFault
    ) throws(GuestFault) -> Segment {
        if Selector.isNull(selector) { return .null(selector: selector) }
        let code = Selector.index(selector)
        guard !Selector.isLocal(selector), let descriptor = try descriptor(selector),
            descriptor.systemType == .localDescriptorTable
        else { throw invalid(code) }
        let upper = try upperBase(selector, invalid: invalid)
        guard descriptor.isPresent else { throw .exception(.segmentNotPresent(code)) }
        var segment = descriptor.segment(selector: selector)
        segment.base |= upper
        return segment
    }

    /// Bits 63–32 of the base of a system segment, in place; zero outside long mode.
    private func upperBase(
        _ selector: UInt16, invalid: (UInt32) -> GuestFault
    ) throws(GuestFault) -> UInt64 {
        guard system.isLongModeActive else { return 0 }
        let code = Selector.index(selector)
        guard let upper = try upperHalf(selector), upper >> 40 & 31 == 0 else { throw invalid(code) }
        let base = upper << 32
        guard isCanonical(base) else { throw invalid(code) }
        return base
    }

    /// LTR.
    func executeLoadTask(_ i: DecodedInstruction) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        try requirePrivilege()
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(0), of: i))
        let code = Selector.index(selector)
        guard !Selector.isLocal(selector), let descriptor = try descriptor(selector) else {
            throw .generalProtection(code)
        }
        let type = descriptor.systemType
        guard type == .availableTaskState32 || type == .availableTaskState16 && !system.isLongModeActive else {
            throw .generalProtection(code)
        }
        let upper = try upperBase(selector) { code in .generalProtection(code) }
        guard descriptor.isPresent else { throw .exception(.segmentNotPresent(code)) }
        try setBusy(selector, true)
        var segment = descriptor.segment(selector: selector)
        segment.base |= upper
        segment.attributes |= 2
        system.tr = segment
        advance(i)
    }

    /// SLDT and STR.
    func executeStoreSelector(_ i: DecodedInstruction, _ selector: UInt16) throws(GuestFault) {
        guard usesDescriptors else { throw .invalidOpcode }
        try requireReadableSystemRegisters()
        try writeOperand(i.operand(0), of: i, UInt64(selector))
        advance(i)
    }

    /// SMSW: 16 bits to memory, CR0 as wide as the operand to a register.
    func executeStoreMachineStatus(_ i: DecodedInstruction) throws(GuestFault) {
        try requireReadableSystemRegisters()
        let operand = i.operand(0)
        let status = operand.kind == .memory ? system.cr0 & 0xFFFF : system.cr0
        try writeOperand(operand, of: i, status)
        advance(i)
    }
}
