/// Appends machine code to an array; for the few fixed routines that tests need.
struct Assembler {
    var bytes: [UInt8] = []
    let origin: UInt64

    init(origin: UInt64) { self.origin = origin }

    var address: UInt64 { origin + UInt64(bytes.count) }

    mutating func emit(_ values: UInt8...) { bytes += values }

    mutating func int32(_ value: Int32) {
        for shift in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: value >> Int32(shift))) }
    }

    /// `opcode` with register field `reg` and a rip-relative operand at `target`.
    mutating func ripRelative(_ opcode: [UInt8], reg: Int, _ target: UInt64) {
        bytes += opcode
        bytes.append(UInt8((reg & 7) << 3 | 5))
        int32(Int32(truncatingIfNeeded: Int64(bitPattern: target &- (address &+ 4))))
    }

    /// `mov reg, [target]` or the reverse.
    mutating func moveGeneral(_ reg: Int, _ target: UInt64, store: Bool) {
        ripRelative([reg >= 8 ? 0x4C : 0x48, store ? 0x89 : 0x8B], reg: reg, target)
    }

    /// `vmovups ymm, [target]` or the reverse.
    mutating func moveVector(_ reg: Int, _ target: UInt64, store: Bool) {
        ripRelative([0xC5, reg >= 8 ? 0x7C : 0xFC, store ? 0x11 : 0x10], reg: reg, target)
    }
}
