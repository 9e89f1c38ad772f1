import CZydis
import X86

/// Stack and control flow.
extension BlockTranslator {
    var stackBytes: Int { mode.codeSize == .bits64 ? 8 : 4 }
    var isWide: Bool { mode.codeSize == .bits64 }

    // MARK: Stack

    /// Checks the slot below the stack pointer and returns its place on the host.
    private mutating func emitPushAccess() -> Emitter.Memory {
        emitAccess(.register(.rsp, Int32(-stackBytes)), byteCount: stackBytes, .write, isStack: true)
    }

    /// Checks the slot below the stack pointer; the host address of the slot is then in the address register, and the
    /// scratch register is free.
    mutating func emitPushSlot() {
        e.lea(.address, emitPushAccess())
        held.clear()
    }

    /// Checks the slot that `register` points to and returns its place on the host.
    private mutating func emitPopAccess(_ register: GeneralRegister = .rsp) -> Emitter.Memory {
        emitAccess(.register(register, 0), byteCount: stackBytes, .read, isStack: true)
    }

    mutating func emitStackAdjust(_ distance: Int32) {
        e.lea(.stack, .at(.stack, distance), wide: isWide)
    }

    mutating func emitPush(_ i: DecodedInstruction) {
        let operand = i.operand(0)
        switch operand.kind {
        case .immediate:
            e.store(Int32(truncatingIfNeeded: operand.immediate), emitPushAccess(), wide: isWide)
        case .memory:
            e.load(.scratch, emitOperandAccess(i), wide: isWide)
            held.clobber(.scratch)
            e.store(.scratch, temporary(2))
            emitPushSlot()
            e.load(.scratch, temporary(2))
            e.store(.scratch, .at(.address), wide: isWide)
        default:
            let guest = RegisterName(operand.register).number
            if let host = HostRegister.holding(guest) {
                e.store(host, emitPushAccess(), wide: isWide)
            } else {
                emitPushSlot()
                e.load(.scratch, guestSlot(guest))
                e.store(.scratch, .at(.address), wide: isWide)
            }
        }
        emitStackAdjust(Int32(-stackBytes))
    }

    mutating func emitPop(_ i: DecodedInstruction) {
        let guest = RegisterName(i.operand(0).register).number
        let slot = emitPopAccess()
        if guest == GeneralRegister.rsp.rawValue {
            e.load(.stack, slot, wide: isWide)
        } else if let host = HostRegister.holding(guest) {
            e.load(host, slot, wide: isWide)
            emitStackAdjust(Int32(stackBytes))
        } else {
            e.load(.scratch, slot, wide: isWide)
            held.clobber(.scratch)
            e.store(.scratch, guestSlot(guest))
            emitStackAdjust(Int32(stackBytes))
        }
    }

    mutating func emitLeave() {
        e.load(.scratch, emitPopAccess(.rbp), wide: isWide)
        held.clobber(.scratch)
        e.lea(.stack, .at(.rbp, Int32(stackBytes)), wide: isWide)
        e.move(.rbp, .scratch, wide: isWide)
    }

    /// Makes the instruction's first operand, `stackBytes` of memory, readable and returns its place on the host.
    private mutating func emitOperandAccess(_ i: DecodedInstruction) -> Emitter.Memory {
        let memory = i.operand(0).memory
        return emitAccess(
            .operand(memory, addressWidth: i.addressWidth), byteCount: stackBytes, .read,
            isStack: isStackRelative(memory))
    }

    func temporary(_ index: Int) -> Emitter.Memory { .state(CPUState.temporariesOffset + index * 8) }

    // MARK: LEA

    /// Whether LEA is translated without the scratch and the address register.
    func leavesScratchAlone(_ i: DecodedInstruction) -> Bool {
        typealias Operand = DecodedInstruction.MemoryOperand
        let target = RegisterName(i.operand(0).register)
        let memory = i.operand(1).memory
        return i.addressWidth != 16 && target.width != 16 && HostRegister.holding(target.number) != nil
            && memory.base != Operand.instructionPointer
            && (memory.base == Operand.none || HostRegister.holding(memory.base) != nil)
            && (memory.index == Operand.none || HostRegister.holding(memory.index) != nil)
    }

