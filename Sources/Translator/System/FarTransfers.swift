import X86

// JMP and CALL to another code segment: directly, through a call gate, or to another task.
//
// > Source: APM volume 2, section 4.9; Intel SDM volume 2, JMP and CALL.

extension Processor {
    /// JMP far and CALL far.
    func executeFarTransfer(_ i: DecodedInstruction, isCall: Bool) throws(GuestFault) {
        let (offset, selector) = try readFarPointer(i.operand(0), of: i)
        if !usesDescriptors { return try farTransferWithoutDescriptors(i, offset, selector, isCall: isCall) }
        let code = Selector.index(selector)
        guard let target = try descriptor(selector) else { throw .generalProtection(code) }
        if target.isCodeOrData { return try directTransfer(i, offset, selector, target, isCall: isCall) }

        let rpl = Selector.privilegeLevel(selector)
        let isLong = system.isLongModeActive
        switch target.systemType {
        case .callGate16 where !isLong, .callGate32:
            if target.privilegeLevel < cpl || target.privilegeLevel < rpl { throw .generalProtection(code) }
            try gateTransfer(i, selector, target, isCall: isCall)
        case .taskGate where !isLong:
            if target.privilegeLevel < cpl || target.privilegeLevel < rpl { throw .generalProtection(code) }
            if !target.isPresent { throw .exception(.segmentNotPresent(code)) }
            try switchTask(
                throughGate: GateDescriptor(low: target.rawValue).selector, isCall ? .call : .jump,
                returningTo: nextRIP(i), flags: state.rflags)
        case .availableTaskState16 where !isLong, .availableTaskState32 where !isLong,
            .busyTaskState16 where !isLong, .busyTaskState32 where !isLong:
            if target.privilegeLevel < cpl || target.privilegeLevel < rpl || Selector.isLocal(selector) {
                throw .generalProtection(code)
            }
            try switchTask(
                toAvailable: selector, target, isCall ? .call : .jump, returningTo: nextRIP(i), flags: state.rflags)
        default:
            throw .generalProtection(code)
        }
    }

    private func farTransferWithoutDescriptors(
        _ i: DecodedInstruction, _ offset: UInt64, _ selector: UInt16, isCall: Bool
    ) throws(GuestFault) {
        if isCall { try pushReturnAddress(nextRIP(i), slotByteCount: Int(i.operandWidth) / 8) }
        setSegment(.cs, plainSegment(.cs, selector: selector))
        state.rip = offset
        modeDidChange()
    }

    /// Pushes CS and `rip` on the current stack.
    private func pushReturnAddress(_ rip: UInt64, slotByteCount: Int) throws(GuestFault) {
        var frame = StackFrame(slotByteCount: slotByteCount)
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        let stack = currentStack
        let top = try write(frame, to: stack, at: state[.rsp], .current)
        state[.rsp] = stack.replacing(state[.rsp], with: top)
    }

    private func directTransfer(
        _ i: DecodedInstruction, _ offset: UInt64, _ selector: UInt16, _ target: SegmentDescriptor, isCall: Bool
    ) throws(GuestFault) {
        let code = Selector.index(selector)
        guard target.isCode else { throw .generalProtection(code) }
        let dpl = target.privilegeLevel
        let isAllowed = target.isConformingCode ? dpl <= cpl : dpl == cpl && Selector.privilegeLevel(selector) <= cpl
        if !isAllowed || hasInvalidSize(target) { throw .generalProtection(code) }
        if !target.isPresent { throw .exception(.segmentNotPresent(code)) }
        try checkOffset(offset, in: target)
        try markAccessed(selector, target)
        if isCall { try pushReturnAddress(nextRIP(i), slotByteCount: Int(i.operandWidth) / 8) }
        setSegment(.cs, target.segment(selector: selector & ~3 | UInt16(cpl)))
        state.rip = offset
        modeDidChange()
    }

