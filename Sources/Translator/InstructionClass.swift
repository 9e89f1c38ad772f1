import CZydis
import X86

/// How an instruction is translated.
enum InstructionClass {
    /// Copied, with registers renamed and the memory operand redirected.
    case copy
    /// Nothing to emit (NOP, prefetch).
    case nothing
    case lea
    case push, pop, leave
    case call, callIndirect, jump, jumpIndirect, conditional, ret
    case counterZero, loop
    case setAccess, clearAccess
    case moveString, storeString, bitString, timeStamp
    case clearInterrupt, setInterrupt, clearDirection, setDirection, pushFlags, popFlags
    /// Reads or changes system registers that translated code finds in the state; see `BlockTranslator+System`.
    case system
    case syscall, sysret
    /// Executed in Swift.
    case swift

    /// Which unit an instruction needs, for #NM and #UD.
    enum Unit { case integer, x87, sse, avx }
}

extension DecodedInstruction {
    /// The unit that executes the instruction.
    var unit: InstructionClass.Unit {
        switch isaSet {
        case ZYDIS_ISA_SET_PPRO where category == ZYDIS_CATEGORY_X87_ALU,
            ZYDIS_ISA_SET_SSE3 where category == ZYDIS_CATEGORY_X87_ALU:
            // FCOMI and its relatives; FISTTP.
            return .x87
        case ZYDIS_ISA_SET_X87, ZYDIS_ISA_SET_FCMOV, ZYDIS_ISA_SET_SSE3X87, ZYDIS_ISA_SET_PENTIUMMMX,
            ZYDIS_ISA_SET_SSE2MMX, ZYDIS_ISA_SET_SSSE3MMX:
            return .x87
        case ZYDIS_ISA_SET_SSE, ZYDIS_ISA_SET_SSE2, ZYDIS_ISA_SET_SSE3, ZYDIS_ISA_SET_SSSE3, ZYDIS_ISA_SET_SSE4,
            ZYDIS_ISA_SET_SSE42, ZYDIS_ISA_SET_SSE4A, ZYDIS_ISA_SET_AES, ZYDIS_ISA_SET_PCLMULQDQ, ZYDIS_ISA_SET_SHA,
            ZYDIS_ISA_SET_GFNI, ZYDIS_ISA_SET_SSEMXCSR:
            switch mnemonic {
            case ZYDIS_MNEMONIC_CRC32, ZYDIS_MNEMONIC_MOVNTI, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_MFENCE,
                ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_POPCNT:
                return .integer
            default: break
            }
            // SSE instructions on MMX registers use the x87 unit's registers.
            for i in 0..<Int(visibleOperandCount) where operand(i).kind == .register {
                if RegisterName(operand(i).register).kind == .mmx { return .x87 }
            }
            return .sse
        case ZYDIS_ISA_SET_AVX, ZYDIS_ISA_SET_AVX2, ZYDIS_ISA_SET_AVXAES, ZYDIS_ISA_SET_F16C, ZYDIS_ISA_SET_FMA,
            ZYDIS_ISA_SET_VAES, ZYDIS_ISA_SET_VPCLMULQDQ, ZYDIS_ISA_SET_AVX_GFNI, ZYDIS_ISA_SET_AVX2GATHER:
            return .avx
        default:
            return .integer
        }
    }

    /// How the instruction is translated in `mode`.
    func translationClass(in mode: TranslationMode) -> InstructionClass {
        switch unit {
        case .x87: return mode.allowsX87 && encoding == .legacy ? x87Class : .swift
        case .sse: return mode.allowsSSE && encoding == .legacy ? vectorClass : .swift
        case .avx: return mode.allowsAVX && encoding == .vex ? vectorClass : .swift
        case .integer: return integerClass(in: mode)
        }
    }

    private var x87Class: InstructionClass {
        switch mnemonic {
        case ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FLDENV, ZYDIS_MNEMONIC_FNSAVE, ZYDIS_MNEMONIC_FRSTOR,
            ZYDIS_MNEMONIC_MASKMOVQ:
            return .swift
        default: return hasCopyableMemory ? .copy : .swift
        }
    }

    private var vectorClass: InstructionClass {
        switch mnemonic {
        case ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVPS,
            ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVD, ZYDIS_MNEMONIC_VPMASKMOVQ:
            return .swift
        default: break
        }
        if isaSet == ZYDIS_ISA_SET_AVX2GATHER || opcodeMap > 3 { return .swift }
        return hasCopyableMemory ? .copy : .swift
    }

