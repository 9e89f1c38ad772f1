import X86

// RET far and IRET.
//
// > Source: APM volume 2, sections 4.9 and 8.7 to 8.9; Intel SDM volume 2, RET and IRET.

extension Processor {
    /// RET far, with an immediate that releases that many bytes of parameters.
    func executeFarReturn(_ i: DecodedInstruction) throws(GuestFault) {
        let size = Int(i.operandWidth) / 8
        let released = i.operand(0).kind == .immediate ? i.operand(0).immediate & 0xFFFF : 0
        if usesDescriptors {
            try returnWithDescriptors(size, released: released, isInterruptReturn: false)
        } else {
            let rip = try peek(0, byteCount: size)
            let selector = UInt16(truncatingIfNeeded: try peek(size, byteCount: size))
            releaseStack(UInt64(2 * size) &+ released)
            setSegment(.cs, plainSegment(.cs, selector: selector))
            state.rip = rip
        }
        modeDidChange()
    }

    /// IRET, IRETD and IRETQ.
    func executeInterruptReturn(_ i: DecodedInstruction) throws(GuestFault) {
        let size = Int(i.operandWidth) / 8
        if !usesDescriptors {
            try interruptReturnWithoutDescriptors(size)
        } else if state.systemFlags & RFlags.nestedTask != 0 {
            if system.isLongModeActive { throw .generalProtection() }
            try returnFromTask(returningTo: nextRIP(i))
        } else {
            try returnWithDescriptors(size, released: 0, isInterruptReturn: true)
        }
        if system.nmiBlocked {
            system.nmiBlocked = false
            // The next one may wait already.
            raiseAttention()
        }
        modeDidChange()
    }

