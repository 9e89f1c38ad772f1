import CZydis

/// Makes test cases: a starting state and a sequence of instructions that stays within ``TestArea``.
///
/// What general registers hold is tracked as far as it is known. An instruction that needs a register to hold something
/// (an address, a small count) uses what is known, or is preceded by a `mov` that sets it; before the first instruction
/// the starting value is chosen instead.
struct SequenceGenerator {
    let isNarrow: Bool
    let catalog: InstructionCatalog
    let disassembler: Disassembler
    var random: SeededGenerator

    /// The sequence so far, its place, and where its instructions start.
    private(set) var bytes: [UInt8] = []
    private(set) var starts: [Int] = []
    private var origin: UInt64 = 0

    /// The starting values of general registers, and what is known of their present values.
    private var initial = [UInt64](repeating: 0, count: 16)
    private var known = [UInt64?](repeating: nil, count: 16)
    /// Registers that must keep their values for now.
    private var reserved: UInt16 = 0

    init(isNarrow: Bool, catalog: InstructionCatalog, disassembler: Disassembler, random: SeededGenerator) {
        self.isNarrow = isNarrow
        self.catalog = catalog
        self.disassembler = disassembler
        self.random = random
    }

    private var registerCount: Int { isNarrow ? 8 : 16 }
    private var here: UInt64 { origin + UInt64(bytes.count) }
    private static var rsp: Int { 4 }

    // MARK: Cases

    /// Fills in everything but the ending of the code.
    mutating func fill(_ slot: CaseSlot) {
        bytes.removeAll(keepingCapacity: true)
        starts.removeAll(keepingCapacity: true)
        reserved = 0
        let room = TestArea.codePages << 12 - CaseSlot.maximumCodeByteCount
        let offset = random.chance(20) ? 4096 - random.below(80) : random.below(room)
        origin = TestArea.code + UInt64(offset)
        for i in 0..<16 {
            initial[i] = isNarrow ? random.operand() & 0xFFFF_FFFF : random.operand()
            known[i] = initial[i]
        }
        let count = random.chance(40) ? 1 : random.within(2...12)
        for _ in 0..<count where bytes.count < CaseSlot.maximumCodeByteCount - 300 { emitUnit() }

        slot.codeOffset = offset
        slot.image = random.below(MemoryImages.count)
        slot.isNarrow = isNarrow
        let input = slot.input
        for i in 0..<16 { input[i] = i < registerCount ? initial[i] : 0 }
        input.flags = random.next() & 0x8D5 | 0x202
        input.entry = origin
        for i in 0..<16 {
            for lane in 0..<4 {
                let value = isNarrow && i >= 8 ? 0 : random.operand()
                input.vectorRegister(i).storeBytes(of: value, toByteOffset: lane * 8, as: UInt64.self)
            }
        }
        fillFloatingPoint(input)
    }

    private mutating func fillFloatingPoint(_ input: RegisterBlock) {
        let area = input.fxsave
        area.initializeMemory(as: UInt8.self, repeating: 0, count: 512)
        // Precision 01 is reserved.
        let precision = random.element([0, 2, 3])
        let masks = random.chance(90) ? 0x3F : random.below(64)
        area.storeBytes(of: UInt16(masks | 0x40 | precision << 8 | random.below(4) << 10), as: UInt16.self)
        var status = UInt16(random.below(8) << 11) | UInt16(truncatingIfNeeded: random.next()) & 0x4700
        if random.chance(5) { status |= UInt16(random.below(64)) }
        if Int(status) & 0x3F & ~masks != 0 { status |= 0x8080 }
        area.storeBytes(of: status, toByteOffset: 2, as: UInt16.self)
        let tags: UInt8 = random.element([0, 0xFF, random.byte()])
        area.storeBytes(of: tags, toByteOffset: 4, as: UInt8.self)
        for i in 0..<8 {
            area.storeBytes(
                of: random.operand() | (random.chance(80) ? 1 << 63 : 0), toByteOffset: 32 + i * 16, as: UInt64.self)
            let exponent = random.chance(80) ? 16383 + random.within(-70...70) : random.below(0x8000)
            area.storeBytes(
                of: UInt16(exponent) | UInt16(random.below(2)) << 15, toByteOffset: 40 + i * 16, as: UInt16.self)
        }
        var control = UInt32(random.below(4) << 13)
        control |= random.chance(85) ? 0x1F80 : UInt32(random.below(64)) << 7
        if random.chance(20) { control |= 0x8000 }
        if random.chance(20) { control |= 0x40 }
        if random.chance(30) { control |= UInt32(random.below(64)) }
        input.mxcsr = control
    }

