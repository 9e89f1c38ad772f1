/// Jumps, calls and loops.
extension SequenceGenerator {
    /// Emits `body`, of which any number of instructions may be skipped.
    mutating func emitSkippable(_ body: (inout SequenceGenerator) -> Void) {
        let before = known
        body(&self)
        for i in 0..<16 where known[i] != before[i] { known[i] = nil }
    }

    mutating func patch(_ place: Int, byteCount: Int) {
        let distance = bytes.count - (place + byteCount)
        for (i, byte) in Self.littleEndian(UInt64(bitPattern: Int64(distance)), byteCount: byteCount).enumerated() {
            bytes[place + i] = byte
        }
    }

    mutating func emitForwardBranch() {
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

    mutating func emitCall() {
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

    mutating func emitLoop() {
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

    mutating func emitIndirectJump() {
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
