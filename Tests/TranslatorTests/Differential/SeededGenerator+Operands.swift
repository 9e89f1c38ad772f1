import TestSupport

extension SeededGenerator {
    /// A number below `bound`, which is positive.
    mutating func below(_ bound: Int) -> Int {
        Int(truncatingIfNeeded: next().multipliedFullWidth(by: UInt64(bound)).high)
    }

    mutating func within(_ range: ClosedRange<Int>) -> Int {
        range.lowerBound + below(range.upperBound - range.lowerBound + 1)
    }

    /// True in `percent` of 100 calls.
    mutating func chance(_ percent: Int) -> Bool { below(100) < percent }

    mutating func element<T>(_ values: [T]) -> T { values[below(values.count)] }

    mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: next()) }

    /// A value of the kinds on which integer and floating-point instructions behave specially.
    mutating func operand() -> UInt64 {
        switch below(10) {
        case 0: return 0
        case 1: return UInt64(below(300))
        case 2: return ~0 &- UInt64(below(300))
        case 3: return 1 << UInt64(below(64))
        case 4: return (1 << UInt64(below(64))) &- 1
        case 5: return 0x8000_0000_8000_8080 &+ UInt64(below(3)) &- 1
        case 6: return double()
        case 7:
            let single = UInt64(float())
            return chance(50) ? single | single << 32 : single | UInt64(float()) << 32
        case 8: return UInt64(truncatingIfNeeded: Int64(Int32(truncatingIfNeeded: Int64(bitPattern: next()))))
        default: return next()
        }
    }

    /// The bits of a double: ordinary, denormal, zero, infinite or no number.
    mutating func double() -> UInt64 {
        let sign = next() & 1 << 63
        switch below(8) {
        case 0: return sign
        case 1: return sign | 0x7FF0_0000_0000_0000
        case 2: return sign | 0x7FF0_0000_0000_0000 | next() >> 12 | 1
        case 3: return sign | next() >> 12
        case 4: return sign | UInt64(within(-3...3) + 1023) << 52
        default:
            return sign | UInt64(within(-70...70) + 1023) << 52 | (chance(50) ? next() >> 12 : (next() >> 60) << 48)
        }
    }

    /// The bits of a float, chosen as ``double()`` does.
    mutating func float() -> UInt32 {
        let sign = UInt32(truncatingIfNeeded: next()) & 1 << 31
        let bits = UInt32(truncatingIfNeeded: next())
        switch below(8) {
        case 0: return sign
        case 1: return sign | 0x7F80_0000
        case 2: return sign | 0x7F80_0000 | bits >> 9 | 1
        case 3: return sign | bits >> 9
        case 4: return sign | UInt32(within(-3...3) + 127) << 23
        default: return sign | UInt32(within(-34...34) + 127) << 23 | (chance(50) ? bits >> 9 : (bits >> 29) << 20)
        }
    }
}