    private mutating func emitUnit() {
        switch random.below(100) {
        case 0..<78: emitOrdinary()
        case 78..<90: emitForwardBranch()
        case 90..<95: emitCall()
        case 95..<98: emitLoop()
        default: emitIndirectJump()
        }
    }

    // MARK: Bytes

    private mutating func append(_ instruction: [UInt8]) {
        starts.append(bytes.count)
        bytes += instruction
    }

    private static func littleEndian(_ value: UInt64, byteCount: Int) -> [UInt8] {
        (0..<byteCount).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }

    /// Makes `register` hold `value`. Returns false if it is reserved.
    private mutating func set(_ register: Int, _ value: UInt64) -> Bool {
        let value = isNarrow ? value & 0xFFFF_FFFF : value
        if known[register] == value { return true }
        if reserved >> register & 1 != 0 { return false }
        if starts.isEmpty {
            initial[register] = value
        } else if isNarrow {
            append([0xB8 | UInt8(register)] + Self.littleEndian(value, byteCount: 4))
        } else {
            append([0x48 | UInt8(register >> 3), 0xB8 | UInt8(register & 7)] + Self.littleEndian(value, byteCount: 8))
        }
        known[register] = value
        return true
    }

    private mutating func forget(_ registers: UInt16) {
        for i in 0..<16 where registers >> i & 1 != 0 { known[i] = nil }
    }

    // MARK: Ordinary instructions

    private mutating func emitOrdinary() {
        while true {
            let groups = random.chance(2) && !catalog.rareGroups.isEmpty ? catalog.rareGroups : catalog.groups
            if emit(random.element(random.element(groups))) { return }
        }
    }

    /// What a form still leaves open.
    private struct Fields {
        var reg: UInt8 = 0
        var rm: UInt8 = 0
        var vexV: UInt8 = 0
        var hasREX = false
        var hasLock = false
        var hasOperandSize = false
        var hasAddressSize = false
        var segmentPrefix: UInt8 = 0
        var hasGSBase: Bool { segmentPrefix == 0x65 }
        var immediate: [UInt8] = []
        var address = Address()
    }

    private struct Address {
        var base: Int?
        var index: Int?
        var shift: UInt8 = 0
        var displacement: Int32 = 0
        var displacementByteCount = 0
        var isRIPRelative = false
    }

    /// Emits an instance of `form`, unless the random choices make none.
    private mutating func emit(_ form: InstructionForm) -> Bool {
        let checkpoint = (bytes.count, starts.count, known, initial)
        if tryEmit(form) { return true }
        bytes.removeLast(bytes.count - checkpoint.0)
        starts.removeLast(starts.count - checkpoint.1)
        known = checkpoint.2
        initial = checkpoint.3
        return false
    }

