import CZydis
import X86

// System instructions in translated code: SWAPGS, reads of control registers and segment bases, SYSCALL and SYSRET.
//
// They find what they need in the state page (``SystemMirror``) and leave marks there; the processor looks at the marks
// when translated code has left (``Processor/followTranslatedCode()``) and brings its own registers up to date.

/// The part of the state page that mirrors system registers.
///
/// Swift writes the mirrors before it enters translated code; translated code changes the GS bases, and the marks.
enum SystemMirror: Int, CaseIterable {
    case kernelGSBase
    case cr0, cr2, cr3, cr4
    /// LSTAR.
    case callTarget
    /// Which of the flags that live in the state SYSCALL keeps.
    case keptFlags
    /// What SYSCALL and SYSRET add to the mode tag; 0 if Swift has to execute them.
    case callModeChange, returnModeChange
    /// Two words of 32 bits, all zero if translated code has changed nothing: the last change of the privilege level (see
    /// ``Transition``), and whether SWAPGS was executed.
    case marks

    var offset: Int { CPUState.systemMirrorOffset + rawValue * 8 }

    /// The second word of ``marks``.
    static var swapMarkOffset: Int { marks.offset + 4 }

    enum Transition: UInt32 { case none, call, callReturn }
}

extension BlockTranslator {
    private func mirror(_ register: SystemMirror) -> Emitter.Memory { .state(register.offset) }

    /// SWAPGS, MOV from CR0, CR2, CR3 and CR4, RDFSBASE and RDGSBASE. Leaves the flags alone.
    mutating func emitSystem(_ i: DecodedInstruction) {
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_SWAPGS:
            let base = Emitter.Memory.state(CPUState.segmentBasesOffset + SegmentRegister.gs.index * 8)
            e.load(.address, base)
            e.load(.scratch, mirror(.kernelGSBase))
            e.store(.scratch, base)
            e.store(.address, mirror(.kernelGSBase))
            e.store(1, .state(SystemMirror.swapMarkOffset), wide: false)
        case ZYDIS_MNEMONIC_RDFSBASE: emitReadBase(i, .fs)
        case ZYDIS_MNEMONIC_RDGSBASE: emitReadBase(i, .gs)
        default:
            let source: SystemMirror =
                switch i.operand(1).register {
                case ZYDIS_REGISTER_CR0: .cr0
                case ZYDIS_REGISTER_CR2: .cr2
                case ZYDIS_REGISTER_CR3: .cr3
                default: .cr4
                }
            e.load(.scratch, mirror(source))
            storeGuest(.scratch, to: RegisterName(i.operand(0).register).number)
        }
    }

    private mutating func emitReadBase(_ i: DecodedInstruction, _ segment: SegmentRegister) {
        e.load(.scratch, .state(CPUState.segmentBasesOffset + segment.index * 8), wide: i.operandWidth == 64)
        storeGuest(.scratch, to: RegisterName(i.operand(0).register).number)
    }

    /// SYSCALL from 64-bit code at CPL 3, where the mask clears at least all arithmetic flags and AC.
    mutating func emitSystemCall(_ i: DecodedInstruction) {
        emitModeChange(.callModeChange, swiftExit(i))
        e.store(Int32(SystemMirror.Transition.call.rawValue), mirrorMark, wide: false)
        // From here on the host's flags are free. R11 gets RFLAGS without RF.
        e.byte(0x9C)  // pushfq
        e.pop(.scratch)
        e.bytes(0x81, 0xE1)  // and ecx, arithmetic
        e.int32(Int32(RFlags.arithmetic))
        e.load(.address, .state(CPUState.systemFlagsOffset))
        e.lea(.scratch, Emitter.Memory(base: .address, index: .scratch, displacement: 2))
        e.bytes(0x81, 0xE1)  // and ecx, ~RF
        e.int32(Int32(truncatingIfNeeded: ~RFlags.resume))
        e.store(.scratch, guestSlot(GeneralRegister.r11.rawValue))
        e.bytes(0x65, 0x48, 0x23, 0x34, 0x25)  // and rsi, gs:[keptFlags]
        e.int32(Int32(SystemMirror.keptFlags.offset))
        e.store(.address, .state(CPUState.systemFlagsOffset))
        e.load(.scratch, .state(CPUState.pageBaseOffset))
        e.lea(.counter, .at(.scratch, Int32(nextOffset)))
        // All six arithmetic flags are clear after 2 + 0.
        e.move(.scratch, constant: 2)
        e.bytes(0x83, 0xC1, 0x00)  // add ecx, 0
        e.load(.address, mirror(.callTarget))
        emitJumpToAddress()
    }

    /// SYSRET to 64-bit code.
    mutating func emitSystemReturn(_ i: DecodedInstruction) {
        let exit = swiftExit(i)
        // Swift overwrites the flags, too, so they are free once it is clear that SYSRET does not fault.
        let known = emitKnownModeChange(.returnModeChange, exit)
        e.bytes(0x65, 0x83, 0x3C, 0x25)  // cmp dword gs:[interruptWindow], 0
        e.int32(Int32(CPUState.interruptWindowOffset))
        e.byte(0)
        addColdExit(e.jump(condition: 5), exit)
        e.bytes(0x65, 0xF7, 0x04, 0x25)  // test dword gs:[r11], TF
        e.int32(Int32(CPUState.generalRegistersOffset + GeneralRegister.r11.index * 8))
        e.int32(Int32(RFlags.trap))
        addColdExit(e.jump(condition: 5), exit)
        emitAddToModeTag(known)
        e.store(Int32(SystemMirror.Transition.callReturn.rawValue), mirrorMark, wide: false)
        e.load(.address, guestSlot(GeneralRegister.r11.rawValue), wide: false)
        e.move(.scratch, .address, wide: false)
        e.bytes(0x81, 0xE6)  // and esi, the flags that live in the state, without RF and VM
        e.int32(Int32(Self.returnedFlags & ~RFlags.arithmetic & ~RFlags.reserved1))
        e.store(.address, .state(CPUState.systemFlagsOffset))
        e.bytes(0x81, 0xE1)  // and ecx, arithmetic
        e.int32(Int32(RFlags.arithmetic))
        e.push(.scratch)
        e.byte(0x9D)  // popfq
        e.move(.address, .counter)
        emitJumpToAddress()
    }

    /// The flags that SYSRET takes from R11.
    static var returnedFlags: UInt64 { 0x3C_7FD7 }

    private var mirrorMark: Emitter.Memory { .state(SystemMirror.marks.offset) }

    /// Changes the mode tag, or leaves with `exit` if there is no change to make. Leaves the flags alone.
    private mutating func emitModeChange(_ change: SystemMirror, _ exit: UInt32) {
        emitAddToModeTag(emitKnownModeChange(change, exit))
    }

    /// Leaves with `exit` if there is no change to make.
    private mutating func emitKnownModeChange(_ change: SystemMirror, _ exit: UInt32) -> SystemMirror {
        e.load(.scratch, mirror(change))
        let unknown = e.jumpIfScratchZero()
        let known = e.jump()
        e.bindShort(unknown)
        emitExit(exit)
        e.bind(known)
        return change
    }

    private mutating func emitAddToModeTag(_ change: SystemMirror) {
        e.load(.scratch, mirror(change))
        e.load(.address, .state(CPUState.modeTagOffset))
        e.lea(.address, .at(.address, plus: .scratch))
        e.store(.address, .state(CPUState.modeTagOffset))
    }
}
