import X86

/// The six arithmetic flags as functions of operands and results, at their places in RFLAGS.
///
/// Only instructions that are carried out in Swift need these; copied code gets its flags from the host processor.
package enum ArithmeticFlags {
    /// PF, ZF and SF of `result`, whose low `byteCount` (1, 2, 4 or 8) bytes count.
    package static func signZeroParity(_ result: UInt64, byteCount: Int) -> UInt64 {
        let bits = UInt64(byteCount * 8)
        let value = result & (~0 >> (64 - bits))
        var flags: UInt64 = 0
        if value == 0 { flags |= RFlags.zero }
        if value >> (bits - 1) != 0 { flags |= RFlags.sign }
        if UInt8(truncatingIfNeeded: value).nonzeroBitCount & 1 == 0 { flags |= RFlags.parity }
        return flags
    }

    /// All six flags of `a - b`. Both are zero-extended values of `byteCount` bytes.
    package static func subtraction(_ a: UInt64, _ b: UInt64, byteCount: Int) -> UInt64 {
        let bits = UInt64(byteCount * 8)
        let difference = a &- b
        var flags = signZeroParity(difference, byteCount: byteCount)
        if a < b { flags |= RFlags.carry }
        if (a ^ b ^ difference) & 0x10 != 0 { flags |= RFlags.auxiliary }
        if (a ^ b) & (a ^ difference) & (1 << (bits - 1)) != 0 { flags |= RFlags.overflow }
        return flags
    }

    /// Whether condition `code` (the low four bits of a Jcc opcode) holds.
    package static func condition(_ code: UInt8, _ flags: UInt64) -> Bool {
        let signDiffers = (flags & RFlags.sign != 0) != (flags & RFlags.overflow != 0)
        let holds =
            switch code >> 1 & 7 {
            case 0: flags & RFlags.overflow != 0
            case 1: flags & RFlags.carry != 0
            case 2: flags & RFlags.zero != 0
            case 3: flags & (RFlags.carry | RFlags.zero) != 0
            case 4: flags & RFlags.sign != 0
            case 5: flags & RFlags.parity != 0
            case 6: signDiffers
            default: signDiffers || flags & RFlags.zero != 0
            }
        return holds != (code & 1 != 0)
    }
}