    private mutating func tryEmit(_ form: InstructionForm) -> Bool {
        var fields = Fields()
        let extended: UInt8 = isNarrow ? 0 : 8
        fields.reg = form.reg | UInt8(random.below(2)) * extended
        fields.rm = (form.isX87 ? form.rm : UInt8(random.below(8))) | UInt8(random.below(2)) * extended
        fields.vexV = form.encoding == .vex ? UInt8(random.below(registerCount)) : 0
        fields.hasREX = !isNarrow && form.encoding == .legacy && (form.isWide || random.chance(55))
        if form.encoding == .legacy && !fields.hasREX {
            fields.reg &= 7
            fields.rm &= 7
        }
        // With REX.B it is an XCHG, which Zydis does not know.
        if form.mnemonic == ZYDIS_MNEMONIC_PAUSE { fields.rm &= 7 }
        fields.hasOperandSize = form.encoding == .legacy && form.prefix & 0xF2 == 0xF2 && random.chance(10)
        fields.hasAddressSize = !isNarrow && random.chance(form.isMemory ? 8 : 3)
        if random.chance(8) {
            fields.segmentPrefix = random.element(
                isNarrow ? [0x26, 0x2E, 0x36, 0x3E] : [0x65, 0x65, 0x26, 0x2E, 0x36, 0x3E])
        }
        let isAtomic = form.acceptsLock && random.chance(35)
        fields.hasLock = isAtomic && form.encoding == .legacy
        fields.immediate = (0..<form.immediateByteCount).map { _ in
            random.chance(30) ? UInt8(random.below(4)) : random.byte()
        }
        if Self.hasAbsoluteOffset(form) {
            fields.immediate = [UInt8](repeating: 0, count: fields.hasAddressSize || isNarrow ? 4 : 8)
        }
        // With a plain address, to see what it does.
        fields.address.base = 7
        var sample = encode(form, fields)
        if !disassembler.decode(sample) && form.encoding == .vex {
            // Most instructions with one source want VEX.vvvv to be 1111.
            fields.vexV = 0
            sample = encode(form, fields)
        }
        guard disassembler.decode(sample), disassembler.mnemonic == form.mnemonic else { return false }
        if !form.isMemory || !form.hasModRM {
            guard prepareImplicit(form, &fields) else { return false }
        }
        guard prepareOperands(form, fields) else { return false }
        if form.isMemory && form.hasModRM {
            guard let operand = disassembler.decode(sample) ? disassembler.memoryOperand : nil else { return false }
            let size = operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN ? 1 : Int(operand.size) / 8
            guard chooseAddress(form, &fields, byteCount: max(size, 1)) else { return false }
        }
        let instruction = encode(form, fields)
        guard instruction.count <= 15, disassembler.decode(instruction), disassembler.mnemonic == form.mnemonic,
            Int(disassembler.instruction.pointee.length) == instruction.count
        else { return false }
        let written = disassembler.writtenRegisters
        if written & reserved != 0 { return false }
        let stackPointer = known[Self.rsp]
        let width = UInt64(disassembler.instruction.pointee.operand_width) / 8
        append(instruction)
        forget(written)
        if let stackPointer, form.mnemonic == ZYDIS_MNEMONIC_PUSH, written == 1 << Self.rsp {
            known[Self.rsp] = stackPointer &- width
        }
        return true
    }

