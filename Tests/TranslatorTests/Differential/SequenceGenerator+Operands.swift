import CZydis
import TestSupport

/// Places of memory operands, and registers that have to hold something particular.
extension SequenceGenerator {
    /// A place for an access of `byteCount` bytes.
    mutating func place(_ byteCount: Int, mustAlign: Bool, margin: Int = 64) -> UInt64 {
        let size = TestArea.dataPages << 12
        var offset = random.within(margin...(size - margin - byteCount))
        let kind = mustAlign ? 0 : random.below(100)
        switch kind {
        case 0..<55:
            var alignment = 1
            while alignment < byteCount && alignment < 64 { alignment *= 2 }
            offset &= ~(alignment - 1)
            if offset < margin { offset += alignment * ((margin + alignment - 1) / alignment) }
        case 55..<67 where byteCount > 1:
            // Across a page.
            offset = random.within(1...3) << 12 - random.within(1...byteCount - 1)
        case 67..<75: offset &= ~15
        default: break
        }
        return TestArea.data + UInt64(offset)
    }

    /// An address where an access of `byteCount` bytes faults.
    mutating func badPlace(_ byteCount: Int, mayBeNonCanonical: Bool) -> UInt64 {
        switch random.below(mayBeNonCanonical && !isNarrow ? 3 : 2) {
        case 0 where byteCount < 16: return 0x5000_0000 + UInt64(random.below(1 << 20))
        // Misaligned vector operands raise general protection first, here only if the page is there.
        case 0 where byteCount >= 16, 1 where byteCount >= 16: return 0x5000_0000 + UInt64(random.below(1 << 20) & ~63)
        case 1:
            // The end of the data lies in the operand.
            let back = random.below(byteCount)
            return TestArea.data + UInt64((TestArea.dataPages << 12) - back)
        default: return 0x8000_0000_0000 + (random.next() >> 16) & (byteCount < 16 ? ~0 : ~63)
        }
    }

