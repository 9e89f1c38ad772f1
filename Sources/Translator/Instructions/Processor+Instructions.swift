import CZydis
import Synchronization
import X86

// What translated code does not do by itself and is no matter of system state: dispatch by mnemonic.
//
// On entry RIP (an offset within CS) is at the instruction, and the x87 registers and MXCSR are in the state page. Each
// implementation moves RIP only when nothing can fault any more; one that returns with RIP unchanged has made progress
// and is to be executed again.

extension Processor {
    /// Executes `i`.
    ///
    /// - Returns: false if it is not one of these instructions; nothing has changed then.
    /// - Throws: why it did not complete.
    public func executeInstruction(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD, ZYDIS_MNEMONIC_MOVSQ:
            // SSE has a MOVSD, too.
            if i.category != ZYDIS_CATEGORY_STRINGOP { return false }
            try executeMoveString(i)
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ:
            try executeStoreString(i)
        case ZYDIS_MNEMONIC_LODSB, ZYDIS_MNEMONIC_LODSW, ZYDIS_MNEMONIC_LODSD, ZYDIS_MNEMONIC_LODSQ:
            try executeLoadString(i)
        case ZYDIS_MNEMONIC_SCASB, ZYDIS_MNEMONIC_SCASW, ZYDIS_MNEMONIC_SCASD, ZYDIS_MNEMONIC_SCASQ:
            try executeScanString(i)
        case ZYDIS_MNEMONIC_CMPSB, ZYDIS_MNEMONIC_CMPSW, ZYDIS_MNEMONIC_CMPSD, ZYDIS_MNEMONIC_CMPSQ:
            if i.category != ZYDIS_CATEGORY_STRINGOP { return false }
            try executeCompareString(i)
        case ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW, ZYDIS_MNEMONIC_INSD: try executeInString(i)
        case ZYDIS_MNEMONIC_OUTSB, ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD: try executeOutString(i)
        case ZYDIS_MNEMONIC_IN: try executeIn(i)
        case ZYDIS_MNEMONIC_OUT: try executeOut(i)

        case ZYDIS_MNEMONIC_PUSH: return try executePush(i)
        case ZYDIS_MNEMONIC_POP: return try executePop(i)
        case ZYDIS_MNEMONIC_PUSHA, ZYDIS_MNEMONIC_PUSHAD: try executePushAll(i)
        case ZYDIS_MNEMONIC_POPA, ZYDIS_MNEMONIC_POPAD: try executePopAll(i)
        case ZYDIS_MNEMONIC_ENTER: try executeEnter(i)
        case ZYDIS_MNEMONIC_LEAVE: try executeLeave(i)

        case ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_PUSHFD, ZYDIS_MNEMONIC_PUSHFQ: try executePushFlags(i)
        case ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFD, ZYDIS_MNEMONIC_POPFQ: try executePopFlags(i)
        case ZYDIS_MNEMONIC_SAHF: executeStoreAHIntoFlags(i)
        case ZYDIS_MNEMONIC_LAHF: executeLoadAHFromFlags(i)
        case ZYDIS_MNEMONIC_CLC: executeCarry(i, keep: false, flip: false)
        case ZYDIS_MNEMONIC_STC: executeCarry(i, keep: false, flip: true)
        case ZYDIS_MNEMONIC_CMC: executeCarry(i, keep: true, flip: true)
        case ZYDIS_MNEMONIC_CLD: executeDirection(i, isBackwards: false)
        case ZYDIS_MNEMONIC_STD: executeDirection(i, isBackwards: true)

        case ZYDIS_MNEMONIC_JMP: return try executeJump(i)
        case ZYDIS_MNEMONIC_CALL: return try executeCall(i)
        case ZYDIS_MNEMONIC_RET: return try executeReturn(i)
        case ZYDIS_MNEMONIC_JO, ZYDIS_MNEMONIC_JNO, ZYDIS_MNEMONIC_JB, ZYDIS_MNEMONIC_JNB, ZYDIS_MNEMONIC_JZ,
            ZYDIS_MNEMONIC_JNZ, ZYDIS_MNEMONIC_JBE, ZYDIS_MNEMONIC_JNBE, ZYDIS_MNEMONIC_JS, ZYDIS_MNEMONIC_JNS,
            ZYDIS_MNEMONIC_JP, ZYDIS_MNEMONIC_JNP, ZYDIS_MNEMONIC_JL, ZYDIS_MNEMONIC_JNL, ZYDIS_MNEMONIC_JLE,
            ZYDIS_MNEMONIC_JNLE:
            try executeConditionalJump(i)
        case ZYDIS_MNEMONIC_LOOP: try executeLoop(i, zero: nil)
        case ZYDIS_MNEMONIC_LOOPE: try executeLoop(i, zero: true)
        case ZYDIS_MNEMONIC_LOOPNE: try executeLoop(i, zero: false)
        case ZYDIS_MNEMONIC_JCXZ, ZYDIS_MNEMONIC_JECXZ, ZYDIS_MNEMONIC_JRCXZ: try executeJumpIfCounterZero(i)

        case ZYDIS_MNEMONIC_BT: try executeBitTest(i, .test)
        case ZYDIS_MNEMONIC_BTS: try executeBitTest(i, .set)
        case ZYDIS_MNEMONIC_BTR: try executeBitTest(i, .reset)
        case ZYDIS_MNEMONIC_BTC: try executeBitTest(i, .complement)
        case ZYDIS_MNEMONIC_XLAT: try executeTranslateByte(i)

        case ZYDIS_MNEMONIC_CPUID: try executeCPUID(i)
        case ZYDIS_MNEMONIC_RDTSC: try executeReadTimeStamp(i, withAuxiliary: false)
        case ZYDIS_MNEMONIC_RDTSCP: try executeReadTimeStamp(i, withAuxiliary: true)
        case ZYDIS_MNEMONIC_RDPID: executeReadProcessorID(i)
        case ZYDIS_MNEMONIC_RDMSR: try executeReadMSR(i)
        case ZYDIS_MNEMONIC_WRMSR: try executeWriteMSR(i)

        case ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64: try executeFXSave(i)
        case ZYDIS_MNEMONIC_FXRSTOR, ZYDIS_MNEMONIC_FXRSTOR64: try executeFXRestore(i)
        case ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVE64: try executeXSave(i, isOptimized: false)
        case ZYDIS_MNEMONIC_XSAVEOPT, ZYDIS_MNEMONIC_XSAVEOPT64: try executeXSave(i, isOptimized: true)
        case ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64: try executeXRestore(i)
        case ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR: try executeLoadMXCSR(i)
        case ZYDIS_MNEMONIC_STMXCSR, ZYDIS_MNEMONIC_VSTMXCSR: try executeStoreMXCSR(i)
        case ZYDIS_MNEMONIC_FWAIT:
            // Where the x87 unit is off, but not for this instruction.
            try requireNoPendingX87Exception()
            advance(i)
        case ZYDIS_MNEMONIC_FNSTENV: try executeStoreEnvironment(i)
        case ZYDIS_MNEMONIC_FLDENV: try executeLoadEnvironment(i)
        case ZYDIS_MNEMONIC_FNSAVE: try executeSaveFloatingState(i)
        case ZYDIS_MNEMONIC_FRSTOR: try executeRestoreFloatingState(i)

        case ZYDIS_MNEMONIC_AAA: executeDecimal(i, \.aaa)
        case ZYDIS_MNEMONIC_AAS: executeDecimal(i, \.aas)
        case ZYDIS_MNEMONIC_DAA: executeDecimal(i, \.daa)
        case ZYDIS_MNEMONIC_DAS: executeDecimal(i, \.das)
        case ZYDIS_MNEMONIC_AAM: try executeAAM(i)
        case ZYDIS_MNEMONIC_AAD: executeAAD(i)
        case ZYDIS_MNEMONIC_SALC: executeSetALFromCarry(i)

        case ZYDIS_MNEMONIC_VMASKMOVPS, ZYDIS_MNEMONIC_VPMASKMOVD: try executeMaskedMove(i, elementByteCount: 4)
        case ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVQ: try executeMaskedMove(i, elementByteCount: 8)
        case ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU: try executeMaskedMoveBytes(i)
        case ZYDIS_MNEMONIC_MASKMOVQ: try executeMaskedMoveMMX(i)
        case ZYDIS_MNEMONIC_VGATHERDPS, ZYDIS_MNEMONIC_VGATHERDPD, ZYDIS_MNEMONIC_VGATHERQPS,
            ZYDIS_MNEMONIC_VGATHERQPD, ZYDIS_MNEMONIC_VPGATHERDD, ZYDIS_MNEMONIC_VPGATHERDQ,
            ZYDIS_MNEMONIC_VPGATHERQD, ZYDIS_MNEMONIC_VPGATHERQQ:
            if i.encoding != .vex { return false }
            try executeGather(i)

        case ZYDIS_MNEMONIC_MFENCE, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_SERIALIZE:
            // ORDERING: the guest's own fence; the strongest serves for all of them.
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            advance(i)
        case ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB:
            // Nothing is cached, but the byte has to be there.
            _ = try hostPointer(linearAddress(i.operand(0).memory, of: i), forWriting: false)
            advance(i)
        case ZYDIS_MNEMONIC_NOP, ZYDIS_MNEMONIC_PAUSE, ZYDIS_MNEMONIC_PREFETCH, ZYDIS_MNEMONIC_PREFETCHNTA,
            ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1, ZYDIS_MNEMONIC_PREFETCHT2, ZYDIS_MNEMONIC_PREFETCHW,
            ZYDIS_MNEMONIC_PREFETCHWT1, ZYDIS_MNEMONIC_CLDEMOTE, ZYDIS_MNEMONIC_ENDBR32, ZYDIS_MNEMONIC_ENDBR64,
            ZYDIS_MNEMONIC_RDSSPD,
            ZYDIS_MNEMONIC_RDSSPQ:
            // Hints, and instructions that do nothing without shadow stacks.
            advance(i)
        default: return false
        }
        return true
    }

    /// XLAT: AL becomes the byte at rBX + AL.
    private func executeTranslateByte(_ i: DecodedInstruction) throws(GuestFault) {
        var memory = i.operand(0).memory
        memory.displacement = Int64(readGeneral(.rax, byteCount: 1))
        let value = try readMemory(linearAddress(memory, of: i), byteCount: 1)
        writeGeneral(.rax, value, byteCount: 1)
        advance(i)
    }
}