    private func encode(_ form: InstructionForm, _ fields: Fields) -> [UInt8] {
        var code: [UInt8] = []
        if fields.segmentPrefix != 0 { code.append(fields.segmentPrefix) }
        if fields.hasAddressSize { code.append(0x67) }
        let address = fields.address
        let isMemory = form.isMemory && form.hasModRM
        let r = fields.reg >> 3
        var x: UInt8 = 0
        var b = fields.rm >> 3
        if isMemory {
            x = UInt8((address.index ?? 0) >> 3)
            b = UInt8((address.base ?? 0) >> 3)
        }
        if form.encoding == .vex {
            let pp: UInt8 = form.prefix == 0x66 ? 1 : form.prefix == 0xF3 ? 2 : form.prefix == 0xF2 ? 3 : 0
            code += [0xC4, (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | form.map]
            code.append((form.isWide ? 0x80 : 0) | (~fields.vexV & 15) << 3 | form.length << 2 | pp)
        } else {
            if fields.hasOperandSize { code.append(0x66) }
            if fields.hasLock { code.append(0xF0) }
            if form.prefix != 0 { code.append(form.prefix) }
            let rex: UInt8 = (form.isWide ? 8 : 0) | r << 2 | x << 1 | b
            if rex != 0 || fields.hasREX { code.append(0x40 | rex) }
            if form.map > 0 { code.append(0x0F) }
            if form.map == 2 { code.append(0x38) }
            if form.map == 3 { code.append(0x3A) }
        }
        code.append(form.opcode)
        if form.hasModRM {
            if isMemory {
                code += Self.modRM(reg: fields.reg, address, isNarrow: isNarrow)
            } else {
                code.append(0xC0 | (fields.reg & 7) << 3 | fields.rm & 7)
            }
        }
        return code + fields.immediate
    }

    private static func modRM(reg: UInt8, _ address: Address, isNarrow: Bool) -> [UInt8] {
        let reg = (reg & 7) << 3
        let displacement = littleEndian(UInt64(UInt32(bitPattern: address.displacement)), byteCount: 4)
        if address.isRIPRelative { return [reg | 5] + displacement }
        guard let base = address.base else {
            if address.index == nil && isNarrow { return [reg | 5] + displacement }
            return [reg | 4, address.shift << 6 | UInt8((address.index ?? 4) & 7) << 3 | 5] + displacement
        }
        let mod: UInt8 = address.displacementByteCount == 0 ? 0 : address.displacementByteCount == 1 ? 0x40 : 0x80
        var code: [UInt8]
        if address.index != nil || base & 7 == 4 {
            code = [mod | reg | 4, address.shift << 6 | UInt8((address.index ?? 4) & 7) << 3 | UInt8(base & 7)]
        } else {
            code = [mod | reg | UInt8(base & 7)]
        }
        return code + displacement.prefix(address.displacementByteCount)
    }

    // MARK: Operands

    /// A place for an access of `byteCount` bytes.
    private mutating func place(_ byteCount: Int, mustAlign: Bool, margin: Int = 64) -> UInt64 {
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

    /// Sets registers that the instruction uses in a way that random values would make pointless.
    private mutating func prepareOperands(_ form: InstructionForm, _ fields: Fields) -> Bool {
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
    private mutating func prepareImplicit(_ form: InstructionForm, _ fields: inout Fields) -> Bool {
        let instruction = disassembler.instruction.pointee
        if form.mnemonic == ZYDIS_MNEMONIC_LEAVE { return set(5, stackPlace()) }
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
            let isInstance = set(6, place(8, mustAlign: false, margin: 512) &- base)
            return isInstance && set(7, place(8, mustAlign: false, margin: 512))
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
    private static func hasAbsoluteOffset(_ form: InstructionForm) -> Bool {
        form.encoding == .legacy && form.map == 0 && form.opcode & 0xFC == 0xA0
    }

    private mutating func stackPlace() -> UInt64 {
        let size = TestArea.stackPages << 12
        let offset = random.within(512...(size - 512))
        return TestArea.stack
            + UInt64(random.chance(85) ? offset & ~7 : random.chance(50) ? offset : 4096 + random.within(-7...7))
    }

    /// Makes RSP point into the stack.
    private mutating func prepareStack() -> Bool {
        if let value = known[Self.rsp], value >= TestArea.stack + 256,
            value < TestArea.stack + UInt64(TestArea.stackPages << 12 - 256)
        {
            return true
        }
        return set(Self.rsp, stackPlace())
    }

    /// Chooses an address for a memory operand and sets the registers in it.
    private mutating func chooseAddress(_ form: InstructionForm, _ fields: inout Fields, byteCount: Int) -> Bool {
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
    private mutating func presetAccumulator(_ form: InstructionForm, _ target: UInt64, isFar: Bool) {
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

    /// BT, BTS, BTR and BTC with the bit's number in a register.
    private static func hasBitOffset(_ form: InstructionForm) -> Bool {
        switch form.mnemonic {
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            return form.isMemory && form.immediateByteCount == 0
        default: return false
        }
    }

    private mutating func chooseRegisters(_ form: InstructionForm, _ fields: inout Fields, _ effective: UInt64) -> Bool
    {
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

    // MARK: Branches

    /// Emits `body`, of which any number of instructions may be skipped.
    private mutating func emitSkippable(_ body: (inout SequenceGenerator) -> Void) {
        let before = known
        body(&self)
        for i in 0..<16 where known[i] != before[i] { known[i] = nil }
    }

    private mutating func patch(_ place: Int, byteCount: Int) {
        let distance = bytes.count - (place + byteCount)
        for (i, byte) in Self.littleEndian(UInt64(bitPattern: Int64(distance)), byteCount: byteCount).enumerated() {
            bytes[place + i] = byte
        }
    }

    private mutating func emitForwardBranch() {
        let condition = UInt8(random.below(16))
        if random.chance(15) {
            // jrcxz, jecxz
            if random.chance(70), !set(1, random.chance(50) ? 0 : random.chance(50) ? 1 << 32 : 1) { return }
            append((random.chance(30) ? [0x67] : []) + [0xE3, 0])
            let place = bytes.count - 1
            emitSkippable { $0.emitOrdinary() }
            patch(place, byteCount: 1)
        } else if random.chance(40) {
            append([random.chance(85) ? 0x70 | condition : 0xEB, 0])
            let place = bytes.count - 1
            emitSkippable { $0.emitOrdinary() }
            patch(place, byteCount: 1)
        } else {
            append((random.chance(85) ? [0x0F, 0x80 | condition] : [0xE9]) + [0, 0, 0, 0])
            let place = bytes.count - 4
            let count = random.within(1...2)
            emitSkippable { generator in
                for _ in 0..<count { generator.emitOrdinary() }
            }
            patch(place, byteCount: 4)
        }
    }

    private mutating func emitCall() {
        guard reserved == 0, prepareStack() else { return }
        // call f; jmp end; f: …; ret; end:
        var target: Int?
        switch random.below(4) {
        case 0:
            // The target in a register; its address is known when the rest has been laid out.
            let register = random.element((0..<registerCount).filter { $0 != Self.rsp })
            if starts.isEmpty { append([0x90]) }
            let start = bytes.count
            if isNarrow {
                append([0xB8 | UInt8(register), 0, 0, 0, 0])
                append([0xFF, 0xD0 | UInt8(register)])
            } else {
                append([0x41 & (0x40 | UInt8(register >> 3)), 0xB8 | UInt8(register & 7), 0, 0, 0, 0])
                append([0x40 | UInt8(register >> 3), 0xFF, 0xD0 | UInt8(register & 7)])
            }
            known[register] = nil
            target = start + (isNarrow ? 1 : 2)
        default: append([0xE8, 5, 0, 0, 0])
        }
        let jump = bytes.count
        append([0xE9, 0, 0, 0, 0])
        if let target {
            for (i, byte) in Self.littleEndian(here, byteCount: 4).enumerated() { bytes[target + i] = byte }
        }
        let outer = known
        if let stack = known[Self.rsp] { known[Self.rsp] = stack &- (isNarrow ? 4 : 8) }
        reserved |= 1 << Self.rsp
        emitOrdinary()
        if random.chance(50) { emitOrdinary() }
        reserved &= ~(1 << Self.rsp)
        let extra = random.chance(25) ? random.below(9) * 8 : 0
        append(extra == 0 ? [0xC3] : [0xC2, UInt8(extra), 0])
        if known[Self.rsp] != nil, let stack = outer[Self.rsp] { known[Self.rsp] = stack &+ UInt64(extra) }
        for (i, byte) in Self.littleEndian(UInt64(bytes.count - jump - 5), byteCount: 4).enumerated() {
            bytes[jump + 1 + i] = byte
        }
    }

    private mutating func emitLoop() {
        guard reserved == 0, set(1, UInt64(random.within(1...6))) else { return }
        if starts.isEmpty { append([0x90]) }
        let start = bytes.count
        // Only what does not change between rounds is known inside.
        let before = known
        reserved |= 1 << 1
        for i in 0..<16 where i != 1 { known[i] = nil }
        emitOrdinary()
        reserved &= ~(1 << 1)
        known[1] = nil
        for i in 0..<16 where known[i] != before[i] { known[i] = nil }
        let kind = random.below(4)
        if kind == 3 {
            // dec ecx; jnz
            append(isNarrow ? [0x49] : [0xFF, 0xC9])
            append([0x75, 0])
        } else {
            append((random.chance(20) ? [0x67] : []) + [0xE2 - UInt8(kind), 0])
        }
        let distance = start - bytes.count
        if distance < -128 {
            // Too far: no loop, the place is filled with a jump to the next instruction.
            return
        }
        bytes[bytes.count - 1] = UInt8(bitPattern: Int8(distance))
    }

    private mutating func emitIndirectJump() {
        guard reserved == 0 else { return }
        let slotPlace = TestArea.data + UInt64(random.within(8...400) * 8)
        switch random.below(3) {
        case 0:
            // push target; ret
            guard prepareStack() else { return }
            append([0x68, 0, 0, 0, 0])
            let place = bytes.count - 4
            append([0xC3])
            for (i, byte) in Self.littleEndian(here, byteCount: 4).enumerated() { bytes[place + i] = byte }
        case 1:
            // mov register, target; jmp register
            let register = random.element((0..<registerCount).filter { $0 != Self.rsp })
            append((isNarrow ? [] : [0x40 | UInt8(register >> 3)]) + [0xB8 | UInt8(register & 7), 0, 0, 0, 0])
            let place = bytes.count - 4
            append((isNarrow ? [] : [0x40 | UInt8(register >> 3)]) + [0xFF, 0xE0 | UInt8(register & 7)])
            known[register] = nil
            for (i, byte) in Self.littleEndian(here, byteCount: 4).enumerated() { bytes[place + i] = byte }
        default:
            // mov [slot], target; jmp [slot]
            let absolute = (isNarrow ? [0x05] : [0x04, 0x25]) + Self.littleEndian(slotPlace, byteCount: 4)
            append((isNarrow ? [] : [0x48]) + [0xC7] + absolute + [0, 0, 0, 0])
            let place = bytes.count - 4
            append([0xFF, absolute[0] | 0x20] + absolute.dropFirst())
            for (i, byte) in Self.littleEndian(here, byteCount: 4).enumerated() { bytes[place + i] = byte }
        }
    }
}