    mutating func emitLea(_ i: DecodedInstruction) {
        let target = RegisterName(i.operand(0).register)
        let memory = i.operand(1).memory
        let home = HostRegister.holding(target.number)
        // The address is truncated to the address size, then to the operand size.
        if i.addressWidth == 16 || target.width == 16 {
            emitEffectiveAddress(memory, into: .address, wide: i.addressWidth == 64)
            if i.addressWidth == 16 { e.zeroExtend16(.address, .address) }
            if target.width == 16 {
                if let home {
                    emitMove16(home, .address)
                } else {
                    e.store16(.address, guestSlot(target.number))
                }
            } else {
                storeGuest(.address, to: target.number)
            }
            return
        }
        let wide = i.addressWidth == 64 && target.width == 64
        if let home {
            emitEffectiveAddress(memory, into: home, wide: wide)
        } else {
            emitEffectiveAddress(memory, into: .scratch, wide: wide)
            e.store(.scratch, guestSlot(target.number))
        }
    }

    /// `mov target16, source16`.
    private mutating func emitMove16(_ target: HostRegister, _ source: HostRegister) {
        e.byte(0x66)
        let rex = (source.number >> 3) << 2 | target.number >> 3
        if rex != 0 { e.byte(0x40 | rex) }
        e.bytes(0x89, 0xC0 | (source.number & 7) << 3 | target.number & 7)
    }

    // MARK: Branches

    mutating func emitBranch(_ i: DecodedInstruction, _ kind: InstructionClass) {
        let target = relativeTarget(i)
        switch kind {
        case .jump:
            emitJump(toOffset: target, mayLink: true)
        case .conditional:
            emitConditional(condition: i.opcode & 15, taken: target)
        case .counterZero:
            loadCounter(i.addressWidth)
            emitCounterBranch(whenZero: target, otherwise: Int64(nextOffset))
        case .loop:
            e.lea(.counter, .at(.counter, -1), wide: i.addressWidth == 64)
            loadCounter(i.addressWidth)
            emitCounterBranch(whenZero: Int64(nextOffset), otherwise: target)
        case .call:
            emitReturnAddress()
            emitJump(toOffset: target, mayLink: true)
        case .callIndirect:
            emitIndirectTarget(i)
            emitTargetCheck(i)
            e.store(.address, temporary(2))
            // The target and its check took the registers in which a group's address may have been.
            held.clear()
            emitReturnAddress()
            e.load(.address, temporary(2))
            emitJumpToAddress()
        case .jumpIndirect:
            emitIndirectTarget(i)
            emitTargetCheck(i)
            emitJumpToAddress()
        case .ret:
            e.load(.address, emitPopAccess(), wide: isWide)
            emitTargetCheck(i)
            let extra = i.operand(0).kind == .immediate ? Int32(truncatingIfNeeded: i.operand(0).immediate & 0xFFFF) : 0
            emitStackAdjust(Int32(stackBytes) + extra)
            emitJumpToAddress()
        default:
            preconditionFailure("not a branch")
        }
    }

    /// Leaves to Swift if user code in 64-bit mode goes to an address outside the lower half. Added to the mode tag, the upper
    /// bits of such an address could name another mode, and the jump cache lead to the kernel's blocks.
    private mutating func emitTargetCheck(_ i: DecodedInstruction) {
        guard mode.tlbMode == .user, mode.codeSize == .bits64 else { return }
        e.pext(.scratch, .address, mask: .state(FlagMask.upperHalf.offset))
        let isLow = e.jumpIfScratchZero()
        addColdExit(e.jump(), swiftExit(i))
        e.bindShort(isLow)
    }

    /// The target's distance from the page base. May be negative or beyond the page.
    private func relativeTarget(_ i: DecodedInstruction) -> Int64 {
        Int64(nextOffset) &+ Int64(bitPattern: i.operand(0).immediate)
    }

    private mutating func loadCounter(_ addressWidth: UInt8) {
        if addressWidth == 16 {
            e.zeroExtend16(.scratch, .counter)
        } else {
            e.move(.scratch, .counter, wide: addressWidth == 64)
        }
    }

    private mutating func emitCounterBranch(whenZero: Int64, otherwise: Int64) {
        let zero = e.jumpIfScratchZero()
        let other = e.jump()
        e.bindShort(zero)
        emitJump(toOffset: whenZero, mayLink: true)
        e.bind(other)
        emitJump(toOffset: otherwise, mayLink: true)
    }

