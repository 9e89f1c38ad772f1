import X86

// Instructions that move or set flags.

extension Processor {
    /// PUSHF, PUSHFD and PUSHFQ.
    func executePushFlags(_ i: DecodedInstruction) throws(GuestFault) {
        var image = state.rflags & ~(RFlags.virtual8086 | RFlags.resume)
        if isVirtual8086 && iopl < 3 {
            guard system.cr4 & CR4.virtual8086Extensions != 0, i.operandWidth == 16 else {
                throw .generalProtection()
            }
            image |= RFlags.ioPrivilege
            image = image & ~RFlags.interrupt
            if state.systemFlags & RFlags.virtualInterrupt != 0 { image |= RFlags.interrupt }
        }
        try push(image, byteCount: Int(i.operandWidth) / 8)
        advance(i)
    }

    /// POPF, POPFD and POPFQ.
    func executePopFlags(_ i: DecodedInstruction) throws(GuestFault) {
        let byteCount = Int(i.operandWidth) / 8
        let image = try peek(0, byteCount: byteCount)
        let flags = try FlagsImage.popped(
            image, over: state.rflags, byteCount: byteCount, isProtected: system.isProtectedMode, cpl: cpl,
            hasVirtual8086Extensions: system.cr4 & CR4.virtual8086Extensions != 0)
        let stack = currentStack
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ UInt64(byteCount))
        let changed = state.rflags ^ flags
        state.rflags = flags
        if changed & ~FlagsImage.modeNeutral != 0 { modeDidChange() }
        advance(i)
    }

    func executeStoreAHIntoFlags(_ i: DecodedInstruction) {
        let loaded = RFlags.arithmetic & 0xFF
        state.arithmeticFlags = state.arithmeticFlags & ~loaded | state[.rax] >> 8 & loaded
        advance(i)
    }

    func executeLoadAHFromFlags(_ i: DecodedInstruction) {
        let low = state.arithmeticFlags & 0xFF | RFlags.reserved1
        state[.rax] = state[.rax] & ~0xFF00 | low << 8
        advance(i)
    }

    /// CLC, STC and CMC: CF becomes (CF and `keep`) xor `flip`.
    func executeCarry(_ i: DecodedInstruction, keep: Bool, flip: Bool) {
        let flags = state.arithmeticFlags
        let carry = (keep ? flags & RFlags.carry : 0) ^ (flip ? RFlags.carry : 0)
        state.arithmeticFlags = flags & ~RFlags.carry | carry
        advance(i)
    }

    /// CLD and STD.
    func executeDirection(_ i: DecodedInstruction, isBackwards: Bool) {
        let flags = state.systemFlags & ~RFlags.direction
        state.systemFlags = isBackwards ? flags | RFlags.direction : flags
        advance(i)
    }
}

/// How POPF changes RFLAGS.
package enum FlagsImage {
    /// The flags whose change needs no ``Processor/modeDidChange()``.
    package static var modeNeutral: UInt64 {
        RFlags.arithmetic | RFlags.direction | RFlags.interrupt | RFlags.identification
    }

    /// RFLAGS after POPF took `image` (2, 4 or 8 bytes) from the stack.
    ///
    /// > Source: Intel SDM volume 2, POPF, and section 20.2 for virtual-8086 mode.
    package static func popped(
        _ image: UInt64, over flags: UInt64, byteCount: Int, isProtected: Bool, cpl: UInt8,
        hasVirtual8086Extensions: Bool
    ) throws(GuestFault) -> UInt64 {
        let ioPrivilegeLevel = UInt8(flags >> 12 & 3)
        var writable = RFlags.arithmetic | RFlags.trap | RFlags.direction | RFlags.nestedTask
        if byteCount > 2 { writable |= RFlags.alignmentCheck | RFlags.identification }
        if !isProtected {
            writable |= RFlags.interrupt | RFlags.ioPrivilege
        } else if flags & RFlags.virtual8086 == 0 {
            if cpl == 0 { writable |= RFlags.ioPrivilege }
            if cpl <= ioPrivilegeLevel { writable |= RFlags.interrupt }
        } else if ioPrivilegeLevel == 3 {
            writable |= RFlags.interrupt
        } else {
            // IF of the image goes to VIF; an interrupt that waits for it has to be delivered by the monitor.
            guard hasVirtual8086Extensions, byteCount == 2, image & RFlags.trap == 0,
                flags & RFlags.virtualInterruptPending == 0 || image & RFlags.interrupt == 0
            else { throw .generalProtection() }
            let virtualInterrupt = image & RFlags.interrupt != 0 ? RFlags.virtualInterrupt : 0
            return flags & ~(writable | RFlags.virtualInterrupt) | image & writable | virtualInterrupt
        }
        let result = flags & ~writable | image & writable
        return byteCount > 2 ? result & ~RFlags.resume : result
    }
}
