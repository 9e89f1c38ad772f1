import CZydis
import X86

/// Which memory accesses of a block share one look at the software TLB.
///
/// Accesses whose addresses differ by constants known at translation form a *group*: fields of a structure, a stack
/// frame, neighbouring elements in the copies of an unrolled loop. The first one, the leader, checks the bytes of all of
/// them at once and keeps the host address of the first byte in the state; the others use it without a check. The leader
/// only looks: it fills no entry and changes nothing that the guest can see. If its check fails (the bytes lie in two
/// pages, or the page is not in the table, or not for writing) the block is left for a plain one that starts at the same
/// instruction, and there every access is checked by itself.
///
/// What is checked stays true to the end of the block: whatever takes entries away from the processor waits until it is
/// in the dispatcher.
struct AccessPlan {
    /// Addresses of a group lie this close together: the wider, the more often they lie in two pages.
    static var maximumSpan: Int64 { 512 }
    static var maximumGroupCount: Int { 16 }

    struct Group {
        var byteCount = 0
        var kind = SoftTLB.Kind.read
        /// Where the host address of its first byte is kept.
        var slot = 0
    }

    /// One access that belongs to a group.
    struct Member {
        var group: Int
        var isLeader: Bool
        /// Distance from the group's first byte.
        var offset: Int
    }

    private(set) var groups: [Group] = []
    /// Two for each instruction, in the order in which they are emitted.
    private var members: [Member?]

    /// No groups.
    init() { members = [] }

    /// The group that access `number` of instruction `index` belongs to.
    func member(_ index: Int, _ number: Int) -> Member? {
        members.isEmpty || number > 1 ? nil : members[index * 2 + number]
    }

    // MARK: Finding groups

    /// What the constant part of an address counts from.
    private struct Key: Equatable {
        enum Base: Equatable {
            case none
            case value(Int)
            /// A page at a known distance from the block's own.
            case page(Int64)
        }

        var base = Base.none
        var index = -1
        var scale: UInt8 = 0
        var segment: SegmentRegister?
        /// Changes where the table set may.
        var epoch = 0
    }

    /// A register: an unknown value and a known distance from it.
    private struct Symbol {
        var value: Int
        var offset: Int64 = 0
    }

    private struct Candidate {
        var key: Key
        var low: Int64
        var high: Int64
        var isWritten: Bool
        var count = 0
    }

    private struct Finder {
        var registers = InlineArray<16, Symbol> { Symbol(value: $0) }
        var nextValue = 16
        var epoch = 0
        var candidates: [Candidate] = []
        /// The candidate and the offset of each access.
        var accesses: [(candidate: Int, offset: Int64)?]

        init(count: Int) { accesses = [(candidate: Int, offset: Int64)?](repeating: nil, count: count * 2) }

        mutating func overwrite(_ register: UInt8) {
            registers[Int(register & 15)] = Symbol(value: nextValue)
            nextValue += 1
        }

        mutating func overwriteAll() {
            for register in 0..<16 { overwrite(UInt8(register)) }
            epoch += 1
        }

        mutating func note(_ place: Int, _ key: Key, _ offset: Int64, byteCount: Int, _ kind: SoftTLB.Kind) {
            let end = offset + Int64(byteCount)
            for i in candidates.indices where candidates[i].key == key {
                let low = min(candidates[i].low, offset)
                let high = max(candidates[i].high, end)
                guard high - low <= AccessPlan.maximumSpan else { continue }
                candidates[i].low = low
                candidates[i].high = high
                candidates[i].count += 1
                if kind == .write { candidates[i].isWritten = true }
                accesses[place] = (i, offset)
                return
            }
            accesses[place] = (candidates.count, offset)
            candidates.append(Candidate(key: key, low: offset, high: end, isWritten: kind == .write, count: 1))
        }

        mutating func noteStack(_ place: Int, _ register: GeneralRegister, _ displacement: Int64, _ kind: SoftTLB.Kind) {
            let symbol = registers[register.index]
            let key = Key(base: .value(symbol.value), epoch: epoch)
            note(place, key, symbol.offset + displacement, byteCount: 8, kind)
        }

        mutating func noteOperand(
            _ place: Int, _ m: DecodedInstruction.MemoryOperand, byteCount: Int, _ kind: SoftTLB.Kind, behind: Int
        ) {
            typealias Operand = DecodedInstruction.MemoryOperand
            var key = Key(epoch: epoch)
            var offset = m.displacement
            // Room for the distance between the group's first byte and this one.
            guard abs(offset) < Int64(Int32.max) - 2 * AccessPlan.maximumSpan else { return }
            if m.segment == .fs || m.segment == .gs { key.segment = m.segment }
            if m.base == Operand.instructionPointer {
                offset += Int64(behind)
                if offset & 0xFFF + Int64(byteCount) > 4096 { return }
                key.base = .page(offset >> 12)
            } else if m.base != Operand.none {
                let symbol = registers[Int(m.base & 15)]
                key.base = .value(symbol.value)
                offset += symbol.offset
            }
            if m.index != Operand.none {
                let symbol = registers[Int(m.index & 15)]
                key.index = symbol.value
                key.scale = max(m.scale, 1)
                offset += symbol.offset &* Int64(key.scale)
            }
            note(place, key, offset, byteCount: byteCount, kind)
        }

        mutating func adjust(_ register: GeneralRegister, by distance: Int64) {
            registers[register.index].offset &+= distance
            if abs(registers[register.index].offset) > 1 << 24 { overwrite(register.rawValue) }
        }
    }

