import X86

/// The registers that decide how linear addresses are translated.
public struct PagingContext: Equatable, Sendable {
    public var cr0: UInt64
    public var cr3: UInt64
    public var cr4: UInt64
    public var efer: UInt64
    /// System management mode, in which the tables, and what they map, lie in the slots of address space 1.
    public var isSystemManagement: Bool

    @inlinable public init(
        cr0: UInt64, cr3: UInt64, cr4: UInt64, efer: UInt64, isSystemManagement: Bool = false
    ) {
        self.isSystemManagement = isSystemManagement
        self.cr0 = cr0
        self.cr3 = cr3
        self.cr4 = cr4
        self.efer = efer
    }

    @inlinable public var isPaging: Bool { cr0 & CR0.paging != 0 }
    @inlinable public var writeProtects: Bool { cr0 & CR0.writeProtect != 0 }
    @inlinable public var hasNoExecute: Bool { efer & EFER.noExecute != 0 }
    /// The address space of the memory slots.
    @inlinable public var addressSpace: Int { isSystemManagement ? 1 : 0 }
    /// The root of the tables, without the PCID and flag bits.
    @inlinable public var root: UInt64 { cr3 & 0x000F_FFFF_FFFF_F000 }
}

/// What a translation is wanted for.
public struct PageAccess: Equatable, Sendable {
    public var kind: Kind
    /// The access is made at CPL 3.
    public var isUser: Bool
    /// Supervisor access that SMAP does not restrict: RFLAGS.AC is set and the access is explicit.
    public var overridesAccessPrevention: Bool

    public enum Kind: UInt8, Sendable { case read, write, execute }

    @inlinable public init(_ kind: Kind, isUser: Bool, overridesAccessPrevention: Bool = false) {
        self.kind = kind
        self.isUser = isUser
        self.overridesAccessPrevention = overridesAccessPrevention
    }
}

/// A translation of one 4 KiB page.
public struct PageTranslation: Equatable, Sendable {
    /// The guest physical address of the page's first byte.
    public var physical: UInt64
    /// Whether a write at the privilege asked for is allowed and the dirty bit is already set.
    public var isWritable: Bool
    public var isGlobal: Bool
    /// log2 of the size of the guest's page: 12, 21, 22 or 30.
    public var pageShift: UInt8

    public init(physical: UInt64, isWritable: Bool, isGlobal: Bool, pageShift: UInt8) {
        self.physical = physical
        self.isWritable = isWritable
        self.isGlobal = isGlobal
        self.pageShift = pageShift
    }
}

/// How a walk ended.
public enum WalkResult: Equatable, Sendable {
    case translated(PageTranslation)
    /// A page fault with this error code.
    case fault(code: UInt32)
    /// A table lies in memory that the host cannot provide.
    case hostMemory
}

/// How the accesses of translated code that are not in the software TLB are translated.
public enum MMUKind: String, CaseIterable, Sendable {
    /// Memory by the guest's tables, devices by shadow pages.
    case walk
    /// Both by shadow pages.
    case shadow
}
