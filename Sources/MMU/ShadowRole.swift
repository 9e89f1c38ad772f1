import X86

/// What, besides the guest frame, makes one shadow page different from another.
///
/// The same guest table, reached in different ways or read under different rules, has a shadow page for each. A *direct*
/// page shadows no table: it maps consecutive frames, as a part of a guest's large page or without paging.
///
/// > Source: Linux, Documentation/virt/kvm/x86/mmu.rst, "role" (behaviour).
public struct ShadowRole: Hashable, Sendable {
    public private(set) var rawValue: UInt32 = 0

    /// How the guest's entries are laid out.
    public enum Format: UInt32, Sendable {
        /// None: paging is off.
        case none
        /// 4-byte entries, without and with 4 MiB pages.
        case bits32, bits32WithLargePages
        case physicalAddressExtension
        case long
    }

    /// Rights that the levels above grant.
    var rights: GuestWalk.Rights {
        get { GuestWalk.Rights(isWritable: self[9, 1] != 0, isUser: self[10, 1] != 0, isExecutable: self[11, 1] != 0) }
        set {
            self[9, 1] = newValue.isWritable ? 1 : 0
            self[10, 1] = newValue.isUser ? 1 : 0
            self[11, 1] = newValue.isExecutable ? 1 : 0
        }
    }

    /// 1 for a page whose entries map 4 KiB each, up to 4.
    public var level: Int {
        get { Int(self[0, 3]) }
        set { self[0, 3] = UInt32(newValue) }
    }

    /// Which part of a table of 4-byte entries this is, as a shadow page has 512 entries: 0 and 1 in level 1, 0…3 in
    /// level 2.
    public var quadrant: Int {
        get { Int(self[3, 2]) }
        set { self[3, 2] = UInt32(newValue) }
    }

    public var isDirect: Bool {
        get { self[5, 1] != 0 }
        set { self[5, 1] = newValue ? 1 : 0 }
    }

    public var format: Format {
        get { Format(rawValue: self[6, 3]).unsafelyUnwrapped }
        set { self[6, 3] = newValue.rawValue }
    }

    /// CR0.WP.
    public var writeProtects: Bool {
        get { self[12, 1] != 0 }
        set { self[12, 1] = newValue ? 1 : 0 }
    }

    /// EFER.NXE.
    public var hasNoExecute: Bool {
        get { self[13, 1] != 0 }
        set { self[13, 1] = newValue ? 1 : 0 }
    }

    /// CR4.SMEP.
    public var preventsSupervisorExecution: Bool {
        get { self[14, 1] != 0 }
        set { self[14, 1] = newValue ? 1 : 0 }
    }

    /// CR4.SMAP.
    public var preventsSupervisorAccess: Bool {
        get { self[15, 1] != 0 }
        set { self[15, 1] = newValue ? 1 : 0 }
    }

    /// System management mode, whose slots are those of address space 1.
    public var isSystemManagement: Bool {
        get { self[16, 1] != 0 }
        set { self[16, 1] = newValue ? 1 : 0 }
    }

    // Of direct pages only: what the guest's large page says.

    /// Its dirty bit.
    var isDirty: Bool {
        get { self[17, 1] != 0 }
        set { self[17, 1] = newValue ? 1 : 0 }
    }

    var isGlobal: Bool {
        get { self[18, 1] != 0 }
        set { self[18, 1] = newValue ? 1 : 0 }
    }

    var guestPageSize: ShadowEntry.GuestPageSize {
        get { ShadowEntry.GuestPageSize(rawValue: UInt64(self[19, 2])).unsafelyUnwrapped }
        set { self[19, 2] = UInt32(newValue.rawValue) }
    }

    /// The role of a page that the paging of `context` starts from.
    init(root context: PagingContext, quadrant: Int) {
        rights = GuestWalk.Rights()
        isSystemManagement = context.isSystemManagement
        format = context.tableFormat
        level = format == .long ? 4 : 2
        if format == .none {
            isDirect = true
            isDirty = true
            return
        }
        if format == .bits32 || format == .bits32WithLargePages { self.quadrant = quadrant }
        writeProtects = context.writeProtects
        hasNoExecute = context.hasNoExecute
        preventsSupervisorExecution = context.preventsSupervisorExecution
        preventsSupervisorAccess = context.preventsSupervisorAccess
    }

    var addressSpace: Int { isSystemManagement ? 1 : 0 }

    /// Whether guest entries have 4 bytes.
    var hasNarrowEntries: Bool { format == .bits32 || format == .bits32WithLargePages }

    /// The bytes of an entry of the guest's table.
    var guestEntryByteCount: Int { hasNarrowEntries ? 4 : 8 }

    /// The guest entry that the shadow entry at `index` stands for.
    func guestIndex(_ index: Int) -> Int {
        guard hasNarrowEntries else { return index }
        // A guest's directory entry covers 4 MiB, a shadow page's 2 MiB.
        return level == 1 ? quadrant * 512 + index : quadrant * 256 + index / 2
    }

    private subscript(_ start: UInt32, _ width: UInt32) -> UInt32 {
        get { rawValue >> start & (1 << width - 1) }
        set { rawValue = rawValue & ~((1 << width - 1) << start) | newValue << start }
    }
}

extension PagingContext {
    /// The layout of the guest's tables.
    var tableFormat: ShadowRole.Format {
        if !isPaging { return .none }
        if efer & EFER.longModeActive != 0 { return .long }
        if cr4 & CR4.physicalAddressExtension != 0 { return .physicalAddressExtension }
        return cr4 & CR4.pageSizeExtension != 0 ? .bits32WithLargePages : .bits32
    }

    var preventsSupervisorExecution: Bool { cr4 & CR4.supervisorExecutionPrevention != 0 }
    var preventsSupervisorAccess: Bool { cr4 & CR4.supervisorAccessPrevention != 0 }
    var hasGlobalPages: Bool { cr4 & CR4.globalPages != 0 }

    /// The number of the address space's context; 0 when they are off.
    var contextNumber: Int { cr4 & CR4.processContextIdentifiers != 0 ? Int(cr3 & 0xFFF) : 0 }
}