    private func releaseStack(_ byteCount: UInt64) {
        let stack = currentStack
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ byteCount)
    }

    // MARK: Real and virtual-8086 mode

    private func interruptReturnWithoutDescriptors(_ size: Int) throws(GuestFault) {
        let hasExtensions = system.cr4 & CR4.virtual8086Extensions != 0
        if isVirtual8086 && iopl < 3 && !(hasExtensions && size == 2) { throw .generalProtection() }
        let rip = try peek(0, byteCount: size)
        let selector = UInt16(truncatingIfNeeded: try peek(size, byteCount: size))
        let image = try peek(2 * size, byteCount: size)
        let old = state.rflags
        let flags: UInt64
        if isVirtual8086 && iopl < 3 {
            let wantsInterrupts = image & RFlags.interrupt != 0
            if wantsInterrupts && old & RFlags.virtualInterruptPending != 0 || image & RFlags.trap != 0 {
                throw .generalProtection()
            }
            let kept = RFlags.interrupt | RFlags.ioPrivilege | 0xFFFF_0000
            flags =
                old & kept & ~RFlags.virtualInterrupt | image & ~kept
                | (wantsInterrupts ? RFlags.virtualInterrupt : 0)
        } else {
            flags = InterruptReturn.flags(
                image, over: old, slotByteCount: size, cpl: isVirtual8086 ? 3 : 0, ioPrivilegeLevel: iopl,
                mayChangeVirtual: false)
        }
        releaseStack(UInt64(3 * size))
        setSegment(.cs, plainSegment(.cs, selector: selector))
        state.rip = rip
        state.rflags = flags
    }

    // MARK: Protected and long mode

    private func returnWithDescriptors(
        _ size: Int, released: UInt64, isInterruptReturn: Bool
    ) throws(GuestFault) {
        let rip = try peek(0, byteCount: size)
        let selector = UInt16(truncatingIfNeeded: try peek(size, byteCount: size))
        let image = isInterruptReturn ? try peek(2 * size, byteCount: size) : 0
        if isInterruptReturn && size == 4 && image & RFlags.virtual8086 != 0 && cpl == 0 && !system.isLongModeActive {
            return try returnToVirtual8086(rip, selector, image)
        }

        let code = Selector.index(selector)
        let level = Selector.privilegeLevel(selector)
        guard let target = try descriptor(selector), target.isCode, level >= cpl else {
            throw .generalProtection(code)
        }
        let isAllowed =
            target.isConformingCode ? target.privilegeLevel <= level : target.privilegeLevel == level
        if !isAllowed || hasInvalidSize(target) { throw .generalProtection(code) }
        if !target.isPresent { throw .exception(.segmentNotPresent(code)) }
        try checkOffset(rip, in: target)

        let oldLevel = cpl
        let consumed = (isInterruptReturn ? 3 : 2) * size
        // IRET in 64-bit mode always pops a stack.
        let popsStack = level > oldLevel || isInterruptReturn && isCode64
        var pointer = (state[.rsp] &+ UInt64(consumed) &+ released) & stackMask
        var stack: Segment?
        if popsStack {
            let offset = consumed + Int(released)
            pointer = try peek(offset, byteCount: size) &+ released
            let stackSelector = UInt16(truncatingIfNeeded: try peek(offset + size, byteCount: size))
            stack = try returnStack(stackSelector, level, target)
        }
        try markAccessed(selector, target)

        setSegment(.cs, target.segment(selector: selector))
        system.cpl = level
        if let stack { setSegment(.ss, stack) }
        state[.rsp] = currentStack.replacing(state[.rsp], with: pointer)
        state.rip = rip
        if isInterruptReturn {
            state.rflags = InterruptReturn.flags(
                image, over: state.rflags, slotByteCount: size, cpl: oldLevel, ioPrivilegeLevel: iopl,
                mayChangeVirtual: true)
        }
        if level > oldLevel { dropPrivilegedSegments() }
    }

    /// The stack segment that a return to privilege level `level` in `target` loads.
    private func returnStack(
        _ selector: UInt16, _ level: UInt8, _ target: SegmentDescriptor
    ) throws(GuestFault) -> Segment {
        let code = Selector.index(selector)
        if Selector.isNull(selector) {
            guard system.isLongModeActive, target.isLong, level != 3 else { throw .generalProtection() }
            return .null(selector: selector, privilegeLevel: level)
        }
        guard let descriptor = try descriptor(selector), descriptor.isWritableData,
            Selector.privilegeLevel(selector) == level, descriptor.privilegeLevel == level
        else { throw .generalProtection(code) }
        if !descriptor.isPresent { throw .exception(.stack(code)) }
        try markAccessed(selector, descriptor)
        return descriptor.segment(selector: selector)
    }

    private func returnToVirtual8086(
        _ rip: UInt64, _ codeSelector: UInt16, _ image: UInt64
    ) throws(GuestFault) {
        let pointer = try peek(12, byteCount: 4)
        var selectors = InlineArray<5, UInt16>(repeating: 0)
        for index in 0..<5 {
            selectors[index] = UInt16(truncatingIfNeeded: try peek(16 + index * 4, byteCount: 4))
        }
        if rip > 0xFFFF { throw .generalProtection() }
        setSegment(.cs, .virtual8086(selector: codeSelector))
        for (index, register) in [SegmentRegister.ss, .es, .ds, .fs, .gs].enumerated() {
            setSegment(register, .virtual8086(selector: selectors[index]))
        }
        state[.rsp] = pointer
        state.rip = rip
        state.rflags = image
        system.cpl = 3
    }
}

/// How IRET changes RFLAGS.
package enum InterruptReturn {
    /// RFLAGS after IRET took `image` from the stack.
    /// - Parameters:
    ///   - slotByteCount: the operand size; with 2, bits 63–16 stay.
    ///   - cpl: the privilege level that executes IRET.
    ///   - mayChangeVirtual: VIF and VIP are loaded at CPL 0; not in real mode.
    package static func flags(
        _ image: UInt64, over flags: UInt64, slotByteCount: Int, cpl: UInt8, ioPrivilegeLevel: UInt8,
        mayChangeVirtual: Bool
    ) -> UInt64 {
        var loaded =
            RFlags.arithmetic | RFlags.trap | RFlags.direction | RFlags.nestedTask | RFlags.resume
            | RFlags.alignmentCheck | RFlags.identification
        if cpl == 0 { loaded |= RFlags.ioPrivilege }
        if cpl <= ioPrivilegeLevel { loaded |= RFlags.interrupt }
        if cpl == 0 && mayChangeVirtual { loaded |= RFlags.virtualInterrupt | RFlags.virtualInterruptPending }
        if slotByteCount == 2 { loaded &= 0xFFFF }
        return flags & ~loaded | image & loaded
    }
}