    /// - Parameter instructions: of a block in 64-bit mode.
    init(_ instructions: [ClassifiedInstruction]) {
        var finder = Finder(count: instructions.count)
        for (index, instruction) in instructions.enumerated() {
            Self.follow(instruction, 2 * index, &finder)
        }
        members = []
        var numbers = [Int](repeating: -1, count: finder.candidates.count)
        for (i, candidate) in finder.candidates.enumerated() where candidate.count > 1 {
            if groups.count == Self.maximumGroupCount { break }
            numbers[i] = groups.count
            groups.append(
                Group(
                    byteCount: Int(candidate.high - candidate.low), kind: candidate.isWritten ? .write : .read,
                    slot: CPUState.groupAddressesOffset + groups.count * 8))
        }
        if groups.isEmpty { return }
        members = [Member?](repeating: nil, count: finder.accesses.count)
        var isLed = [Bool](repeating: false, count: groups.count)
        for (place, access) in finder.accesses.enumerated() {
            guard let access, numbers[access.candidate] >= 0 else { continue }
            let group = numbers[access.candidate]
            members[place] = Member(
                group: group, isLeader: !isLed[group],
                offset: Int(access.offset - finder.candidates[access.candidate].low))
            isLed[group] = true
        }
    }

    /// Notes the accesses of one instruction and what it does to the registers.
    private static func follow(_ instruction: ClassifiedInstruction, _ place: Int, _ finder: inout Finder) {
        let i = instruction.decoded
        let behind = instruction.offset + Int(i.length)
        let isPlain = i.addressWidth == 64
        switch instruction.kind {
        case .copy:
            for number in 0..<Int(i.operandCount) {
                let operand = i.operand(number)
                if isPlain && operand.kind == .memory && !operand.memory.isAddressOnly {
                    finder.noteOperand(
                        place, operand.memory, byteCount: Int(operand.size) / 8, operand.isWritten ? .write : .read,
                        behind: behind)
                }
            }
            followRegisters(i, &finder)
        case .lea:
            let target = RegisterName(i.operand(0).register)
            let memory = i.operand(1).memory
            if target.width == 64, isPlain, memory.base < 16, memory.index == DecodedInstruction.MemoryOperand.none {
                finder.registers[Int(target.number)] = finder.registers[Int(memory.base)]
                finder.adjust(GeneralRegister(index: Int(target.number)), by: memory.displacement)
            } else {
                finder.overwrite(target.number)
            }
        case .push:
            var number = place
            if i.operand(0).kind == .memory {
                if isPlain { finder.noteOperand(number, i.operand(0).memory, byteCount: 8, .read, behind: behind) }
                number += 1
            }
            finder.noteStack(number, .rsp, -8, .write)
            finder.adjust(.rsp, by: -8)
        case .pushFlags:
            finder.noteStack(place, .rsp, -8, .write)
            finder.adjust(.rsp, by: -8)
        case .pop:
            finder.noteStack(place, .rsp, 0, .read)
            finder.adjust(.rsp, by: 8)
            finder.overwrite(RegisterName(i.operand(0).register).number)
        case .popFlags: finder.adjust(.rsp, by: 8)
        case .leave:
            finder.noteStack(place, .rbp, 0, .read)
            finder.registers[GeneralRegister.rsp.index] = finder.registers[GeneralRegister.rbp.index]
            finder.adjust(.rsp, by: 8)
            finder.overwrite(GeneralRegister.rbp.rawValue)
        case .call: finder.noteStack(place, .rsp, -8, .write)
        case .callIndirect, .jumpIndirect:
            var number = place
            if i.operand(0).kind == .memory {
                if isPlain { finder.noteOperand(number, i.operand(0).memory, byteCount: 8, .read, behind: behind) }
                number += 1
            }
            if instruction.kind == .callIndirect { finder.noteStack(number, .rsp, -8, .write) }
        case .ret: finder.noteStack(place, .rsp, 0, .read)
        case .nothing, .conditional, .clearInterrupt, .setInterrupt, .clearDirection, .setDirection: break
        case .bitString: followRegisters(i, &finder)
        default: finder.overwriteAll()
        }
    }

    /// What a copied instruction does to the general registers.
    private static func followRegisters(_ i: DecodedInstruction, _ finder: inout Finder) {
        let target = RegisterName(i.operand(0).register)
        if i.operand(0).kind == .register && target.kind == .general && target.width == 64 && i.opcodeMap == 0 {
            let register = GeneralRegister(index: Int(target.number))
            switch i.mnemonic {
            case ZYDIS_MNEMONIC_ADD where i.operand(1).kind == .immediate:
                return finder.adjust(register, by: Int64(bitPattern: i.operand(1).immediate))
            case ZYDIS_MNEMONIC_SUB where i.operand(1).kind == .immediate:
                return finder.adjust(register, by: 0 &- Int64(bitPattern: i.operand(1).immediate))
            case ZYDIS_MNEMONIC_INC: return finder.adjust(register, by: 1)
            case ZYDIS_MNEMONIC_DEC: return finder.adjust(register, by: -1)
            case ZYDIS_MNEMONIC_MOV where i.operand(1).kind == .register:
                finder.registers[register.index] = finder.registers[Int(RegisterName(i.operand(1).register).number)]
                return
            default: break
            }
        }
        for number in 0..<Int(i.operandCount) {
            let operand = i.operand(number)
            if operand.kind == .register && operand.isWritten {
                let name = RegisterName(operand.register)
                if name.kind == .general { finder.overwrite(name.number) }
            }
        }
        // A decoded instruction has room for so many operands.
        if i.operandCount >= 6 { finder.overwriteAll() }
    }
}
