import X86

// The decimal instructions, which 64-bit mode lacks.

extension Processor {
    /// AAA, AAS, DAA and DAS.
    func executeDecimal(_ i: DecodedInstruction, _ adjust: (DecimalAdjust) -> DecimalAdjust) {
        let result = adjust(
            DecimalAdjust(ax: UInt16(truncatingIfNeeded: state[.rax]), flags: state.arithmeticFlags))
        finishDecimal(i, result)
    }

    func executeAAM(_ i: DecodedInstruction) throws(GuestFault) {
        let base = UInt8(truncatingIfNeeded: i.operand(0).immediate)
        if base == 0 { throw .exception(.divideError) }
        let ax = UInt16(truncatingIfNeeded: state[.rax])
        finishDecimal(i, DecimalAdjust(ax: ax, flags: state.arithmeticFlags).aam(base))
    }

    func executeAAD(_ i: DecodedInstruction) {
        let base = UInt8(truncatingIfNeeded: i.operand(0).immediate)
        let ax = UInt16(truncatingIfNeeded: state[.rax])
        finishDecimal(i, DecimalAdjust(ax: ax, flags: state.arithmeticFlags).aad(base))
    }

    /// SALC: AL becomes FFH if CF is set, otherwise 0.
    func executeSetALFromCarry(_ i: DecodedInstruction) {
        writeGeneral(.rax, state.arithmeticFlags & RFlags.carry != 0 ? 0xFF : 0, byteCount: 1)
        advance(i)
    }

    private func finishDecimal(_ i: DecodedInstruction, _ result: DecimalAdjust) {
        writeGeneral(.rax, UInt64(result.ax), byteCount: 2)
        state.arithmeticFlags = result.flags
        advance(i)
    }
}

/// AX and the arithmetic flags, as decimal instructions change them. Flags that the manual leaves undefined keep their
/// values, except that AAM clears them.
///
/// > Source: Intel SDM volume 2, the instructions' operation sections.
package struct DecimalAdjust: Equatable, Sendable {
    package var ax: UInt16
    package var flags: UInt64

    package init(ax: UInt16, flags: UInt64) {
        self.ax = ax
        self.flags = flags
    }

    private var al: UInt8 { UInt8(truncatingIfNeeded: ax) }
    /// Whether the low digit is beyond 9, or a carry or borrow left it.
    private var needsLowAdjustment: Bool { al & 15 > 9 || flags & RFlags.auxiliary != 0 }

    private func replacing(al: UInt8) -> UInt16 { ax & 0xFF00 | UInt16(al) }

    private func withCarries(auxiliary: Bool, carry: Bool) -> UInt64 {
        flags & ~(RFlags.auxiliary | RFlags.carry) | (auxiliary ? RFlags.auxiliary : 0) | (carry ? RFlags.carry : 0)
    }

    private static func withResult(_ flags: UInt64, _ al: UInt8) -> UInt64 {
        flags & ~(RFlags.sign | RFlags.zero | RFlags.parity)
            | ArithmeticFlags.signZeroParity(UInt64(al), byteCount: 1)
    }

    package var aaa: Self {
        let adjusts = needsLowAdjustment
        let sum = adjusts ? ax &+ 0x106 : ax
        return Self(ax: sum & 0xFF0F, flags: withCarries(auxiliary: adjusts, carry: adjusts))
    }

    package var aas: Self {
        let adjusts = needsLowAdjustment
        let difference = adjusts ? ax &- 0x106 : ax
        return Self(ax: difference & 0xFF0F, flags: withCarries(auxiliary: adjusts, carry: adjusts))
    }

    package var daa: Self {
        let adjustsLow = needsLowAdjustment
        let adjustsHigh = al > 0x99 || flags & RFlags.carry != 0
        let result = al &+ (adjustsLow ? 6 : 0) &+ (adjustsHigh ? 0x60 : 0)
        let carries = withCarries(auxiliary: adjustsLow, carry: adjustsHigh)
        return Self(ax: replacing(al: result), flags: Self.withResult(carries, result))
    }

    package var das: Self {
        let adjustsLow = needsLowAdjustment
        let adjustsHigh = al > 0x99 || flags & RFlags.carry != 0
        let result = al &- (adjustsLow ? 6 : 0) &- (adjustsHigh ? 0x60 : 0)
        let borrows = adjustsLow && al < 6
        let carries = withCarries(auxiliary: adjustsLow, carry: adjustsHigh || borrows)
        return Self(ax: replacing(al: result), flags: Self.withResult(carries, result))
    }

    /// - Parameter base: not 0.
    package func aam(_ base: UInt8) -> Self {
        let remainder = al % base
        return Self(ax: UInt16(al / base) << 8 | UInt16(remainder), flags: Self.withResult(0, remainder))
    }

    package func aad(_ base: UInt8) -> Self {
        let result = al &+ UInt8(ax >> 8) &* base
        return Self(ax: UInt16(result), flags: Self.withResult(flags, result))
    }
}
