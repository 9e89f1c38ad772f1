import Testing
import Translator
import X86

@Suite struct InstructionsFlagsTests {
    private func check<T: FixedWidthInteger & UnsignedInteger, S: FixedWidthInteger & SignedInteger>(
        _ a: T, _ b: T, _ signed: S.Type
    ) {
        let flags = ArithmeticFlags.subtraction(UInt64(a), UInt64(b), byteCount: T.bitWidth / 8)
        let sa = S(truncatingIfNeeded: a)
        let sb = S(truncatingIfNeeded: b)
        #expect((flags & RFlags.carry != 0) == (a < b))
        #expect((flags & RFlags.zero != 0) == (a == b))
        #expect((flags & RFlags.auxiliary != 0) == (a & 15 < b & 15))
        #expect((flags & RFlags.overflow != 0) == sa.subtractingReportingOverflow(sb).overflow)
        #expect((flags & RFlags.sign != 0) == (sa &- sb < 0))
        #expect((flags & RFlags.parity != 0) == (UInt8(truncatingIfNeeded: a &- b).nonzeroBitCount % 2 == 0))
        #expect(flags & ~RFlags.arithmetic == 0)
        // Jcc after CMP.
        #expect(ArithmeticFlags.condition(2, flags) == (a < b))
        #expect(ArithmeticFlags.condition(3, flags) == (a >= b))
        #expect(ArithmeticFlags.condition(4, flags) == (a == b))
        #expect(ArithmeticFlags.condition(5, flags) == (a != b))
        #expect(ArithmeticFlags.condition(6, flags) == (a <= b))
        #expect(ArithmeticFlags.condition(7, flags) == (a > b))
        #expect(ArithmeticFlags.condition(12, flags) == (sa < sb))
        #expect(ArithmeticFlags.condition(13, flags) == (sa >= sb))
        #expect(ArithmeticFlags.condition(14, flags) == (sa <= sb))
        #expect(ArithmeticFlags.condition(15, flags) == (sa > sb))
    }

    @Test func subtractionAndConditions() {
        let values: [UInt64] = [
            0, 1, 2, 15, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, 1 << 63, ~0
        ]
        for a in values {
            for b in values {
                check(UInt8(truncatingIfNeeded: a), UInt8(truncatingIfNeeded: b), Int8.self)
                check(UInt16(truncatingIfNeeded: a), UInt16(truncatingIfNeeded: b), Int16.self)
                check(UInt32(truncatingIfNeeded: a), UInt32(truncatingIfNeeded: b), Int32.self)
                check(a, b, Int64.self)
            }
        }
    }

    private let all: UInt64 = 0x3F_7FD5

    private func popped(
        _ image: UInt64, over flags: UInt64, byteCount: Int = 8, isProtected: Bool = true, cpl: UInt8 = 0,
        vme: Bool = false
    ) throws -> UInt64 {
        try FlagsImage.popped(
            image, over: flags, byteCount: byteCount, isProtected: isProtected, cpl: cpl,
            hasVirtual8086Extensions: vme)
    }

    @Test func popFlagsInRingZero() throws {
        let untouched = RFlags.virtual8086 | RFlags.virtualInterrupt | RFlags.virtualInterruptPending | RFlags.resume
        #expect(try popped(all, over: 0) == all & ~untouched)
        #expect(try popped(0, over: RFlags.resume | RFlags.virtualInterrupt) == RFlags.virtualInterrupt)
        #expect(try popped(all, over: 0, byteCount: 2) == all & 0xFFFF)
        #expect(try popped(0, over: RFlags.resume | RFlags.identification, byteCount: 2) & 0xFFFF == 0)
        #expect(
            try popped(0, over: RFlags.resume | RFlags.identification, byteCount: 2)
                == RFlags.resume | RFlags.identification)
    }

    @Test func popFlagsWithoutPrivilege() throws {
        // IOPL never changes in ring 3; IF only when IOPL allows.
        #expect(try popped(all, over: 0, cpl: 3) & (RFlags.ioPrivilege | RFlags.interrupt) == 0)
        #expect(
            try popped(0, over: RFlags.ioPrivilege | RFlags.interrupt, cpl: 3) == RFlags.ioPrivilege)
        #expect(
            try popped(0, over: RFlags.interrupt | 1 << 12, cpl: 1) == 1 << 12)
        #expect(try popped(0, over: RFlags.interrupt, cpl: 1) == RFlags.interrupt)
    }

    @Test func popFlagsInRealMode() throws {
        let expected = RFlags.ioPrivilege | RFlags.interrupt
        #expect(try popped(all, over: 0, byteCount: 2, isProtected: false) & expected == expected)
    }

    @Test func popFlagsInVirtual8086Mode() throws {
        let v86 = RFlags.virtual8086
        #expect(throws: GuestFault.generalProtection()) { try popped(0, over: v86, byteCount: 2, cpl: 3) }
        #expect(throws: GuestFault.generalProtection()) { try popped(0, over: v86, byteCount: 4, cpl: 3, vme: true) }
        #expect(throws: GuestFault.generalProtection()) {
            try popped(RFlags.trap, over: v86, byteCount: 2, cpl: 3, vme: true)
        }
        #expect(throws: GuestFault.generalProtection()) {
            try popped(
                RFlags.interrupt, over: v86 | RFlags.virtualInterruptPending, byteCount: 2, cpl: 3, vme: true)
        }
        #expect(
            try popped(RFlags.interrupt | 1, over: v86, byteCount: 2, cpl: 3, vme: true)
                == v86 | RFlags.virtualInterrupt | 1)
        #expect(
            try popped(0, over: v86 | RFlags.virtualInterrupt | RFlags.interrupt, byteCount: 2, cpl: 3, vme: true)
                == v86 | RFlags.interrupt)
        #expect(
            try popped(RFlags.interrupt, over: v86 | RFlags.ioPrivilege, byteCount: 2, cpl: 3)
                == v86 | RFlags.ioPrivilege | RFlags.interrupt)
    }
}
