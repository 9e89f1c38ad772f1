import CZydis
import X86

/// The instructions that a user-space process cannot execute on the host.
extension Processor {
    /// Executes `i` if it is a system instruction: segment loads, far transfers, interrupts, descriptor tables, control
    /// and debug registers and the rest of the privileged ones.
    ///
    /// `state.rip` is at the instruction on entry, and behind it or at its target afterwards.
    /// - Returns: false, with nothing done, if `i` belongs elsewhere.
    package func executeSystem(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_MOV: return try executeMove(i)
        case ZYDIS_MNEMONIC_PUSH:
            guard i.operand(0).isSegmentRegister else { return false }
            try executePushSegment(i)
        case ZYDIS_MNEMONIC_POP:
            guard i.operand(0).isSegmentRegister else { return false }
            try executePopSegment(i)
        case ZYDIS_MNEMONIC_JMP:
            guard i.isFarTransfer else { return false }
            try executeFarTransfer(i, isCall: false)
        case ZYDIS_MNEMONIC_CALL:
            guard i.isFarTransfer else { return false }
            try executeFarTransfer(i, isCall: true)
        case ZYDIS_MNEMONIC_RET:
            guard i.opcode == 0xCA || i.opcode == 0xCB else { return false }
            try executeFarReturn(i)

        case ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ: try executeInterruptReturn(i)
        case ZYDIS_MNEMONIC_INT: try executeInterrupt(i)
        case ZYDIS_MNEMONIC_INT3: try executeBreakpoint(i)
        case ZYDIS_MNEMONIC_INTO: try executeInterruptOnOverflow(i)
        case ZYDIS_MNEMONIC_INT1: try executeDebugTrap(i)
        case ZYDIS_MNEMONIC_BOUND: try executeBound(i)
        case ZYDIS_MNEMONIC_SYSCALL: try executeSyscall(i)
        case ZYDIS_MNEMONIC_SYSRET: try executeSysret(i)
        case ZYDIS_MNEMONIC_SYSENTER: try executeSysenter(i)
        case ZYDIS_MNEMONIC_SYSEXIT: try executeSysexit(i)
        default: return try executeSegmentation(i)
        }
        return true
    }

    private func executeMove(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        let target = i.operand(0)
        let source = i.operand(1)
        if target.isSegmentRegister {
            try executeMoveToSegment(i)
        } else if source.isSegmentRegister {
            try executeMoveFromSegment(i)
        } else if target.isControlRegister {
            try executeMoveToControl(i)
        } else if source.isControlRegister {
            try executeMoveFromControl(i)
        } else if target.isDebugRegister {
            try executeMoveToDebug(i)
        } else if source.isDebugRegister {
            try executeMoveFromDebug(i)
        } else {
            return false
        }
        return true
    }

    private func executeSegmentation(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_LDS: try executeLoadFarPointer(i, .ds)
        case ZYDIS_MNEMONIC_LES: try executeLoadFarPointer(i, .es)
        case ZYDIS_MNEMONIC_LFS: try executeLoadFarPointer(i, .fs)
        case ZYDIS_MNEMONIC_LGS: try executeLoadFarPointer(i, .gs)
        case ZYDIS_MNEMONIC_LSS: try executeLoadFarPointer(i, .ss)
        case ZYDIS_MNEMONIC_LGDT: try executeLoadTable(i, \.gdtr)
        case ZYDIS_MNEMONIC_LIDT: try executeLoadTable(i, \.idtr)
        case ZYDIS_MNEMONIC_SGDT: try executeStoreTable(i, system.gdtr)
        case ZYDIS_MNEMONIC_SIDT: try executeStoreTable(i, system.idtr)
        case ZYDIS_MNEMONIC_LLDT: try executeLoadLocalTable(i)
        case ZYDIS_MNEMONIC_LTR: try executeLoadTask(i)
        case ZYDIS_MNEMONIC_SLDT: try executeStoreSelector(i, system.ldtr.selector)
        case ZYDIS_MNEMONIC_STR: try executeStoreSelector(i, system.tr.selector)
        case ZYDIS_MNEMONIC_SMSW: try executeStoreMachineStatus(i)
        case ZYDIS_MNEMONIC_LMSW: try executeLoadMachineStatus(i)
        case ZYDIS_MNEMONIC_LAR: try executeLoadAccessRights(i)
        case ZYDIS_MNEMONIC_LSL: try executeLoadSegmentLimit(i)
        case ZYDIS_MNEMONIC_VERR: try executeVerify(i, forWriting: false)
        case ZYDIS_MNEMONIC_VERW: try executeVerify(i, forWriting: true)
        case ZYDIS_MNEMONIC_ARPL: try executeAdjustPrivilegeLevel(i)
        case ZYDIS_MNEMONIC_SWAPGS: try executeSwapGS(i)
        case ZYDIS_MNEMONIC_RDFSBASE: try executeReadBase(i, .fs)
        case ZYDIS_MNEMONIC_RDGSBASE: try executeReadBase(i, .gs)
        case ZYDIS_MNEMONIC_WRFSBASE: try executeWriteBase(i, .fs)
        case ZYDIS_MNEMONIC_WRGSBASE: try executeWriteBase(i, .gs)
        default: return try executePrivileged(i)
        }
        return true
    }

    private func executePrivileged(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_HLT: try executeHalt(i)
        case ZYDIS_MNEMONIC_CLI: try executeClearInterrupt(i)
        case ZYDIS_MNEMONIC_STI: try executeSetInterrupt(i)
        case ZYDIS_MNEMONIC_CLAC: try executeAccessCheck(i, isOn: false)
        case ZYDIS_MNEMONIC_STAC: try executeAccessCheck(i, isOn: true)
        case ZYDIS_MNEMONIC_CLTS: try executeClearTaskSwitched(i)
        case ZYDIS_MNEMONIC_XGETBV: try executeGetExtendedControl(i)
        case ZYDIS_MNEMONIC_XSETBV: try executeSetExtendedControl(i)
        case ZYDIS_MNEMONIC_INVLPG: try executeInvalidatePage(i)
        case ZYDIS_MNEMONIC_INVPCID: try executeInvalidateContext(i)
        case ZYDIS_MNEMONIC_INVD, ZYDIS_MNEMONIC_WBINVD: try executeCacheControl(i)
        case ZYDIS_MNEMONIC_VMCALL, ZYDIS_MNEMONIC_VMMCALL: try executeHypercall(i)
        case ZYDIS_MNEMONIC_RSM: try executeResume()
        case ZYDIS_MNEMONIC_MONITOR, ZYDIS_MNEMONIC_MWAIT: try executeMonitor(i)
        case ZYDIS_MNEMONIC_RDPMC: throw .generalProtection()
        // Without control-flow enforcement these are NOPs.
        case ZYDIS_MNEMONIC_RDSSPD, ZYDIS_MNEMONIC_RDSSPQ, ZYDIS_MNEMONIC_ENDBR32, ZYDIS_MNEMONIC_ENDBR64: advance(i)
        default:
            if i.isNeverOffered { throw .invalidOpcode }
            return false
        }
        return true
    }
}

