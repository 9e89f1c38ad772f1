/// A call, interrupt, trap or task gate.
///
/// > Source: APM volume 2, sections 4.7.4 and 4.8.4; Intel SDM volume 3, sections 5.8.3 and 6.14.1.
public struct GateDescriptor: Equatable, Sendable {
    public var low: UInt64
    /// The second half, which only gates of long mode have.
    public var high: UInt64

    @inlinable public init(low: UInt64, high: UInt64 = 0) {
        self.low = low
        self.high = high
    }

    /// The kind of gate; nil for anything else.
    @inlinable public var kind: Kind? {
        guard low & 1 << 44 == 0 else { return nil }
        return switch low >> 40 & 15 {
        case 4: .call16
        case 5: .task
        case 6: .interrupt16
        case 7: .trap16
        case 12: .call
        case 14: .interrupt
        case 15: .trap
        default: nil
        }
    }

    public enum Kind: Sendable {
        case call16, task, interrupt16, trap16
        /// 32-bit gates, or the 64-bit gates of long mode.
        case call, interrupt, trap

        @inlinable public var is16Bit: Bool { self == .call16 || self == .interrupt16 || self == .trap16 }
        /// The gate clears RFLAGS.IF.
        @inlinable public var disablesInterrupts: Bool { self == .interrupt || self == .interrupt16 }
    }

    @inlinable public var privilegeLevel: UInt8 { UInt8(truncatingIfNeeded: low >> 45) & 3 }
    @inlinable public var isPresent: Bool { low & 1 << 47 != 0 }
    /// Of the target code segment, or of the task state.
    @inlinable public var selector: UInt16 { UInt16(truncatingIfNeeded: low >> 16) }
    /// The entry in the interrupt-stack table, 1…7, or 0. Long mode only.
    @inlinable public var interruptStack: Int { Int(low >> 32 & 7) }
    /// How many parameters a legacy call gate copies.
    @inlinable public var parameterCount: Int { Int(low >> 32 & 31) }
    /// The entry point: 16, 32 or 64 bits by the gate's kind.
    @inlinable public var offset: UInt64 {
        let low16 = low & 0xFFFF
        if let kind, kind.is16Bit { return low16 }
        return low16 | low >> 32 & 0xFFFF_0000 | high << 32
    }
    /// The type field that the second half of a long-mode call gate has to have zero.
    @inlinable public var upperType: UInt64 { high >> 40 & 31 }
}
