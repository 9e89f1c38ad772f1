/// Instructions that a random instance would not do justice: they need prepared operands, or leave something in memory that
/// cannot be compared.
extension SequenceGenerator {
    mutating func emitSpecial() {
        switch random.below(7) {
        case 0: emitPopFlags()
        case 1: emitEnter()
        case 2: emitFloatingEnvironment(saves: false)
        case 3: emitFloatingEnvironment(saves: true)
        case 4: emitFXSave()
        case 5 where !isNarrow: emitGather()
        default: emitForbidden()
        }
    }

    /// ModRM, SIB and displacement of `[address]`.
    private func absolute(_ reg: UInt8, _ address: UInt64) -> [UInt8] {
        (isNarrow ? [reg << 3 | 5] : [reg << 3 | 4, 0x25]) + Self.littleEndian(address, byteCount: 4)
    }

    /// Zeroes the 32 bits at each of `offsets` from `address`: addresses of instructions and operands.
    private mutating func emitZeroes(_ address: UInt64, _ offsets: [UInt64]) {
        for offset in offsets { append([0xC7] + absolute(0, address + offset) + [0, 0, 0, 0]) }
    }

    private mutating func emitPopFlags() {
        guard reserved == 0, prepareStack() else { return }
        // Neither TF, which would trap, nor AC, NT, RF and VM.
        let flags = random.next() & 0xFFFF_FFFF & ~0x7_4100
        append([0x68] + Self.littleEndian(flags & 0x7FFF_FFFF, byteCount: 4))
        append(random.chance(20) ? [0x66, 0x9D] : [0x9D])
        known[Self.rsp] = nil
        emitOrdinary()
    }

    private mutating func emitEnter() {
        guard reserved == 0, prepareStack(), set(5, stackPlace()) else { return }
        let level = UInt8(random.chance(60) ? 0 : random.chance(80) ? random.below(4) : random.below(256) & 0xE3)
        append((random.chance(20) ? [0x66] : []) + [0xC8, random.byte() & 0x7F, 0, level])
        forget(1 << 4 | 1 << 5)
    }

    /// FNSTENV and FLDENV, or FNSAVE and FRSTOR.
    private mutating func emitFloatingEnvironment(saves: Bool) {
        let address = place(108, mustAlign: false, margin: 128)
        let isShort = random.chance(30)
        let prefix: [UInt8] = isShort ? [0x66] : []
        let opcode: UInt8 = saves ? 0xDD : 0xD9
        append(prefix + [opcode] + absolute(6, address))
        emitZeroes(address, isShort ? [6, 10] : [12, 16, 20, 24])
        emitOrdinary()
        if random.chance(70) {
            if random.chance(30) {
                // Another status and other tags.
                append(
                    [0xC7] + absolute(0, address + (isShort ? 2 : 4))
                        + Self.littleEndian(random.next() & 0x7F00, byteCount: 4))
            }
            append(prefix + [opcode] + absolute(4, address))
        }
        emitOrdinary()
    }

    private mutating func emitFXSave() {
        var address = place(512, mustAlign: false, margin: 64)
        if random.chance(95) { address &= ~15 }
        let wide: [UInt8] = !isNarrow && random.chance(50) ? [0x48] : []
        append(wide + [0x0F, 0xAE] + absolute(0, address))
        emitZeroes(address, [8, 12, 16, 20])
        append([0x66, 0xC7] + absolute(0, address + 6) + [0, 0])
        emitOrdinary()
        if random.chance(70) {
            if random.chance(20) {
                // Bytes of registers and control words, some of them reserved.
                append([0xC6] + absolute(0, address + UInt64(random.below(416))) + [random.byte()])
                if random.chance(80) { emitZeroes(address, [8, 12, 16, 20, 24]) }
            }
            append(wide + [0x0F, 0xAE] + absolute(1, address))
        }
        emitOrdinary()
    }

