import CZydis
import X86

/// Instructions on the flags that live in the state: CLI, STI, CLD, STD, PUSHF and POPF.
///
/// `pext` followed by `pdep` with the same mask is an AND that leaves the flags alone.
extension BlockTranslator {
    /// Masks in the state page.
    enum FlagMask: Int, CaseIterable {
        case withoutInterrupt, withoutDirection, withoutAlignment, arithmetic, pushed
        /// RFLAGS.DF; page number; counts that are not worth a look.
        case direction, page, large
        /// A bit offset that is not below 2^31; its unit; its place in the unit.
        case bitOffsetRange, unit32, unit64, bit32, bit64
        /// The bits of an address that are clear in the lower half.
        case upperHalf

        var offset: Int { CPUState.flagMasksOffset + rawValue * 8 }

        var value: UInt64 {
            switch self {
            case .withoutInterrupt: ~RFlags.interrupt
            case .withoutDirection: ~RFlags.direction
            case .withoutAlignment: ~RFlags.alignmentCheck
            case .arithmetic: RFlags.arithmetic
            // RF and VM read as zero.
            case .direction: RFlags.direction
            case .page: ~0xFFF
            case .large: BlockTranslator.inlineCountMask
            case .bitOffsetRange: ~0x7FFF_FFFF
            case .unit32: 0x7FFF_FFE0
            case .unit64: 0x7FFF_FFC0
            case .bit32: 0x1F
            case .upperHalf: ~0x7FFF_FFFF_FFFF
            case .bit64: 0x3F
            case .pushed: ~(RFlags.resume | RFlags.virtual8086 | RFlags.arithmetic)
            }
        }
    }

    private static let systemFlags = Emitter.Memory.state(CPUState.systemFlagsOffset)

    private mutating func emitAnd(_ register: HostRegister, _ mask: FlagMask) {
        e.pext(register, register, mask: .state(mask.offset))
        e.pdep(register, register, mask: .state(mask.offset))
    }

    /// CLI and CLD.
    mutating func emitClearFlag(_ mask: FlagMask) {
        e.load(.scratch, Self.systemFlags)
        emitAnd(.scratch, mask)
        e.store(.scratch, Self.systemFlags)
    }

    /// STD.
    mutating func emitSetFlag(_ mask: FlagMask, _ bit: UInt64) {
        e.load(.scratch, Self.systemFlags)
        emitAnd(.scratch, mask)
        e.lea(.scratch, .at(.scratch, Int32(bit)))
        e.store(.scratch, Self.systemFlags)
    }

    /// STI with another instruction behind it in the block, which therefore runs before the next look at the attention
    /// flag. If an interrupt is waiting already, Swift executes the instruction.
    mutating func emitSetInterrupt(_ i: DecodedInstruction) {
        e.load(.scratch, .state(CPUState.interruptWindowOffset), wide: false)
        let quiet = e.jumpIfScratchZero()
        let waiting = e.jump()
        e.bindShort(quiet)
        addColdExit(waiting, swiftExit(i))
        emitSetFlag(.withoutInterrupt, RFlags.interrupt)
    }

    /// STAC and CLAC at CPL 0: accesses go on with the other table set, jumps with the other mode tag. The processor
    /// notices by the tag.
    mutating func emitSetAccess(_ isSet: Bool) {
        let target: SoftTLB.Mode = isSet ? .supervisorOverride : .supervisor
        guard target != tlbMode, let other = bases.otherModeNumber else { return }
        let (from, to) = target == mode.tlbMode ? (other, bases.modeNumber) : (bases.modeNumber, other)
        if isSet {
            emitSetFlag(.withoutAlignment, RFlags.alignmentCheck)
        } else {
            emitClearFlag(.withoutAlignment)
        }
        e.move(.address, constant: UInt64(bitPattern: (Int64(to) - Int64(from)) << 48))
        e.load(.scratch, .state(CPUState.modeTagOffset))
        e.lea(.scratch, .at(.scratch, plus: .address))
        e.store(.scratch, .state(CPUState.modeTagOffset))
        tlbMode = target
    }

    mutating func emitPushFlags() {
        // The host's arithmetic flags are the guest's.
        e.byte(0x9C)  // pushfq
        e.pop(.scratch)
        emitAnd(.scratch, .arithmetic)
        e.load(.address, Self.systemFlags)
        emitAnd(.address, .pushed)
        e.lea(.scratch, Emitter.Memory(base: .address, index: .scratch, displacement: 2))
        e.store(.scratch, temporary(2))
        emitPushSlot()
        e.load(.scratch, temporary(2))
        e.store(.scratch, .at(.address), wide: isWide)
        emitStackAdjust(Int32(-stackBytes))
    }

    /// POPF at CPL 0 that changes nothing but IF and the arithmetic flags; otherwise Swift executes it. The flags are about
    /// to be overwritten, so this may clobber them once nothing can fault.
    mutating func emitPopFlags(_ i: DecodedInstruction) {
        e.move(.address, .stack, wide: isWide)
        emitLookup(byteCount: stackBytes, .read, isStack: true)
        e.load(.address, .at(.address, plus: .scratch), wide: isWide)
        // Swift starts over, so the flags must survive until it is clear that it is not needed.
        e.byte(0x9C)  // pushfq
        e.load(.scratch, Self.systemFlags)
        e.bytes(0x48, 0x31, 0xF1)  // xor rcx, rsi
        e.bytes(0xF7, 0xC1)  // test ecx, all flags but IF and the arithmetic ones
        e.int32(Int32(truncatingIfNeeded: RFlags.all & ~(RFlags.arithmetic | RFlags.interrupt)))
        let different = e.jump(condition: 5)
        e.bytes(0xF7, 0xC6)  // test esi, IF
        e.int32(Int32(RFlags.interrupt))
        let disabled = e.jump(condition: 4)
        e.bytes(0x65, 0x83, 0x3C, 0x25)  // cmp dword gs:[interruptWindow], 0
        e.int32(Int32(CPUState.interruptWindowOffset))
        e.byte(0)
        let waiting = e.jump(condition: 5)
        e.bind(disabled)
        e.bytes(0x81, 0xE1)  // and ecx, IF: set where IF differs
        e.int32(Int32(RFlags.interrupt))
        e.bytes(0x65, 0x48, 0x31, 0x0C, 0x25)  // xor gs:[systemFlags], rcx
        e.int32(Int32(CPUState.systemFlagsOffset))
        e.bytes(0x81, 0xE6)  // and esi, arithmetic
        e.int32(Int32(RFlags.arithmetic))
        e.store(.address, .at(.rsp))
        e.byte(0x9D)  // popfq
        emitStackAdjust(Int32(stackBytes))
        let done = e.jump()
        e.bind(different)
        e.bind(waiting)
        e.byte(0x9D)  // popfq
        emitExit(swiftExit(i))
        e.bind(done)
    }
}
