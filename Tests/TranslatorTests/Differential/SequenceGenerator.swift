import CZydis
import TestSupport

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
    var bytes: [UInt8] = []
    var starts: [Int] = []
    /// The mnemonics of the catalog's forms in the sequence.
    var mnemonics: Set<UInt32> = []
    var origin: UInt64 = 0

    /// The starting values of general registers, and what is known of their present values.
    var initial = [UInt64](repeating: 0, count: 16)
    var known = [UInt64?](repeating: nil, count: 16)
    /// Registers that must keep their values for now.
    var reserved: UInt16 = 0

    init(isNarrow: Bool, catalog: InstructionCatalog, disassembler: Disassembler, random: SeededGenerator) {
        self.isNarrow = isNarrow
        self.catalog = catalog
        self.disassembler = disassembler
        self.random = random
    }

    var registerCount: Int { isNarrow ? 8 : 16 }
    var here: UInt64 { origin + UInt64(bytes.count) }
    static var rsp: Int { 4 }

    // MARK: Cases

    /// Fills in everything but the ending of the code.
    mutating func fill(_ slot: CaseSlot) {
        bytes.removeAll(keepingCapacity: true)
        starts.removeAll(keepingCapacity: true)
        mnemonics.removeAll(keepingCapacity: true)
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

    mutating func fillFloatingPoint(_ input: RegisterBlock) {
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

    mutating func emitUnit() {
        switch random.below(100) {
        case 0..<74: emitOrdinary()
        case 74..<86: emitForwardBranch()
        case 86..<91: emitCall()
        case 91..<94: emitLoop()
        case 94..<96: emitIndirectJump()
        default: emitSpecial()
        }
    }

    // MARK: Bytes

    mutating func append(_ instruction: [UInt8]) {
        starts.append(bytes.count)
        bytes += instruction
    }

    static func littleEndian(_ value: UInt64, byteCount: Int) -> [UInt8] {
        (0..<byteCount).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }

    /// Makes `register` hold `value`. Returns false if it is reserved.
    mutating func set(_ register: Int, _ value: UInt64) -> Bool {
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

    mutating func forget(_ registers: UInt16) {
        for i in 0..<16 where registers >> i & 1 != 0 { known[i] = nil }
    }
}