extension DecodedInstruction {
    /// JMP or CALL with a segment: EA and 9A, or FF with /5 and /3.
    fileprivate var isFarTransfer: Bool {
        switch opcode {
        case 0xEA, 0x9A: true
        case 0xFF: modrmReg == 3 || modrmReg == 5
        default: false
        }
    }

    /// An instruction of an extension that this processor never has: virtualization, monitoring, enclaves, control-flow
    /// enforcement.
    fileprivate var isNeverOffered: Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_MONITORX, ZYDIS_MNEMONIC_MWAITX: return true
        default: break
        }
        switch isaSet {
        case ZYDIS_ISA_SET_SVM, ZYDIS_ISA_SET_VTX, ZYDIS_ISA_SET_VMFUNC, ZYDIS_ISA_SET_SMX, ZYDIS_ISA_SET_SGX,
            ZYDIS_ISA_SET_SGX_ENCLV, ZYDIS_ISA_SET_PCONFIG, ZYDIS_ISA_SET_SNP, ZYDIS_ISA_SET_UINTR,
            ZYDIS_ISA_SET_CET:
            return true
        default: return false
        }
    }
}

extension DecodedInstruction.Operand {
    private func isRegister(from first: ZydisRegister, count: UInt32) -> Bool {
        kind == .register && register.rawValue &- first.rawValue < count
    }

    var isSegmentRegister: Bool { isRegister(from: ZYDIS_REGISTER_ES, count: 6) }
    var isControlRegister: Bool { isRegister(from: ZYDIS_REGISTER_CR0, count: 16) }
    var isDebugRegister: Bool { isRegister(from: ZYDIS_REGISTER_DR0, count: 16) }
}
