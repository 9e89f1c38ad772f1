import CZydis
import X86

/// Translates one block of guest instructions.
///
/// A block starts with a look at the attention flag and runs to the first instruction that always changes control flow,
/// has to be executed in Swift, crosses into the next page, or exceeds ``maximumCount``; conditional jumps end it as its
/// ``Form`` says. It may lie at any linear address whose page offset is the same: addresses are formed from the state's
/// page base.
///
/// Everything emitted besides the guest's own instructions leaves the flags alone.
struct BlockTranslator {
    /// What surrounds the instructions of a block.
    enum Form {
        /// An ordinary block: it goes on behind some conditional jumps, repeats the body of a short loop, and checks
        /// neighbouring accesses together (``AccessPlan``).
        case block
        /// A block that ends at the first jump and checks each access for itself.
        case plain
        /// One instruction, without a look at the attention flag, that always leaves to the dispatcher.
        case step
        /// One copied instruction whose memory operand is replaced by the address in temporary 1.
        case bounce

        /// The block's jumps may be pointed at other blocks.
        var isLinked: Bool { self == .block || self == .plain }
    }

    static var maximumCount: Int { 64 }
    /// Conditional jumps behind which a block goes on.
    static var maximumSideExitCount: Int { 3 }
    /// How often a block holds the body of a loop that is the block itself.
    static var maximumCopyCount: Int { 4 }

    var e: Emitter
    let mode: TranslationMode
    let form: Form
    /// Offset of the block's first byte in its page.
    let startOffset: Int
    var records: BlockRecords
    /// The indices that this block's records will get.
    let bases: RecordBases

    struct RecordBases {
        var instructions: Int
        var linkSites: Int
        /// The number of the mode that differs in RFLAGS.AC, if translated code may change to it.
        var otherModeNumber: UInt8?
        var modeNumber: UInt8
        var trampolines: Trampolines
    }

    /// The table set in use where the translation stands; STAC and CLAC change it.
    var tlbMode: SoftTLB.Mode

    /// Accesses that are checked together, and where in the plan the translation stands.
    private var plan = AccessPlan()
    private var instructionIndex = 0
    private var accessNumber = 0
    /// The groups whose host addresses the scratch and the address register hold.
    var held = HeldGroups()

    /// What is emitted behind the block.
    private var coldExits: [(Emitter.Fixup, UInt32)] = []
    private var coldJumps: [ColdJump] = []

    /// A jump to another block that is expected to be rare.
    struct ColdJump {
        let jump: Emitter.Fixup
        /// Executable address of the jump's displacement, if it can be pointed at the target itself.
        var place: UInt64?
        /// Distance from the page base.
        let target: Int64
        var form = Form.block
    }

    /// Offset in the page of the instruction being translated, and of the one behind it.
    var offset = 0
    var nextOffset = 0
    /// No other instruction follows in this block.
    private var isLast = false

    init(
        emitter: Emitter, mode: TranslationMode, form: Form, startOffset: Int, records: BlockRecords,
        bases: RecordBases
    ) {
        e = emitter
        self.mode = mode
        tlbMode = mode.tlbMode
        self.form = form
        self.startOffset = startOffset
        self.records = records
        self.bases = bases
    }

    /// Translates `instructions`, which follow each other from ``startOffset``.
    /// - Parameter spans: the block ended because the next instruction crosses into another page, or is itself such a one.
    mutating func translate(_ instructions: [ClassifiedInstruction], spans: Bool) {
        if form.isLinked { emitPrologue(instructions) }
        if form == .block && mode.codeSize == .bits64 { plan = AccessPlan(instructions) }
        var isOpen = true
        for (index, instruction) in instructions.enumerated() {
            isLast = index == instructions.count - 1
            offset = instruction.offset
            nextOffset = offset + Int(instruction.decoded.length)
            instructionIndex = index
            accessNumber = 0
            records.points.append(
                BlockRecords.Point(address: e.address, guestOffset: UInt16(truncatingIfNeeded: offset)))
            switch instruction.kind {
            case .copy, .push, .pop, .nothing: break
            case .conditional where !isLast: break
            case .lea where leavesScratchAlone(instruction.decoded): break
            default: held.clear()
            }
            if !isLast, instruction.kind == .conditional {
                emitSideExit(instruction, next: instructions[index + 1].offset)
            } else {
                isOpen = emit(instruction.decoded, instruction.kind)
            }
        }
        offset = nextOffset
        if isOpen { emitFallThrough(spans: spans) }
        emitColdCode()
        e.align(16)
    }

