/// A segment or system descriptor: the first eight bytes of an entry of the GDT or LDT.
///
/// > Source: APM volume 2, sections 4.7 and 4.8; Intel SDM volume 3, section 3.4.5.
public struct SegmentDescriptor: Equatable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// Bits 31–0 of the base. System descriptors of long mode have 32 more in their second half.
    @inlinable public var base: UInt64 { rawValue >> 16 & 0xFF_FFFF | rawValue >> 32 & 0xFF00_0000 }
    /// The limit in bytes, granularity applied.
    @inlinable public var limit: UInt32 {
        let field = UInt32(truncatingIfNeeded: rawValue & 0xFFFF | rawValue >> 32 & 0xF_0000)
        return isPageGranular ? field << 12 | 0xFFF : field
    }
    /// Bits 55–40, as ``Segment/attributes`` holds them; the bits of the limit among them are zero.
    @inlinable public var attributes: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 40) & 0xF0FF }

    @inlinable public var type: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 40) & 15 }
    /// Code or data (true), or system (false).
    @inlinable public var isCodeOrData: Bool { rawValue & 1 << 44 != 0 }
    @inlinable public var privilegeLevel: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 45) & 3 }
    @inlinable public var isPresent: Bool { rawValue & 1 << 47 != 0 }
    @inlinable public var isLong: Bool { rawValue & 1 << 53 != 0 }
    @inlinable public var isDefault32: Bool { rawValue & 1 << 54 != 0 }
    @inlinable public var isPageGranular: Bool { rawValue & 1 << 55 != 0 }

    @inlinable public var isCode: Bool { isCodeOrData && type & 8 != 0 }
    @inlinable public var isConformingCode: Bool { isCode && type & 4 != 0 }
    @inlinable public var isWritableData: Bool { isCodeOrData && type & 0xA == 2 }
    /// Data, or code that may be read.
    @inlinable public var isReadable: Bool { isCodeOrData && type & 0xA != 8 }
    @inlinable public var isAccessed: Bool { type & 1 != 0 }

    /// The kind of system descriptor; nil for code, data and reserved types.
    @inlinable public var systemType: SystemDescriptorType? {
        isCodeOrData ? nil : SystemDescriptorType(rawValue: type)
    }

    /// What the processor caches when `selector` names this descriptor; code and data become accessed.
    @inlinable public func segment(selector: UInt16) -> Segment {
        Segment(
            selector: selector, base: base, limit: limit, attributes: attributes | (isCodeOrData ? 1 : 0))
    }
}

/// The type field of system descriptors.
public enum SystemDescriptorType: UInt8, Sendable {
    case availableTaskState16 = 1
    case localDescriptorTable = 2
    case busyTaskState16 = 3
    case callGate16 = 4
    case taskGate = 5
    case interruptGate16 = 6
    case trapGate16 = 7
    /// In long mode the 64-bit task state, and so on for the following.
    case availableTaskState32 = 9
    case busyTaskState32 = 11
    case callGate32 = 12
    case interruptGate32 = 14
    case trapGate32 = 15

    /// LAR accepts the type.
    @inlinable public func hasAccessRights(inLongMode: Bool) -> Bool {
        switch self {
        case .localDescriptorTable, .availableTaskState32, .busyTaskState32, .callGate32: true
        case .availableTaskState16, .busyTaskState16, .callGate16, .taskGate: !inLongMode
        case .interruptGate16, .trapGate16, .interruptGate32, .trapGate32: false
        }
    }

    /// LSL accepts the type.
    @inlinable public func hasLimit(inLongMode: Bool) -> Bool {
        switch self {
        case .localDescriptorTable, .availableTaskState32, .busyTaskState32: true
        case .availableTaskState16, .busyTaskState16: !inLongMode
        default: false
        }
    }
}

/// Parts of a segment selector.
public enum Selector {
    /// Index and table, requester privilege level removed: what error codes hold.
    @inlinable public static func index(_ selector: UInt16) -> UInt32 { UInt32(selector & ~3) }
    @inlinable public static func isNull(_ selector: UInt16) -> Bool { selector & ~3 == 0 }
    @inlinable public static func isLocal(_ selector: UInt16) -> Bool { selector & 4 != 0 }
    /// The requester privilege level, 0…3.
    @inlinable public static func privilegeLevel(_ selector: UInt16) -> UInt8 { UInt8(selector & 3) }
}

extension Segment {
    /// A segment register that holds a null selector. `privilegeLevel` is kept as its DPL (for SS it is CPL).
    @inlinable public static func null(selector: UInt16, privilegeLevel: UInt8 = 0) -> Segment {
        Segment(
            selector: selector, base: 0, limit: 0, attributes: UInt16(privilegeLevel) << 5, isUnusable: true)
    }

    /// A data segment of virtual-8086 mode (CS as well).
    @inlinable public static func virtual8086(selector: UInt16) -> Segment {
        Segment(selector: selector, base: UInt64(selector) << 4, limit: 0xFFFF, attributes: 0xF3)
    }

    /// The flat code segment that SYSCALL and its relatives load.
    @inlinable public static func flatCode(selector: UInt16, privilegeLevel: UInt8, isLong: Bool) -> Segment {
        Segment(
            selector: selector, base: 0, limit: 0xFFFF_FFFF,
            attributes: (isLong ? 0xA09B : 0xC09B) | UInt16(privilegeLevel) << 5)
    }

    /// The flat stack segment that SYSCALL and its relatives load.
    @inlinable public static func flatStack(selector: UInt16, privilegeLevel: UInt8) -> Segment {
        Segment(
            selector: selector, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC093 | UInt16(privilegeLevel) << 5)
    }

    @inlinable public var isCode: Bool { isCodeOrData && attributes & 8 != 0 }
    @inlinable public var isConformingCode: Bool { isCode && attributes & 4 != 0 }
    /// A TSS with 32-bit (in long mode 64-bit) layout.
    @inlinable public var isWideTaskState: Bool { attributes & 8 != 0 }
}
