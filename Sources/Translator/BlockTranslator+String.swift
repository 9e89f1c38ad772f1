import CZydis
import X86

/// MOVS and STOS in 64-bit code, where the elements lie in one page of plain memory.
///
/// The host's own instruction runs on the translated addresses, so overlapping moves do what the architecture says. A
/// run that leaves its page, counts downwards, or misses the software TLB is executed in Swift.
extension BlockTranslator {
    /// More elements than this are left to Swift without a look at the page.
    static var inlineCountMask: UInt64 { ~0x1FFF }

    /// The temporary that has the guest's RDI during MOVS and STOS.
    static var savedTargetIndex: Int { 3 }

    mutating func emitString(_ i: DecodedInstruction, moves: Bool) {
        let shift = UInt8(Int(i.operand(0).size) / 8).trailingZeroBitCount
        let isRepeated = i.hasRepeat
        let exit = swiftExit(i)
        var done: Emitter.Fixup?
        if isRepeated {
            // Nothing is accessed when the count is zero.
            e.move(.scratch, .counter)
            let none = e.jumpIfScratchZero()
            let some = e.jump()
            e.bindShort(none)
            done = e.jump()
            e.bind(some)
            requireZero(.counter, mask: .large, exit)
        }
        e.load(.scratch, .state(CPUState.systemFlagsOffset))
        requireZero(.scratch, mask: .direction, exit)
        if moves {
            e.move(.address, .r11)
            emitRunLookup(.read, shift: shift, isRepeated: isRepeated, exit)
            e.store(.scratch, temporary(4))
        }
        e.move(.address, .rdi)
        emitRunLookup(.write, shift: shift, isRepeated: isRepeated, exit)
        // RDI holds a host address during the instruction. From here on nothing fails, unless the client has taken the
        // memory away: then RDI is put back (`handleHostFault`), and the instruction starts over.
        e.store(.rdi, temporary(Self.savedTargetIndex))
        e.lea(.rdi, .at(.rdi, plus: .scratch))
        if moves {
            e.load(.address, temporary(4))
            e.lea(.address, .at(.address, plus: .r11))
        }
        if isRepeated {
            e.move(.scratch, .counter)
            e.byte(0xF3)
        }
        if shift == 1 { e.byte(0x66) }
        if shift == 3 { e.byte(0x48) }
        e.byte((moves ? 0xA4 : 0xAA) | (shift == 0 ? 0 : 1))
        e.load(.rdi, temporary(Self.savedTargetIndex))
        advance(.rdi, shift: shift, isRepeated: isRepeated)
        if moves { advance(.r11, shift: shift, isRepeated: isRepeated) }
        if isRepeated { e.move(.counter, constant: 0) }
        if let done { e.bind(done) }
    }

    private mutating func advance(_ register: HostRegister, shift: Int, isRepeated: Bool) {
        if isRepeated {
            e.lea(register, Emitter.Memory(base: register, index: .counter, shift: UInt8(shift)))
        } else {
            e.lea(register, .at(register, 1 << Int32(shift)))
        }
    }

    /// Leaves to Swift unless the bits of `register` in `mask` are all zero.
    mutating func requireZero(_ register: HostRegister, mask: FlagMask, _ exit: UInt32) {
        e.pext(.scratch, register, mask: .state(mask.offset))
        let zero = e.jumpIfScratchZero()
        addColdExit(e.jump(), exit)
        e.bindShort(zero)
    }

    /// Like `emitLookup`, for the whole run that starts at the address register, and with Swift as the slow path.
    private mutating func emitRunLookup(_ kind: SoftTLB.Kind, shift: Int, isRepeated: Bool, _ exit: UInt32) {
        let indexMask = Emitter.Memory.code(bases.trampolines.tlbIndexMask)
        e.pext(.scratch, .address, mask: indexMask)
        e.load(.scratch, .state(SoftTLB.tagOffset(tlbMode, kind), index: .scratch))
        if isRepeated {
            e.lea(.scratch, .at(.scratch, plus: .address))
            e.lea(
                .scratch, Emitter.Memory(base: .scratch, index: .counter, shift: UInt8(shift), displacement: -1))
        } else {
            e.lea(
                .scratch, Emitter.Memory(base: .address, index: .scratch, displacement: (1 << Int32(shift)) - 1))
        }
        requireZero(.scratch, mask: .page, exit)
        e.pext(.scratch, .address, mask: indexMask)
        e.load(.scratch, .state(SoftTLB.addendOffset(tlbMode, kind), index: .scratch))
    }

    // MARK: Bit strings

    /// BT, BTS, BTR and BTC of memory with a register offset: the access is to the 32- or 64-bit unit that holds the bit.
    /// Offsets that are negative or above 2^31 are left to Swift.
    mutating func emitBitString(_ i: DecodedInstruction) {
        let memory = i.operand(0)
        let guest = RegisterName(i.operand(1).register).number
        let isWide = i.operandWidth == 64
        let exit = swiftExit(i)
        loadOffset(guest, mask: .bitOffsetRange)
        let inRange = e.jumpIfScratchZero()
        addColdExit(e.jump(), exit)
        e.bindShort(inRange)
        emitAddress(memory.memory, addressWidth: 64)
        loadOffset(guest, mask: isWide ? .unit64 : .unit32)
        e.lea(.address, Emitter.Memory(base: .address, index: .scratch, shift: isWide ? 3 : 2))
        emitLookup(byteCount: isWide ? 8 : 4, i.mnemonic == ZYDIS_MNEMONIC_BT ? .read : .write)
        e.lea(.address, .at(.address, plus: .scratch))
        loadOffset(guest, mask: isWide ? .bit64 : .bit32)
        if i.hasAttribute(DecodedInstruction.lockAttribute) { e.byte(0xF0) }
        if isWide { e.byte(0x48) }
        e.bytes(0x0F, i.opcode)
        e.modRM(reg: HostRegister.scratch.number, .at(.address))
    }

    /// Gathers the bits of the guest's register that `mask` selects into the scratch register.
    private mutating func loadOffset(_ guest: UInt8, mask: FlagMask) {
        if let host = HostRegister.holding(guest) {
            e.pext(.scratch, host, mask: .state(mask.offset))
        } else {
            e.load(.scratch, guestSlot(guest))
            e.pext(.scratch, .scratch, mask: .state(mask.offset))
        }
    }

    // MARK: Time-stamp counter

    /// RDTSC and RDTSCP: the host's counter plus the guest's offset.
    mutating func emitTimeStamp(_ i: DecodedInstruction) {
        if i.mnemonic == ZYDIS_MNEMONIC_RDTSCP {
            e.bytes(0x0F, 0x01, 0xF9)
        } else {
            e.bytes(0x0F, 0x31)
        }
        e.rotateRight32(.rdx, .rdx)
        e.lea(.rax, .at(.rax, plus: .rdx))
        e.load(.scratch, .state(CPUState.timeStampOffsetOffset))
        e.lea(.rax, .at(.rax, plus: .scratch))
        e.rotateRight32(.rdx, .rax)
        e.move(.rdx, .rdx, wide: false)
        e.move(.rax, .rax, wide: false)
        if i.mnemonic == ZYDIS_MNEMONIC_RDTSCP {
            e.load(.counter, .state(CPUState.timeStampAuxiliaryOffset), wide: false)
        }
    }
}