    // MARK: Prologue and exits

    private mutating func emitPrologue(_ instructions: [ClassifiedInstruction]) {
        e.load(.scratch, .state(CPUState.attentionOffset), wide: false)
        let quiet = e.jumpIfScratchZero()
        coldExits.append((e.jump(), exitWord(.attention, UInt32(startOffset))))
        e.bindShort(quiet)
        if instructions.contains(where: { $0.usesX87 }) {
            // The guest's x87 registers are loaded when a block first needs them.
            e.load(.scratch, .state(CPUState.x87LiveOffset), wide: false)
            e.lea(.scratch, .at(.scratch, -1), wide: false)
            let live = e.jumpIfScratchZero()
            coldExits.append((e.jump(), exitWord(.needsX87, UInt32(startOffset))))
            e.bindShort(live)
        }
    }

    func exitWord(_ exit: Trampolines.Exit, _ value: UInt32) -> UInt32 {
        exit.rawValue << Trampolines.exitShift | value & Trampolines.exitValueMask
    }

    /// The exit word that has Swift execute `i`.
    mutating func swiftExit(_ i: DecodedInstruction) -> UInt32 {
        records.instructions.append(SwiftInstruction(i, offset: offset))
        return exitWord(
            .instruction, UInt32(truncatingIfNeeded: bases.instructions + records.instructions.count - 1))
    }

    /// Lets `jump` leave to the dispatcher.
    mutating func addColdExit(_ jump: Emitter.Fixup, _ word: UInt32) { coldExits.append((jump, word)) }

    mutating func addColdJump(_ jump: ColdJump) { coldJumps.append(jump) }

    /// Leaves to the dispatcher.
    mutating func emitExit(_ word: UInt32) {
        e.push(Int32(bitPattern: word))
        e.jump(to: bases.trampolines.exit)
    }

    mutating func emitFallThrough(spans: Bool) {
        if form == .bounce || form == .step {
            emitExit(exitWord(.bounceDone, UInt32(nextOffset)))
        } else {
            emitJump(toOffset: Int64(offset), mayLink: !spans)
        }
    }

    private mutating func emitColdCode() {
        for (fixup, word) in coldExits {
            e.bind(fixup)
            emitExit(word)
        }
        for cold in coldJumps {
            e.bind(cold.jump)
            if let place = cold.place {
                emitLinkExit(place, cold.target, cold.form)
            } else {
                emitJump(toOffset: cold.target, mayLink: true, cold.form)
            }
        }
    }

    // MARK: Dispatch

    /// Emits one instruction. Returns whether execution continues behind it.
    private mutating func emit(_ i: DecodedInstruction, _ kind: InstructionClass) -> Bool {
        switch kind {
        case .copy:
            emitCopy(i)
            return true
        case .nothing: return true
        case .lea:
            emitLea(i)
            return true
        case .push:
            emitPush(i)
            return true
        case .pop:
            emitPop(i)
            return true
        case .leave:
            emitLeave()
            return true
        case .clearInterrupt:
            emitClearFlag(.withoutInterrupt)
            return true
        case .clearDirection:
            emitClearFlag(.withoutDirection)
            return true
        case .setDirection:
            emitSetFlag(.withoutDirection, RFlags.direction)
            return true
        case .setInterrupt where !isLast:
            emitSetInterrupt(i)
            return true
        case .pushFlags:
            emitPushFlags()
            return true
        case .popFlags:
            emitPopFlags(i)
            return true
        case .moveString, .storeString:
            emitString(i, moves: kind == .moveString)
            return true
        case .bitString:
            emitBitString(i)
            return true
        case .timeStamp:
            emitTimeStamp(i)
            return true
        case .setAccess where bases.otherModeNumber != nil:
            emitSetAccess(true)
            return true
        case .clearAccess where bases.otherModeNumber != nil:
            emitSetAccess(false)
            return true
        case .system:
            emitSystem(i)
            return true
        case .syscall where form.isLinked && !mode.singleSteps:
            emitSystemCall(i)
            return false
        case .sysret where form.isLinked && !mode.singleSteps && tlbMode == .supervisor:
            emitSystemReturn(i)
            return false
        case .swift, .setInterrupt, .setAccess, .clearAccess, .syscall, .sysret:
            emitExit(swiftExit(i))
            return false
        default:
            emitBranch(i, kind)
            return false
        }
    }