    private func gateTransfer(
        _ i: DecodedInstruction, _ gateSelector: UInt16, _ descriptor: SegmentDescriptor, isCall: Bool
    ) throws(GuestFault) {
        let gateCode = Selector.index(gateSelector)
        let isLong = system.isLongModeActive
        var gate = GateDescriptor(low: descriptor.rawValue)
        if isLong {
            guard let upper = try upperHalf(gateSelector) else { throw .generalProtection(gateCode) }
            gate.high = upper
            if gate.upperType != 0 { throw .generalProtection(gateCode) }
        }
        if !gate.isPresent { throw .exception(.segmentNotPresent(gateCode)) }
        let selector = gate.selector
        let code = Selector.index(selector)
        guard let target = try self.descriptor(selector), target.isCode, target.privilegeLevel <= cpl else {
            throw .generalProtection(code)
        }
        if isLong && (!target.isLong || target.isDefault32) { throw .generalProtection(code) }
        let isInward = !target.isConformingCode && target.privilegeLevel < cpl
        if isInward && !isCall { throw .generalProtection(code) }
        if !target.isPresent { throw .exception(.segmentNotPresent(code)) }
        try checkOffset(gate.offset, in: target)
        try markAccessed(selector, target)

        let slotByteCount = isLong ? 8 : gate.kind == .call16 ? 2 : 4
        if isInward {
            let level = target.privilegeLevel
            if isLong {
                try pushInwardCall64(level, nextRIP(i))
            } else {
                try pushInwardCall(level, nextRIP(i), slotByteCount, parameterCount: gate.parameterCount)
            }
            system.cpl = level
        } else if isCall {
            try pushReturnAddress(nextRIP(i), slotByteCount: slotByteCount)
        }
        setSegment(.cs, target.segment(selector: selector & ~3 | UInt16(cpl)))
        state.rip = gate.offset
        modeDidChange()
    }

    /// Switches to the stack of the inner `level` and pushes the old stack, `parameterCount` slots of it, CS and `rip`.
    private func pushInwardCall(
        _ level: UInt8, _ rip: UInt64, _ slotByteCount: Int, parameterCount: Int
    ) throws(GuestFault) {
        let (segment, pointer) = try innerStack(privilegeLevel: level)
        var frame = StackFrame(slotByteCount: slotByteCount)
        frame.push(UInt64(system.ss.selector))
        frame.push(state[.rsp])
        for index in (0..<parameterCount).reversed() {
            frame.push(try peek(index * slotByteCount, byteCount: slotByteCount))
        }
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        let stack = StackGeometry(legacy: segment)
        let top = try write(
            frame, to: stack, at: pointer, stackPrivilege(of: level), selector: segment.selector & ~3)
        setSegment(.ss, segment)
        state[.rsp] = stack.replacing(pointer, with: top)
    }

    private func pushInwardCall64(_ level: UInt8, _ rip: UInt64) throws(GuestFault) {
        let pointer = try readTaskState64(TaskState.stackPointerOffset64(privilegeLevel: level))
        var frame = StackFrame(slotByteCount: 8)
        frame.push(UInt64(system.ss.selector))
        frame.push(state[.rsp])
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        if !isCanonical(pointer &- 1) || !isCanonical(pointer &- UInt64(frame.byteCount)) { throw .exception(.stack()) }
        let top = try write(frame, to: .flat64, at: pointer, stackPrivilege(of: level))
        setSegment(.ss, .null(selector: UInt16(level), privilegeLevel: level))
        state[.rsp] = top
    }

    /// Long mode reserves code segments that are both 64- and 32-bit.
    func hasInvalidSize(_ code: SegmentDescriptor) -> Bool {
        system.isLongModeActive && code.isLong && code.isDefault32
    }

    /// Fails with #GP(0) if execution cannot go on at `offset` in `code`.
    func checkOffset(_ offset: UInt64, in code: SegmentDescriptor) throws(GuestFault) {
        let isValid =
            system.isLongModeActive && code.isLong ? isCanonical(offset) : offset <= UInt64(code.limit)
        if !isValid { throw .generalProtection() }
    }
}