    /// At most one memory operand, in a ModRM, and of a size the software TLB checks.
    private var hasCopyableMemory: Bool {
        var count = 0
        for i in 0..<Int(operandCount) where operand(i).kind == .memory {
            count += 1
            let o = operand(i)
            if o.place != .modrmRM || o.size == 0 || o.size > 512 || o.memory.isAddressOnly { return false }
        }
        return count <= 1
    }

    private func integerClass(in mode: TranslationMode) -> InstructionClass {
        guard encoding == .legacy || encoding == .vex else { return .swift }
        // Without MPX these are NOPs that access no memory.
        if isaSet == ZYDIS_ISA_SET_MPX { return .nothing }
        switch mnemonic {
        case ZYDIS_MNEMONIC_NOP, ZYDIS_MNEMONIC_PREFETCHNTA, ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1,
            ZYDIS_MNEMONIC_PREFETCHT2, ZYDIS_MNEMONIC_PREFETCHW, ZYDIS_MNEMONIC_PREFETCH, ZYDIS_MNEMONIC_ENDBR64,
            ZYDIS_MNEMONIC_ENDBR32:
            return .nothing
        case ZYDIS_MNEMONIC_LEA: return .lea
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD, ZYDIS_MNEMONIC_MOVSQ:
            // FS and GS have bases.
            guard mode.codeSize == .bits64, addressWidth == 64 else { return .swift }
            return operand(1).memory.segment == .fs || operand(1).memory.segment == .gs ? .swift : .moveString
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ:
            return mode.codeSize == .bits64 && addressWidth == 64 ? .storeString : .swift
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            if operand(0).kind == .register || operand(1).kind == .immediate { return .copy }
            return mode.codeSize == .bits64 && addressWidth == 64 && operandWidth != 16 ? .bitString : .swift
        case ZYDIS_MNEMONIC_RDTSC, ZYDIS_MNEMONIC_RDTSCP: return mode.allowsTimeStamp ? .timeStamp : .swift
        case ZYDIS_MNEMONIC_CLI: return mode.isSystem ? .clearInterrupt : .swift
        case ZYDIS_MNEMONIC_STI: return mode.isSystem ? .setInterrupt : .swift
        case ZYDIS_MNEMONIC_STAC: return mode.isSystem && mode.codeSize == .bits64 ? .setAccess : .swift
        case ZYDIS_MNEMONIC_CLAC: return mode.isSystem && mode.codeSize == .bits64 ? .clearAccess : .swift
        case ZYDIS_MNEMONIC_SWAPGS: return mode.isSystem && mode.codeSize == .bits64 ? .system : .swift
        case ZYDIS_MNEMONIC_RDFSBASE, ZYDIS_MNEMONIC_RDGSBASE:
            return mode.allowsBaseAccess && mode.codeSize == .bits64 ? .system : .swift
        case ZYDIS_MNEMONIC_MOV where operand(1).kind == .register && mode.isSystem && mode.codeSize == .bits64:
            switch operand(1).register {
            case ZYDIS_REGISTER_CR0, ZYDIS_REGISTER_CR2, ZYDIS_REGISTER_CR3, ZYDIS_REGISTER_CR4: return .system
            default: return isCopiedInteger ? .copy : .swift
            }
        case ZYDIS_MNEMONIC_SYSCALL: return mode.codeSize == .bits64 && mode.tlbMode == .user ? .syscall : .swift
        case ZYDIS_MNEMONIC_SYSRET:
            return mode.codeSize == .bits64 && mode.isSystem && operandWidth == 64 ? .sysret : .swift
        case ZYDIS_MNEMONIC_CLD: return .clearDirection
        case ZYDIS_MNEMONIC_STD: return .setDirection
        case ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_PUSHFQ, ZYDIS_MNEMONIC_PUSHFD:
            return mode.isFlatStack && operandWidth == stackBits(mode) && !mode.isVirtual8086 ? .pushFlags : .swift
        case ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFQ, ZYDIS_MNEMONIC_POPFD:
            return mode.isFlatStack && operandWidth == stackBits(mode) && mode.isSystem ? .popFlags : .swift
        case ZYDIS_MNEMONIC_PUSH, ZYDIS_MNEMONIC_POP:
            // Segment registers have more to do; other operand sizes are rare.
            guard mode.isFlatStack, operandWidth == stackBits(mode) else { return .swift }
            let operand = self.operand(0)
            switch operand.kind {
            case .register where RegisterName(operand.register).kind != .general: return .swift
            case .memory where mnemonic == ZYDIS_MNEMONIC_POP: return .swift
            default: return mnemonic == ZYDIS_MNEMONIC_PUSH ? .push : .pop
            }
        case ZYDIS_MNEMONIC_LEAVE:
            return mode.isFlatStack && operandWidth == stackBits(mode) ? .leave : .swift
        case ZYDIS_MNEMONIC_CALL, ZYDIS_MNEMONIC_JMP, ZYDIS_MNEMONIC_RET:
            return branchClass(in: mode)
        case ZYDIS_MNEMONIC_JCXZ, ZYDIS_MNEMONIC_JECXZ, ZYDIS_MNEMONIC_JRCXZ:
            return mode.isFlatCode && operandWidth != 16 ? .counterZero : .swift
        case ZYDIS_MNEMONIC_LOOP:
            return mode.isFlatCode && operandWidth != 16 && addressWidth != 16 ? .loop : .swift
        default:
            if category == ZYDIS_CATEGORY_COND_BR {
                return mode.isFlatCode && operandWidth != 16 && opcode & 0xF0 == (opcodeMap == 0 ? 0x70 : 0x80)
                    ? .conditional : .swift
            }
            return isCopiedInteger ? .copy : .swift
        }
    }

