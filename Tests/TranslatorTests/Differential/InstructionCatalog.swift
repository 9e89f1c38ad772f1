import CZydis

/// An instruction with everything fixed but its registers, address and immediate.
struct InstructionForm {
    enum Encoding: UInt8 { case legacy, vex }

    var encoding = Encoding.legacy
    /// 0 (one byte), 1 (0F), 2 (0F 38) or 3 (0F 3A).
    var map: UInt8 = 0
    var opcode: UInt8 = 0
    /// 0, 66, F3 or F2.
    var prefix: UInt8 = 0
    var isWide = false
    /// VEX.L.
    var length: UInt8 = 0
    var hasModRM = false
    var isMemory = false
    /// ModRM.reg, and for x87 opcodes ModRM.rm.
    var reg: UInt8 = 0
    var rm: UInt8 = 0
    var immediateByteCount = 0
    var mnemonic = ZYDIS_MNEMONIC_INVALID
    var acceptsLock = false

    /// Opcodes D8…DF, where ModRM.rm selects the operation, too.
    var isX87: Bool { encoding == .legacy && map == 0 && opcode & 0xF8 == 0xD8 }
}

/// Every form of every instruction that user code may execute and whose effect depends on nothing but registers and memory.
struct InstructionCatalog {
    /// Forms by mnemonic.
    private(set) var groups: [[InstructionForm]] = []
    /// Groups of instruction sets that no current processor has; they raise #UD.
    private(set) var rareGroups: [[InstructionForm]] = []

    init(isNarrow: Bool) {
        let disassembler = Disassembler(isNarrow: isNarrow)
        var common: [UInt32: [InstructionForm]] = [:]
        var rare: [UInt32: [InstructionForm]] = [:]
        func consider(_ form: InstructionForm) {
            var form = form
            guard disassembler.decode(Self.sample(form, isNarrow: isNarrow)), Self.isTestable(disassembler, isNarrow)
            else {
                return
            }
            let instruction = disassembler.instruction.pointee
            form.hasModRM = instruction.attributes & 1 != 0
            if !form.hasModRM && (form.isMemory || form.reg != 0 || form.rm != 0) { return }
            form.mnemonic = instruction.mnemonic
            form.immediateByteCount = Int(instruction.raw.imm.0.size + instruction.raw.imm.1.size) / 8
            form.acceptsLock = form.isMemory && instruction.attributes & 1 << 16 != 0
            if Self.isRare(instruction.meta.isa_set) {
                rare[form.mnemonic.rawValue, default: []].append(form)
            } else {
                common[form.mnemonic.rawValue, default: []].append(form)
            }
        }
        var form = InstructionForm()
        for opcode in UInt8.min...UInt8.max {
            form.opcode = opcode
            for prefix in [UInt8(0), 0x66, 0xF3, 0xF2] {
                form.prefix = prefix
                for isMemory in [false, true] {
                    form.isMemory = isMemory
                    for reg in UInt8(0)..<8 {
                        form.reg = reg
                        for variant in 0..<14 {
                            form.rm = 0
                            form.length = 0
                            if variant < 8 {
                                form.encoding = .legacy
                                form.map = UInt8(variant & 3)
                                form.isWide = variant & 4 != 0
                                if form.isWide && isNarrow { continue }
                                if form.isX87 && !isMemory {
                                    for rm in UInt8(0)..<8 {
                                        form.rm = rm
                                        consider(form)
                                    }
                                    continue
                                }
                            } else {
                                form.encoding = .vex
                                form.map = UInt8((variant - 8) % 3 + 1)
                                form.isWide = variant >= 11
                                form.length = 1
                                consider(form)
                                form.length = 0
                            }
                            consider(form)
                        }
                    }
                }
            }
        }
        groups = common.sorted { $0.key < $1.key }.map(\.value)
        rareGroups = rare.sorted { $0.key < $1.key }.map(\.value)
    }

    /// An instance of `form`, to see what it is.
    private static func sample(_ form: InstructionForm, isNarrow: Bool) -> [UInt8] {
        var bytes: [UInt8] = []
        if form.encoding == .vex {
            let pp: UInt8 = form.prefix == 0x66 ? 1 : form.prefix == 0xF3 ? 2 : form.prefix == 0xF2 ? 3 : 0
            bytes = [0xC4, 0xE0 | form.map, (form.isWide ? 0x80 : 0) | 0x78 | form.length << 2 | pp, form.opcode]
        } else {
            if form.prefix != 0 { bytes.append(form.prefix) }
            if form.isWide { bytes.append(0x48) }
            if form.map > 0 { bytes.append(0x0F) }
            if form.map == 2 { bytes.append(0x38) }
            if form.map == 3 { bytes.append(0x3A) }
            bytes.append(form.opcode)
        }
        // [rdi] or [bx] in memory: no SIB, no displacement; register 1 otherwise.
        bytes.append(form.isMemory ? form.reg << 3 | 7 : 0xC0 | form.reg << 3 | (form.isX87 ? form.rm : 1))
        bytes += [UInt8](repeating: 0, count: 15 - min(15, bytes.count))
        return bytes
    }

    private static func isRare(_ set: ZydisISASet) -> Bool {
        switch set {
        case ZYDIS_ISA_SET_AMD3DNOW, ZYDIS_ISA_SET_FMA4, ZYDIS_ISA_SET_XOP, ZYDIS_ISA_SET_TBM, ZYDIS_ISA_SET_MPX,
            ZYDIS_ISA_SET_AVX_VNNI, ZYDIS_ISA_SET_AVX_GFNI, ZYDIS_ISA_SET_GFNI, ZYDIS_ISA_SET_LWP,
            ZYDIS_ISA_SET_PADLOCK_ACE, ZYDIS_ISA_SET_PADLOCK_PHE, ZYDIS_ISA_SET_PADLOCK_PMM, ZYDIS_ISA_SET_PADLOCK_RNG:
            return true
        default: return false
        }
    }