    /// Sets registers that the instruction uses in a way that random values would make pointless.
    mutating func prepareOperands(_ form: InstructionForm, _ fields: Fields) -> Bool {
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_DIV, ZYDIS_MNEMONIC_IDIV:
            if random.chance(65) {
                if !set(2, UInt64(random.below(3))) { return false }
                return set(0, random.operand() >> 1)
            }
        default: break
        }
        return true
    }

    /// Sets registers for operands that no ModRM names: stacks and strings.
    mutating func prepareImplicit(_ form: InstructionForm, _ fields: inout Fields) -> Bool {
        let instruction = disassembler.instruction.pointee
        if form.mnemonic == ZYDIS_MNEMONIC_LEAVE { return set(5, stackPlace()) }
        // One that faults half-way may have loaded registers on the host.
        if form.mnemonic == ZYDIS_MNEMONIC_POPA || form.mnemonic == ZYDIS_MNEMONIC_POPAD {
            return set(Self.rsp, stackPlace())
        }
        let usesStack = (0..<disassembler.operandCount).contains {
            let operand = disassembler.operands[$0]
            return operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN
                && Disassembler.generalRegister(operand.mem.base) == 1 << Self.rsp
        }
        if usesStack {
            return prepareStack()
        }
        switch instruction.meta.category {
        case ZYDIS_CATEGORY_STRINGOP:
            let base = fields.hasGSBase ? TestArea.gsBase : 0
            if fields.hasAddressSize && fields.hasGSBase { return false }
            func start(_ generator: inout SequenceGenerator) -> UInt64 {
                if generator.random.chance(3) {
                    // Runs into the page behind the data.
                    let back = generator.random.below(60)
                    return TestArea.data + UInt64((TestArea.dataPages << 12) - back)
                }
                return generator.place(8, mustAlign: false, margin: 512)
            }
            let isInstance = set(6, start(&self) &- base)
            return isInstance && set(7, start(&self))
                && set(1, UInt64(random.element([0, 1, 2, 5, random.below(24)])))
        default: break
        }
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_XLAT, ZYDIS_MNEMONIC_MASKMOVQ, ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU:
            if fields.hasAddressSize && fields.hasGSBase { return false }
            return set(
                form.mnemonic == ZYDIS_MNEMONIC_XLAT ? 3 : 7,
                place(16, mustAlign: false, margin: 512) &- (fields.hasGSBase ? TestArea.gsBase : 0))
        case ZYDIS_MNEMONIC_MOV where Self.hasAbsoluteOffset(form):
            if fields.hasAddressSize && fields.hasGSBase { return false }
            let target = place(8, mustAlign: false) &- (fields.hasGSBase ? TestArea.gsBase : 0)
            fields.immediate = Self.littleEndian(target, byteCount: fields.immediate.count)
            return true
        default: break
        }
        return disassembler.memoryOperand == nil || disassembler.memoryOperand?.mem.type == ZYDIS_MEMOP_TYPE_AGEN
    }

    /// MOV with AL, AX, EAX or RAX and an address in the instruction.
    static func hasAbsoluteOffset(_ form: InstructionForm) -> Bool {
        form.encoding == .legacy && form.map == 0 && form.opcode & 0xFC == 0xA0
    }

    mutating func stackPlace() -> UInt64 {
        let size = TestArea.stackPages << 12
        let offset = random.within(512...(size - 512))
        return TestArea.stack
            + UInt64(random.chance(85) ? offset & ~7 : random.chance(50) ? offset : 4096 + random.within(-7...7))
    }

    /// Makes RSP point into the stack.
    mutating func prepareStack() -> Bool {
        if let value = known[Self.rsp], value >= TestArea.stack + 256,
            value < TestArea.stack + UInt64(TestArea.stackPages << 12 - 256)
        {
            return true
        }
        if random.chance(2) {
            // At or beyond the ends of the stack.
            let end = random.chance(50) ? random.below(16) : (TestArea.stackPages << 12) - random.below(8)
            return set(Self.rsp, TestArea.stack + UInt64(end))
        }
        return set(Self.rsp, stackPlace())
    }

    /// Chooses an address for a memory operand and sets the registers in it.
    mutating func chooseAddress(_ form: InstructionForm, _ fields: inout Fields, byteCount: Int) -> Bool {
        let isExchange = form.mnemonic == ZYDIS_MNEMONIC_XCHG
        // A LOCK across cache lines is no user code's business; its pages are tested elsewhere.
        let mustAlign = fields.hasLock || isExchange
        var isFar = false
        var margin = 64
        if case ZYDIS_MNEMONIC_PUSH = form.mnemonic, !prepareStack() { return false }
        if case ZYDIS_MNEMONIC_POP = form.mnemonic, !prepareStack() { return false }
        if Self.hasBitOffset(form) {
            // The register selects a bit before or behind the operand.
            margin = 512
            var bit = UInt64(bitPattern: Int64(random.within(-2000...2000)))
            // What lies above the operand's width is ignored.
            if form.prefix == 0x66 && !form.isWide {
                bit = bit & 0xFFFF | random.next() << 16
            } else if !form.isWide {
                bit = bit & 0xFFFF_FFFF | random.next() << 32
            }
            if !set(Int(fields.reg), bit) { return false }
        }
        var target = place(byteCount, mustAlign: mustAlign, margin: margin)
        let kind = random.below(100)
        if !isNarrow && kind >= 20 && !fields.hasAddressSize && random.chance(30) {
            isFar = true
            target = target - TestArea.data + TestArea.dataAlias
        }
        if fields.hasGSBase && fields.hasAddressSize { return false }
        if !mustAlign && !Self.hasBitOffset(form) && random.chance(2) {
            target = badPlace(
                byteCount, mayBeNonCanonical: kind >= 20 && !fields.hasAddressSize && !Self.isMasked(form))
            isFar = true
        }
        let effective = target &- (fields.hasGSBase ? TestArea.gsBase : 0)
        presetAccumulator(form, target, isFar: isFar)
        if kind < 14 && !isNarrow {
            fields.address = Address(isRIPRelative: true)
            fields.address.base = nil
            let length = UInt64(encode(form, fields).count)
            let distance = Int64(bitPattern: effective &- (here &+ length))
            guard let displacement = Int32(exactly: distance) else { return false }
            fields.address.displacement = displacement
            return true
        }
        if kind < 20 {
            fields.address = Address()
            fields.address.displacement = Int32(truncatingIfNeeded: Int64(bitPattern: effective))
            fields.address.displacementByteCount = 4
            return isNarrow || Int64(fields.address.displacement) == Int64(bitPattern: effective)
        }
        return chooseRegisters(form, &fields, effective)
    }

    /// Loads RAX and RDX with what lies at the operand of a compare-and-exchange, sometimes.
    mutating func presetAccumulator(_ form: InstructionForm, _ target: UInt64, isFar: Bool) {
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_CMPXCHG, ZYDIS_MNEMONIC_CMPXCHG8B, ZYDIS_MNEMONIC_CMPXCHG16B: break
        default: return
        }
        guard !isFar, random.chance(50), reserved & 5 == 0 else { return }
        func load(_ register: UInt8, _ address: UInt64, wide: Bool) -> [UInt8] {
            (wide ? [0x48] : []) + [0x8B, register << 3 | 4, 0x25] + Self.littleEndian(address, byteCount: 4)
        }
        let isPair = form.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B
        append(load(0, target, wide: isPair || !isNarrow && form.isWide))
        append(load(2, target + (isPair ? 8 : 4), wide: isPair))
        forget(5)
    }

    /// Instructions executed in Swift, which do not tell stack faults from general protection.
    static func isMasked(_ form: InstructionForm) -> Bool {
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_VMASKMOVPS, ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVD,
            ZYDIS_MNEMONIC_VPMASKMOVQ, ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB:
            return true
        default: return false
        }
    }

    /// BT, BTS, BTR and BTC with the bit's number in a register.
    static func hasBitOffset(_ form: InstructionForm) -> Bool {
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            return form.isMemory && form.immediateByteCount == 0
        default: return false
        }
    }

    mutating func chooseRegisters(_ form: InstructionForm, _ fields: inout Fields, _ effective: UInt64) -> Bool {
        let isShort = isNarrow || fields.hasAddressSize
        func truncated(_ value: UInt64) -> UInt64 { isShort ? value & 0xFFFF_FFFF : value }
        func displacement(_ value: UInt64) -> Int32? {
            if isShort { return Int32(truncatingIfNeeded: Int64(bitPattern: value)) }
            return Int32(exactly: Int64(bitPattern: value))
        }
        func garbage(_ value: UInt64, _ random: inout SeededGenerator) -> UInt64 {
            isShort && !isNarrow ? value & 0xFFFF_FFFF | random.next() << 32 : value
        }
        let limit = fields.hasREX || form.encoding == .vex ? registerCount : 8
        let base = random.chance(93) ? random.below(limit) : nil
        var index: Int? = base == nil || random.chance(45) ? random.below(limit) : nil
        if index == 4 { index = nil }
        if base == nil && index == nil { return false }
        if Self.hasBitOffset(form) && (base == Int(fields.reg) || index == Int(fields.reg)) { return false }
        if form.mnemonic == ZYDIS_MNEMONIC_PUSH || form.mnemonic == ZYDIS_MNEMONIC_POP {
            if base == Self.rsp { return false }
        }
        var address = Address(base: base, index: index, shift: UInt8(random.below(4)))
        if address.index == nil { address.shift = 0 }
        let factor = UInt64(1) << UInt64(address.shift)
        var rest = effective
        if let index, index != base {
            var value = known[index].map { truncated($0) }
            if base == nil {
                // Index and displacement alone.
                let slack = Int32(truncatingIfNeeded: Int64(random.below(1 << 20)) - (1 << 19))
                address.displacement = slack
                let scaled = effective &- UInt64(bitPattern: Int64(slack))
                if scaled & (factor - 1) != 0 {
                    address.displacement += Int32(scaled & (factor - 1))
                }
                let exact = truncated(effective &- UInt64(bitPattern: Int64(address.displacement)))
                address.displacementByteCount = 4
                fields.address = address
                return set(index, garbage(exact / factor, &random))
            }
            if value == nil || random.chance(30) && reserved >> index & 1 == 0 {
                let chosen = random.chance(60) ? UInt64(random.below(300)) : random.operand()
                if !set(index, garbage(chosen, &random)) { return false }
                value = known[index].map { truncated($0) }
            }
            rest = rest &- (value ?? 0) &* factor
        }
        guard let base else { return false }
        let multiple = index == base ? 1 + factor : 1
        if let value = known[base], let fitting = displacement(truncated(rest &- truncated(value) &* multiple)) {
            // What the register holds is near enough.
            address.displacement = fitting
        } else {
            switch random.below(3) {
            case 0: address.displacement = 0
            case 1: address.displacement = Int32(random.within(-128...127))
            default: address.displacement = Int32(truncatingIfNeeded: Int64(random.operand() & 0xFFFF_FFFF))
            }
            var value = truncated(rest &- UInt64(bitPattern: Int64(address.displacement)))
            if value % multiple != 0 {
                address.displacement &+= Int32(value % multiple)
                value = truncated(rest &- UInt64(bitPattern: Int64(address.displacement)))
                if value % multiple != 0 { return false }
            }
            if !set(base, garbage(value / multiple, &random)) { return false }
        }
        if address.displacement == 0 && base & 7 != 5 && random.chance(80) {
            address.displacementByteCount = 0
        } else if Int32(Int8(truncatingIfNeeded: address.displacement)) == address.displacement && random.chance(80) {
            address.displacementByteCount = 1
        } else {
            address.displacementByteCount = 4
        }
        fields.address = address
        return true
    }
}