    /// A gather whose indices have been made small.
    private mutating func emitGather() {
        let opcode = random.element([UInt8(0x90), 0x91, 0x92, 0x93])
        let isWide = random.chance(50)
        let isLong = random.chance(50)
        let vectors = (0..<16).map { UInt8($0) }.shuffled(using: &random)
        let (target, index, mask) = (vectors[0], vectors[1], vectors[2])
        let target0 = TestArea.data + UInt64(random.within(64...0x1F00))
        let base = random.element([0, 3, 9, 12, 13])
        guard set(base, target0) else { return }
        // vpsrld or vpsrlq index, index, leaving ten bits.
        let isDword = opcode & 1 == 0
        append([
            0xC4, (index >> 3 ^ 1) << 5 | 0xC1, 0x01 | (~index & 15) << 3 | 4, isDword ? 0x72 : 0x73,
            0xD0 | index & 7, isDword ? 22 : 54
        ])
        append([
            0xC4, (target >> 3 ^ 1) << 7 | (index >> 3 ^ 1) << 6 | UInt8(base >> 3 ^ 1) << 5 | 2,
            (isWide ? 0x80 : 0) | (~mask & 15) << 3 | (isLong ? 4 : 0) | 1, opcode, 0x44 | (target & 7) << 3,
            UInt8(random.below(4)) << 6 | (index & 7) << 3 | UInt8(base & 7), random.byte() & 0x7F
        ])
    }

    /// What user code must not do, and what is no instruction.
    private mutating func emitForbidden() {
        var choices: [[UInt8]] = [
            [0xFA], [0xFB], [0xE4, 0x80], [0xE5, 0x80], [0xE6, 0x80], [0xE7, 0x80], [0xEC], [0xED], [0xEE], [0xEF],
            [0x6C], [0x6D], [0x6E], [0x6F], [0x0F, 0x06], [0x0F, 0x08], [0x0F, 0x09], [0x0F, 0x20, 0xC0],
            [0x0F, 0x22, 0xC0], [0x0F, 0x21, 0xF8], [0x0F, 0x23, 0xF8], [0x0F, 0x30], [0x0F, 0x32], [0x0F, 0x33],
            [0x0F, 0x01, 0xF8], [0x0F, 0x01, 0xD1], [0x0F, 0x01, 0x38], [0x0F, 0x01, 0x10], [0x0F, 0x01, 0x18],
            [0x0F, 0x00, 0xD0], [0x0F, 0x00, 0xD8], [0x0F, 0x0B], [0x0F, 0xFF, 0xC0], [0x0F, 0xB9, 0xC0],
            [0xCC], [0xCD, 0x03], [0xCD, 0x20], [0xCD, 0x0D], [0xCD, 0xFF], [0x0F, 0x01, 0xCA], [0x0F, 0x01, 0xCB],
            [0xF0, 0x90], [0xF0, 0x01, 0xC0], [0xF0, 0x8B, 0x03], [0x8E, 0xC8], [0x0F, 0x20, 0xC8],
            [0x0F, 0x24, 0xC0], [0x0F, 0x3A, 0xFF, 0xC0, 0], [0x0F, 0x38, 0xEE, 0xC0], [0xFF, 0xF8], [0xFE, 0xD0],
            [0xC7, 0xC8],
            [0x8F, 0xC8, 0, 0], [0xC6, 0xC8], [0xF3, 0x0F, 0xAE, 0x38],
            [UInt8](repeating: 0x66, count: 15) + [0x90]
        ]
        if isNarrow {
            choices.append([0xCE])
        } else {
            choices += [[0x06], [0x07], [0x0E], [0x16], [0x27], [0x37], [0x3F], [0x60], [0x61], [0xD4, 10], [0xD5, 10]]
            choices += [[0xD6], [0x9A, 0, 0, 0, 0, 0, 0], [0xEA, 0, 0, 0, 0, 0, 0], [0x82, 0xC0, 1], [0xCE]]
            choices += [[0x40, 0x66, 0x90], [0xC4, 0xE0, 0x78, 0x10, 0xC0], [0x66, 0xC5, 0xF8, 0x10, 0xC0]]
            choices += [[0xF0, 0xC5, 0xF8, 0x10, 0xC0], [0x48, 0xC5, 0xF8, 0x10, 0xC0]]
        }
        append(random.element(choices))
        forget(0xFFFF)
    }
}