    // MARK: Addresses

    /// Leaves the linear address of `m` in the address register.
    mutating func emitAddress(_ m: DecodedInstruction.MemoryOperand, addressWidth: UInt8) {
        let wide = addressWidth == 64
        emitEffectiveAddress(m, into: .address, wide: wide)
        if addressWidth == 16 { e.zeroExtend16(.address, .address) }
        if mode.codeSize == .bits64 ? m.segment == .fs || m.segment == .gs : mode.hasBase(m.segment) {
            e.load(.scratch, .state(CPUState.segmentBasesOffset + m.segment.index * 8))
            e.lea(.address, .at(.address, plus: .scratch), wide: mode.codeSize == .bits64)
        }
    }

    /// Leaves base + index · scale + displacement in `target`; the scratch register is clobbered, and with a base or
    /// index that lives in memory the address register too.
    mutating func emitEffectiveAddress(
        _ m: DecodedInstruction.MemoryOperand, into target: HostRegister, wide: Bool
    ) {
        typealias Operand = DecodedInstruction.MemoryOperand
        if m.base == Operand.instructionPointer {
            e.load(.scratch, .state(CPUState.pageBaseOffset))
            var distance = m.displacement &+ Int64(nextOffset)
            if Int64(Int32(truncatingIfNeeded: distance)) != distance {
                e.lea(.scratch, .at(.scratch, Int32(truncatingIfNeeded: m.displacement)))
                distance = Int64(nextOffset)
            }
            e.lea(target, .at(.scratch, Int32(truncatingIfNeeded: distance)), wide: wide)
            return
        }
        var memory = Emitter.Memory(displacement: Int32(truncatingIfNeeded: m.displacement))
        if m.base != Operand.none {
            memory.base = HostRegister.holding(m.base) ?? .address
            if HostRegister.holding(m.base) == nil { loadGuest(m.base, into: .address) }
        }
        if m.index != Operand.none {
            memory.index = HostRegister.holding(m.index) ?? .scratch
            if HostRegister.holding(m.index) == nil { loadGuest(m.index, into: .scratch) }
            memory.shift = UInt8(max(m.scale, 1).trailingZeroBitCount)
        }
        if memory.base == nil && memory.index == nil {
            // Absolute; a displacement in 64-bit mode is sign-extended, except in A0–A3, which carry all 64 bits.
            e.move(
                target,
                constant: wide ? UInt64(bitPattern: m.displacement) : UInt64(UInt32(truncatingIfNeeded: m.displacement))
            )
            return
        }
        e.lea(target, memory, wide: wide)
    }

    func guestSlot(_ guest: UInt8) -> Emitter.Memory {
        .state(CPUState.generalRegistersOffset + Int(guest & 15) * 8)
    }

    /// Copies guest register `guest` to `target`, wherever it lives.
    mutating func loadGuest(_ guest: UInt8, into target: HostRegister) {
        if let host = HostRegister.holding(guest) {
            e.move(target, host)
        } else {
            e.load(target, guestSlot(guest))
        }
    }

    /// Copies `source` to guest register `guest`, wherever it lives.
    mutating func storeGuest(_ source: HostRegister, to guest: UInt8) {
        if let host = HostRegister.holding(guest) {
            e.move(host, source)
        } else {
            e.store(source, guestSlot(guest))
        }
    }

    /// Whether the address is relative to SS. Other overrides than FS and GS are ignored in 64-bit mode.
    func isStackRelative(_ m: DecodedInstruction.MemoryOperand) -> Bool {
        if mode.codeSize != .bits64 { return m.segment == .ss }
        let usesStackRegister = m.base == GeneralRegister.rsp.rawValue || m.base == GeneralRegister.rbp.rawValue
        return usesStackRegister && m.segment != .fs && m.segment != .gs
    }