    private func stackBits(_ mode: TranslationMode) -> UInt8 { mode.codeSize == .bits64 ? 64 : 32 }

    private func branchClass(in mode: TranslationMode) -> InstructionClass {
        // Far forms take pointers or are other opcodes.
        guard mode.isFlatCode, operandWidth == stackBits(mode) else { return .swift }
        switch (mnemonic, opcodeMap, opcode) {
        case (ZYDIS_MNEMONIC_RET, 0, 0xC3), (ZYDIS_MNEMONIC_RET, 0, 0xC2): return mode.isFlatStack ? .ret : .swift
        case (ZYDIS_MNEMONIC_CALL, 0, 0xE8): return mode.isFlatStack ? .call : .swift
        case (ZYDIS_MNEMONIC_CALL, 0, 0xFF) where modrmReg == 2: return mode.isFlatStack ? .callIndirect : .swift
        case (ZYDIS_MNEMONIC_JMP, 0, 0xE9), (ZYDIS_MNEMONIC_JMP, 0, 0xEB): return .jump
        case (ZYDIS_MNEMONIC_JMP, 0, 0xFF) where modrmReg == 4: return .jumpIndirect
        default: return .swift
        }
    }

    /// Integer instructions whose whole effect the host's own instruction has.
    private var isCopiedInteger: Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_MOV:
            // Control, debug and segment registers are not copied; A0–A3 name an absolute address.
            for i in 0..<2 where operand(i).kind == .register {
                if RegisterName(operand(i).register).kind != .general { return false }
            }
            return true
        case ZYDIS_MNEMONIC_ADD, ZYDIS_MNEMONIC_OR, ZYDIS_MNEMONIC_ADC, ZYDIS_MNEMONIC_SBB, ZYDIS_MNEMONIC_AND,
            ZYDIS_MNEMONIC_SUB, ZYDIS_MNEMONIC_XOR, ZYDIS_MNEMONIC_CMP, ZYDIS_MNEMONIC_TEST, ZYDIS_MNEMONIC_NOT,
            ZYDIS_MNEMONIC_NEG, ZYDIS_MNEMONIC_INC, ZYDIS_MNEMONIC_DEC, ZYDIS_MNEMONIC_MUL, ZYDIS_MNEMONIC_IMUL,
            ZYDIS_MNEMONIC_DIV, ZYDIS_MNEMONIC_IDIV, ZYDIS_MNEMONIC_MOVZX, ZYDIS_MNEMONIC_MOVSX,
            ZYDIS_MNEMONIC_MOVSXD, ZYDIS_MNEMONIC_XCHG, ZYDIS_MNEMONIC_XADD, ZYDIS_MNEMONIC_CMPXCHG,
            ZYDIS_MNEMONIC_CMPXCHG8B, ZYDIS_MNEMONIC_CMPXCHG16B, ZYDIS_MNEMONIC_CBW, ZYDIS_MNEMONIC_CWDE,
            ZYDIS_MNEMONIC_CDQE, ZYDIS_MNEMONIC_CWD, ZYDIS_MNEMONIC_CDQ, ZYDIS_MNEMONIC_CQO, ZYDIS_MNEMONIC_ROL,
            ZYDIS_MNEMONIC_ROR, ZYDIS_MNEMONIC_RCL, ZYDIS_MNEMONIC_RCR, ZYDIS_MNEMONIC_SHL, ZYDIS_MNEMONIC_SHR,
            ZYDIS_MNEMONIC_SAR, ZYDIS_MNEMONIC_SHLD, ZYDIS_MNEMONIC_SHRD, ZYDIS_MNEMONIC_BSF, ZYDIS_MNEMONIC_BSR,
            ZYDIS_MNEMONIC_TZCNT, ZYDIS_MNEMONIC_LZCNT, ZYDIS_MNEMONIC_POPCNT, ZYDIS_MNEMONIC_BSWAP,
            ZYDIS_MNEMONIC_LAHF, ZYDIS_MNEMONIC_SAHF, ZYDIS_MNEMONIC_CLC, ZYDIS_MNEMONIC_STC, ZYDIS_MNEMONIC_CMC,
            ZYDIS_MNEMONIC_MOVBE, ZYDIS_MNEMONIC_ADCX, ZYDIS_MNEMONIC_ADOX, ZYDIS_MNEMONIC_ANDN,
            ZYDIS_MNEMONIC_BEXTR, ZYDIS_MNEMONIC_BLSI, ZYDIS_MNEMONIC_BLSMSK, ZYDIS_MNEMONIC_BLSR,
            ZYDIS_MNEMONIC_BZHI, ZYDIS_MNEMONIC_MULX, ZYDIS_MNEMONIC_PDEP, ZYDIS_MNEMONIC_PEXT, ZYDIS_MNEMONIC_RORX,
            ZYDIS_MNEMONIC_SARX, ZYDIS_MNEMONIC_SHLX, ZYDIS_MNEMONIC_SHRX, ZYDIS_MNEMONIC_CRC32,
            ZYDIS_MNEMONIC_RDRAND, ZYDIS_MNEMONIC_RDSEED, ZYDIS_MNEMONIC_MOVNTI, ZYDIS_MNEMONIC_LFENCE,
            ZYDIS_MNEMONIC_MFENCE, ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_PAUSE:
            // XOP's BEXTR has an immediate and another encoding.
            return encoding == .legacy || opcodeMap <= 3
        default:
            return category == ZYDIS_CATEGORY_CMOV || category == ZYDIS_CATEGORY_SETCC
        }
    }

    /// Whether a memory operand that is not aligned to its size raises #GP on every host. For the SHA extensions, the
    /// makers' processors differ.
    ///
    /// - Parameter mxcsr: AMD's MM bit allows misaligned operands, but not of aligned moves.
    /// > Source: Intel SDM volume 1, section 4.1.1; volume 2, tables 2-18 to 2-21. AMD APM volume 1, section 4.2.2.
    func needsAlignedMemory(mxcsr: UInt32) -> Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_CMPXCHG16B, ZYDIS_MNEMONIC_MOVAPS, ZYDIS_MNEMONIC_MOVAPD, ZYDIS_MNEMONIC_MOVDQA,
            ZYDIS_MNEMONIC_MOVNTPS, ZYDIS_MNEMONIC_MOVNTPD, ZYDIS_MNEMONIC_MOVNTDQ, ZYDIS_MNEMONIC_MOVNTDQA,
            ZYDIS_MNEMONIC_VMOVAPS, ZYDIS_MNEMONIC_VMOVAPD, ZYDIS_MNEMONIC_VMOVDQA,
            ZYDIS_MNEMONIC_VMOVNTPS, ZYDIS_MNEMONIC_VMOVNTPD, ZYDIS_MNEMONIC_VMOVNTDQ, ZYDIS_MNEMONIC_VMOVNTDQA:
            return true
        case ZYDIS_MNEMONIC_MOVUPS, ZYDIS_MNEMONIC_MOVUPD, ZYDIS_MNEMONIC_MOVDQU, ZYDIS_MNEMONIC_LDDQU,
            ZYDIS_MNEMONIC_PCMPESTRI, ZYDIS_MNEMONIC_PCMPESTRM, ZYDIS_MNEMONIC_PCMPISTRI,
            ZYDIS_MNEMONIC_PCMPISTRM:
            return false
        default:
            return encoding == .legacy && unit == .sse && isaSet != ZYDIS_ISA_SET_SHA && mxcsr & 1 << 17 == 0
        }
    }
}
