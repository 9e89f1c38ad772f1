/// A general-purpose register, numbered as instructions encode it.
public enum GeneralRegister: UInt8, Sendable, CaseIterable {
    case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15

    /// The register's number in the instruction encoding, 0…15.
    @inlinable public var index: Int { Int(rawValue) }

    @inlinable public init(index: Int) { self = unsafeBitCast(UInt8(truncatingIfNeeded: index & 15), to: Self.self) }
}

/// A segment register, numbered as instructions encode it.
public enum SegmentRegister: UInt8, Sendable, CaseIterable {
    case es, cs, ss, ds, fs, gs

    @inlinable public var index: Int { Int(rawValue) }
}

/// A segment as the processor caches it: selector and hidden part.
public struct Segment: Equatable, Sendable {
    public var selector: UInt16
    public var base: UInt64
    /// The limit in bytes, granularity already applied.
    public var limit: UInt32
    /// Descriptor bits 40–55 in bits 0–15: type 0–3, S 4, DPL 5–6, P 7, (limit 8–11), AVL 12, L 13, D/B 14, G 15.
    public var attributes: UInt16
    /// A null selector or otherwise unusable segment.
    public var isUnusable: Bool

    public init(selector: UInt16, base: UInt64, limit: UInt32, attributes: UInt16, isUnusable: Bool = false) {
        self.selector = selector
        self.base = base
        self.limit = limit
        self.attributes = attributes
        self.isUnusable = isUnusable
    }

    @inlinable public var type: UInt8 { UInt8(attributes & 15) }
    /// Code or data (true), or system (false).
    @inlinable public var isCodeOrData: Bool { attributes & 0x10 != 0 }
    @inlinable public var privilegeLevel: UInt8 { UInt8((attributes >> 5) & 3) }
    @inlinable public var isPresent: Bool { attributes & 0x80 != 0 }
    /// CS.L: 64-bit code.
    @inlinable public var isLong: Bool { attributes & 0x2000 != 0 }
    /// CS.D / SS.B: 32-bit default size.
    @inlinable public var isDefault32: Bool { attributes & 0x4000 != 0 }
    @inlinable public var isPageGranular: Bool { attributes & 0x8000 != 0 }

    /// A real-mode segment for `selector`.
    public static func realMode(selector: UInt16, isCode: Bool) -> Segment {
        Segment(
            selector: selector, base: UInt64(selector) << 4, limit: 0xFFFF, attributes: isCode ? 0x9B : 0x93)
    }
}

/// GDTR or IDTR.
public struct DescriptorTableRegister: Equatable, Sendable {
    public var base: UInt64
    public var limit: UInt16

    public init(base: UInt64, limit: UInt16) {
        self.base = base
        self.limit = limit
    }
}