    // MARK: Software TLB

    /// A place in guest memory as an instruction names it.
    enum Place {
        case operand(DecodedInstruction.MemoryOperand, addressWidth: UInt8)
        /// Relative to a guest register, without a segment's base.
        case register(GeneralRegister, Int32)
    }

    /// Makes an access possible and returns where it goes on the host, in terms of the address and the scratch register.
    mutating func emitAccess(
        _ place: Place, byteCount: Int, _ kind: SoftTLB.Kind, isStack: Bool
    ) -> Emitter.Memory {
        let member = plan.member(instructionIndex, accessNumber)
        accessNumber += 1
        guard let member else {
            emitLinear(place, adding: 0)
            held.clear()
            emitLookup(byteCount: byteCount, kind, isStack: isStack)
            return .at(.address, plus: .scratch)
        }
        let group = plan.groups[member.group]
        if member.isLeader {
            emitLinear(place, adding: -member.offset)
            emitGroupLookup(group)
            held.clear()
            held.hold(member.group, in: .scratch)
        } else if held.register(of: member.group) == nil {
            let register = held.victim
            e.load(register, .state(group.slot))
            held.hold(member.group, in: register)
        }
        return .at(held.use(member.group), Int32(member.offset))
    }

    /// Leaves the linear address of `place` plus `distance` in the address register.
    private mutating func emitLinear(_ place: Place, adding distance: Int) {
        switch place {
        case .register(let register, let displacement):
            let displacement = displacement + Int32(distance)
            if let host = HostRegister.holding(register.rawValue), displacement != 0 {
                e.lea(.address, .at(host, displacement), wide: isWide)
            } else {
                loadGuest(register.rawValue, into: .address)
                if displacement != 0 || !isWide { e.lea(.address, .at(.address, displacement), wide: isWide) }
            }
        case .operand(var m, let addressWidth):
            m.displacement += Int64(distance)
            emitAddress(m, addressWidth: addressWidth)
        }
    }

    /// Checks the bytes of `group`, which start at the address register, and leaves their host address in the scratch
    /// register and the group's slot. The block is left for a plain one if the table does not have them.
    private mutating func emitGroupLookup(_ group: AccessPlan.Group) {
        emitCompare(byteCount: group.byteCount, group.kind)
        let hit = e.jumpIfScratchZero()
        addColdJump(ColdJump(jump: e.jump(), target: Int64(offset), form: .plain))
        e.bindShort(hit)
        emitAddend(group.kind)
        e.lea(.scratch, .at(.address, plus: .scratch))
        e.store(.scratch, .state(group.slot))
    }

    /// Leaves zero in the scratch register if the table has the page of `byteCount` bytes at the address register.
    private mutating func emitCompare(byteCount: Int, _ kind: SoftTLB.Kind) {
        e.pext(.scratch, .address, mask: .code(bases.trampolines.tlbIndexMask))
        e.load(.scratch, .state(SoftTLB.tagOffset(tlbMode, kind), index: .scratch))
        e.lea(
            .scratch,
            Emitter.Memory(base: .address, index: .scratch, displacement: Int32(byteCount - 1)))
        e.pext(.scratch, .scratch, mask: .code(bases.trampolines.pageMask))
    }

    private mutating func emitAddend(_ kind: SoftTLB.Kind) {
        e.pext(.scratch, .address, mask: .code(bases.trampolines.tlbIndexMask))
        e.load(.scratch, .state(SoftTLB.addendOffset(tlbMode, kind), index: .scratch))
    }

    /// Checks the access of `byteCount` bytes at the address register and leaves in the scratch register what has to be
    /// added to the address.
    /// - Parameter isStack: the address is relative to SS, so a non-canonical one raises a stack fault.
    mutating func emitLookup(byteCount: Int, _ kind: SoftTLB.Kind, isStack: Bool = false) {
        emitCompare(byteCount: byteCount, kind)
        let hit = e.jumpIfScratchZero()
        let descriptor = AccessDescriptor(offset: offset, byteCount: byteCount, kind: kind, isStack: isStack)
        e.push(Int32(bitPattern: descriptor.rawValue))
        e.call(to: bases.trampolines.fill)
        e.bindShort(hit)
        emitAddend(kind)
    }
}

