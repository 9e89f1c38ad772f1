import CZydis

/// Instances of the catalog's forms.
extension SequenceGenerator {
    mutating func emitOrdinary() {
        while true {
            let groups = random.chance(2) && !catalog.rareGroups.isEmpty ? catalog.rareGroups : catalog.groups
            if emit(random.element(random.element(groups))) { return }
        }
    }

    /// What a form still leaves open.
    struct Fields {
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

    struct Address {
        var base: Int?
        var index: Int?
        var shift: UInt8 = 0
        var displacement: Int32 = 0
        var displacementByteCount = 0
        var isRIPRelative = false
    }

    /// Emits an instance of `form`, unless the random choices make none.
    mutating func emit(_ form: InstructionForm) -> Bool {
        let checkpoint = (bytes.count, starts.count, known, initial)
        if tryEmit(form) { return true }
        bytes.removeLast(bytes.count - checkpoint.0)
        starts.removeLast(starts.count - checkpoint.1)
        known = checkpoint.2
        initial = checkpoint.3
        return false
    }

    mutating func tryEmit(_ form: InstructionForm) -> Bool {
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
                isNarrow ? [0x26, 0x36, 0x3E] : [0x65, 0x65, 0x26, 0x2E, 0x36, 0x3E])
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
        let undefined = undefinedFlags
        if undefined != 0, reserved != 0 || !set(Self.rsp, stackPlace()) { return false }
        let stackPointer = known[Self.rsp]
        let width = UInt64(disassembler.instruction.pointee.operand_width) / 8
        append(instruction)
        // Zydis does not count how string instructions step.
        let steps: UInt16 =
            disassembler.instruction.pointee.meta.category == ZYDIS_CATEGORY_STRINGOP ? 1 << 6 | 1 << 7 : 0
        forget(written | steps)
        if let stackPointer, form.mnemonic == ZYDIS_MNEMONIC_PUSH, written == 1 << Self.rsp {
            known[Self.rsp] = stackPointer &- width
        }
        if undefined != 0 { emitClearFlags(undefined) }
        return true
    }

    /// The flags that the decoded instruction leaves undefined, if it is one that Swift executes; copied ones give them the
    /// values the host gives them.
    private var undefinedFlags: UInt32 {
        let instruction = disassembler.instruction.pointee
        guard instruction.meta.category == ZYDIS_CATEGORY_DECIMAL, let flags = instruction.cpu_flags else { return 0 }
        return flags.pointee.undefined
    }

    /// pushf; and [esp], ~flags; popf, which stay with the instruction before them when a case is shrunk.
    private mutating func emitClearFlags(_ flags: UInt32) {
        bytes.append(0x9C)
        bytes += (isNarrow ? [] : [0x48]) + [0x81, 0x24, 0x24] + Self.littleEndian(UInt64(~flags), byteCount: 4)
        bytes.append(0x9D)
    }

    func encode(_ form: InstructionForm, _ fields: Fields) -> [UInt8] {
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

    static func modRM(reg: UInt8, _ address: Address, isNarrow: Bool) -> [UInt8] {
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
}