    /// Leaves the operand of an indirect branch in the address register.
    private mutating func emitIndirectTarget(_ i: DecodedInstruction) {
        let operand = i.operand(0)
        if operand.kind == .memory {
            e.load(.address, emitOperandAccess(i), wide: isWide)
        } else {
            let guest = RegisterName(operand.register).number
            if let host = HostRegister.holding(guest) {
                e.move(.address, host, wide: isWide)
            } else {
                e.load(.address, guestSlot(guest), wide: isWide)
            }
        }
    }

    /// Pushes the address behind the instruction.
    private mutating func emitReturnAddress() {
        emitPushSlot()
        e.load(.scratch, .state(CPUState.pageBaseOffset))
        e.lea(.scratch, .at(.scratch, Int32(nextOffset)), wide: isWide)
        e.store(.scratch, .at(.address), wide: isWide)
        emitStackAdjust(Int32(-stackBytes))
    }

    private mutating func emitConditional(condition: UInt8, taken: Int64) {
        if form.isLinked && isInPage(taken) {
            // The conditional jump itself is pointed at the target's block.
            e.align(4, at: 2)
            let jump = e.jump(condition: condition)
            let place = e.address - 4
            emitJump(toOffset: Int64(nextOffset), mayLink: true)
            e.bind(jump)
            emitLinkExit(place, taken)
        } else {
            let jump = e.jump(condition: condition)
            emitJump(toOffset: Int64(nextOffset), mayLink: true)
            e.bind(jump)
            emitJump(toOffset: taken, mayLink: true)
        }
    }

    /// A conditional jump with another instruction behind it in the block, which is the target if that lies at `next`.
    mutating func emitSideExit(_ instruction: ClassifiedInstruction, next: Int) {
        let taken = relativeTarget(instruction.decoded)
        let goesOnTaken = next != nextOffset
        let target = goesOnTaken ? Int64(nextOffset) : taken
        e.align(4, at: 2)
        let jump = e.jump(condition: instruction.decoded.opcode & 15 ^ (goesOnTaken ? 1 : 0))
        addColdJump(ColdJump(jump: jump, place: isInPage(target) ? e.address - 4 : nil, target: target))
    }

    private func isInPage(_ target: Int64) -> Bool { target >= 0 && target < 4096 }

    /// Continues at page base + `target`.
    mutating func emitJump(toOffset target: Int64, mayLink: Bool, _ targetForm: Form = .block) {
        if form.isLinked && mayLink && isInPage(target) {
            e.align(4, at: 1)
            let jump = e.jump()
            let place = e.address - 4
            e.bind(jump)
            emitLinkExit(place, target, targetForm)
            return
        }
        e.load(.address, .state(CPUState.pageBaseOffset))
        if Int64(Int32(truncatingIfNeeded: target)) == target {
            e.lea(.address, .at(.address, Int32(target)), wide: isWide)
        } else {
            e.move(.scratch, constant: UInt64(bitPattern: target))
            e.lea(.address, .at(.address, plus: .scratch), wide: isWide)
        }
        emitJumpToAddress()
    }

    mutating func emitLinkExit(_ place: UInt64, _ target: Int64, _ targetForm: Form = .block) {
        emitExit(exitWord(.link, UInt32(truncatingIfNeeded: bases.linkSites + records.linkSites.count)))
        records.linkSites.append(BlockRecords.LinkSite(place: place, targetOffset: UInt16(target), form: targetForm))
    }

    /// Continues at the linear address in the address register, through the jump cache.
    mutating func emitJumpToAddress() {
        e.load(.scratch, .state(CPUState.modeTagOffset))
        e.lea(.address, .at(.address, plus: .scratch))
        if form.isLinked {
            let indexMask = Emitter.Memory.code(bases.trampolines.jumpIndexMask)
            e.pext(.scratch, .address, mask: indexMask)
            e.load(.scratch, .state(SoftTLB.jumpTagsOffset, index: .scratch))
            e.lea(.scratch, .at(.address, plus: .scratch))
            let hit = e.jumpIfScratchZero()
            let miss = e.jump()
            e.bindShort(hit)
            e.pext(.scratch, .address, mask: indexMask)
            e.load(.address, .state(SoftTLB.jumpPageBasesOffset, index: .scratch))
            e.store(.address, .state(CPUState.pageBaseOffset))
            e.jump(through: .state(SoftTLB.jumpTargetsOffset, index: .scratch))
            e.bind(miss)
        }
        e.store(.address, temporary(0))
        emitExit(exitWord(.jumpMiss, 0))
    }
}