/// Which groups' host addresses are in the two scratch registers.
struct HeldGroups {
    private var scratch: Int?
    private var address: Int?
    private var lastUsed = HostRegister.scratch

    mutating func clear() {
        scratch = nil
        address = nil
    }

    /// `register` is about to hold something else.
    mutating func clobber(_ register: HostRegister) {
        if register == .scratch { scratch = nil }
        if register == .address { address = nil }
    }

    func register(of group: Int) -> HostRegister? {
        scratch == group ? .scratch : address == group ? .address : nil
    }

    /// The register to load another group into.
    var victim: HostRegister {
        if scratch == nil { return .scratch }
        if address == nil { return .address }
        return lastUsed == .scratch ? .address : .scratch
    }

    mutating func hold(_ group: Int, in register: HostRegister) {
        if register == .scratch { scratch = group } else { address = group }
    }

    /// The register that holds `group`, which has to be held.
    mutating func use(_ group: Int) -> HostRegister {
        lastUsed = scratch == group ? .scratch : .address
        return lastUsed
    }
}

/// An access whose lookup missed, in the 32 bits a slow path passes on.
struct AccessDescriptor {
    var rawValue: UInt32

    init(rawValue: UInt32) { self.rawValue = rawValue }

    init(offset: Int, byteCount: Int, kind: SoftTLB.Kind, isStack: Bool) {
        rawValue =
            UInt32(offset) | UInt32(byteCount) << 13 | UInt32(kind.rawValue) << 23 | (isStack ? 1 << 24 : 0)
    }

    /// Offset of the instruction from the page base, below 8 KiB.
    var offset: Int { Int(rawValue & 0x1FFF) }
    /// At most 1023.
    var byteCount: Int { Int(rawValue >> 13 & 0x3FF) }
    var kind: SoftTLB.Kind { rawValue >> 23 & 1 == 0 ? .read : .write }
    /// Relative to SS.
    var isStack: Bool { rawValue >> 24 & 1 != 0 }
}

/// An instruction and how it is translated in the mode at hand.
struct ClassifiedInstruction {
    var decoded: DecodedInstruction
    var kind: InstructionClass
    /// Offset of its first byte in the block's page.
    var offset: Int
    /// A copied instruction that needs the guest's x87 registers in the host's.
    var usesX87: Bool

    init(_ decoded: DecodedInstruction, in mode: TranslationMode, at offset: Int) {
        self.decoded = decoded
        self.offset = offset
        kind = decoded.translationClass(in: mode)
        usesX87 = kind == .copy && decoded.unit == .x87
    }
}

/// An instruction that is executed in Swift.
struct SwiftInstruction {
    var decoded: DecodedInstruction
    /// Its offset from the page base.
    var offset: UInt16
    var unit: InstructionClass.Unit
    /// It works on the x87, SSE or AVX registers or MXCSR, which must be in the state.
    var needsFloatingPoint: Bool

    init(_ decoded: DecodedInstruction, offset: Int) {
        self.decoded = decoded
        self.offset = UInt16(truncatingIfNeeded: offset)
        unit = decoded.unit
        needsFloatingPoint =
            unit != .integer || decoded.category == ZYDIS_CATEGORY_XSAVE || decoded.category == ZYDIS_CATEGORY_XSAVEOPT
            || decoded.isaSet == ZYDIS_ISA_SET_FXSAVE || decoded.isaSet == ZYDIS_ISA_SET_FXSAVE64
    }
}

/// What has to be remembered about translated instructions.
struct BlockRecords {
    /// Where the code of an instruction starts.
    struct Point {
        var address: UInt64
        var guestOffset: UInt16
    }

    /// A jump that can be pointed at another block of the same page.
    struct LinkSite {
        /// Executable address of the displacement.
        var place: UInt64
        var targetOffset: UInt16
        var form: BlockTranslator.Form
    }

    var points: [Point] = []
    /// Instructions that leave to Swift.
    var instructions: [SwiftInstruction] = []
    var linkSites: [LinkSite] = []
}