    /// Whether the decoded instruction belongs in the catalog.
    private static func isTestable(_ disassembler: Disassembler, _ isNarrow: Bool) -> Bool {
        let instruction = disassembler.instruction.pointee
        guard
            instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
                || instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX
                || instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW
        else { return false }
        switch instruction.meta.category {
        case ZYDIS_CATEGORY_SYSTEM, ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_INTERRUPT,
            ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP, ZYDIS_CATEGORY_SEGOP, ZYDIS_CATEGORY_XSAVE,
            ZYDIS_CATEGORY_XSAVEOPT, ZYDIS_CATEGORY_RDWRFSGS, ZYDIS_CATEGORY_RDRAND, ZYDIS_CATEGORY_RDSEED,
            ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_COND_BR, ZYDIS_CATEGORY_UNCOND_BR,
            ZYDIS_CATEGORY_AVX2GATHER, ZYDIS_CATEGORY_GATHER, ZYDIS_CATEGORY_SCATTER, ZYDIS_CATEGORY_CLZERO,
            ZYDIS_CATEGORY_PKU, ZYDIS_CATEGORY_VTX, ZYDIS_CATEGORY_SMAP, ZYDIS_CATEGORY_CET, ZYDIS_CATEGORY_SGX,
            ZYDIS_CATEGORY_AMX_TILE, ZYDIS_CATEGORY_PT, ZYDIS_CATEGORY_RDPID, ZYDIS_CATEGORY_RDPRU,
            ZYDIS_CATEGORY_SERIALIZE, ZYDIS_CATEGORY_WAITPKG, ZYDIS_CATEGORY_KEYLOCKER,
            ZYDIS_CATEGORY_KEYLOCKER_WIDE, ZYDIS_CATEGORY_UINTR, ZYDIS_CATEGORY_HRESET, ZYDIS_CATEGORY_ENQCMD,
            ZYDIS_CATEGORY_MOVDIR, ZYDIS_CATEGORY_TSX_LDTRK, ZYDIS_CATEGORY_PCONFIG, ZYDIS_CATEGORY_KMASK,
            ZYDIS_CATEGORY_KNCMASK, ZYDIS_CATEGORY_KNC, ZYDIS_CATEGORY_KNCSCALAR:
            return false
        default: break
        }
        switch instruction.meta.isa_set {
        case ZYDIS_ISA_SET_AVX2GATHER, ZYDIS_ISA_SET_RTM, ZYDIS_ISA_SET_FXSAVE, ZYDIS_ISA_SET_FXSAVE64,
            ZYDIS_ISA_SET_RDPMC, ZYDIS_ISA_SET_RDTSCP, ZYDIS_ISA_SET_MONITOR, ZYDIS_ISA_SET_MONITORX,
            ZYDIS_ISA_SET_SVM, ZYDIS_ISA_SET_SMX, ZYDIS_ISA_SET_INVPCID, ZYDIS_ISA_SET_TDX, ZYDIS_ISA_SET_SNP,
            ZYDIS_ISA_SET_MCOMMIT, ZYDIS_ISA_SET_AMD_INVLPGB, ZYDIS_ISA_SET_VMFUNC:
            return false
        default: break
        }
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFD, ZYDIS_MNEMONIC_POPFQ, ZYDIS_MNEMONIC_ENTER,
            ZYDIS_MNEMONIC_RDTSC, ZYDIS_MNEMONIC_CPUID, ZYDIS_MNEMONIC_XGETBV, ZYDIS_MNEMONIC_CLI, ZYDIS_MNEMONIC_STI,
            ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FNSAVE, ZYDIS_MNEMONIC_FLDENV, ZYDIS_MNEMONIC_FRSTOR,
            ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR, ZYDIS_MNEMONIC_VERW, ZYDIS_MNEMONIC_SGDT,
            ZYDIS_MNEMONIC_SIDT, ZYDIS_MNEMONIC_SLDT, ZYDIS_MNEMONIC_STR, ZYDIS_MNEMONIC_SMSW, ZYDIS_MNEMONIC_ARPL,
            ZYDIS_MNEMONIC_PTWRITE, ZYDIS_MNEMONIC_BOUND, ZYDIS_MNEMONIC_LDS, ZYDIS_MNEMONIC_LES:
            return false
        case ZYDIS_MNEMONIC_PUSH, ZYDIS_MNEMONIC_POP, ZYDIS_MNEMONIC_MOV:
            for i in 0..<disassembler.operandCount where disassembler.operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER {
                let register = disassembler.operands[i].reg.value
                if (ZYDIS_REGISTER_ES.rawValue...ZYDIS_REGISTER_GS.rawValue).contains(register.rawValue)
                    || (ZYDIS_REGISTER_CR0.rawValue...ZYDIS_REGISTER_DR15.rawValue).contains(register.rawValue)
                {
                    return false
                }
            }
        // Hosts differ in what VEX.W does to these outside 64-bit mode.
        case ZYDIS_MNEMONIC_VPINSRD, ZYDIS_MNEMONIC_VPEXTRD: return !isNarrow || instruction.raw.vex.W == 0
        case ZYDIS_MNEMONIC_NOP where instruction.raw.modrm.mod == 3 && instruction.opcode == 0x0D: return false
        default: break
        }
        return true
    }
}
