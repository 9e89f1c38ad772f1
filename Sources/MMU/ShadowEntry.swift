import Addressing

/// One 64-bit entry of a shadow page. 0 is empty.
///
///     link to the next level   bit 0 set, bit 1 clear; 2 global, 3 to parts of a large page; 9–47 the page's address
///     memory                   bits 0 and 1 set; 2 global; 3–4 size of the guest's page; 12–47 host address;
///                              48–55 permissions
///     device                   bit 0 clear, bit 1 set; 2 global; 3–10 permissions; 11–50 guest frame;
///                              51–63 the memory slots' generation
///
/// Permissions are resolved when the entry is made (see ``ShadowRole``), so that an access is checked by one bit. A write
/// permission says that a store may go ahead now: the guest's dirty bit is set, the page is marked in the slot's log, the
/// slot can be written, and the frame neither holds translated code nor a table whose stores are caught.
struct ShadowEntry: Equatable {
    var rawValue: UInt64

    init(rawValue: UInt64) { self.rawValue = rawValue }

    static var empty: Self { Self(rawValue: 0) }

    private static var present: UInt64 { 1 << 0 }
    private static var leaf: UInt64 { 1 << 1 }
    private static var global: UInt64 { 1 << 2 }
    private static var parts: UInt64 { 1 << 3 }
    private static var address: UInt64 { 0x0000_FFFF_FFFF_F000 }
    private static var linkAddress: UInt64 { 0x0000_FFFF_FFFF_FE00 }
    private static var permissionShift: UInt64 { 48 }
    private static var devicePermissionShift: UInt64 { 3 }
    private static var frameShift: UInt64 { 11 }
    private static var frameMask: UInt64 { 1 << 40 - 1 }

    /// The width of a generation in device entries.
    static var generationBits: UInt64 { 13 }
    private static var generationShift: UInt64 { 51 }

    /// The size of the guest's page, which an INVLPG drops as a whole.
    enum GuestPageSize: UInt64, Sendable {
        case kibibytes4, mebibytes2, mebibytes4, gibibytes1

        /// log2 of the size in bytes.
        var shift: UInt8 {
            switch self {
            case .kibibytes4: 12
            case .mebibytes2: 21
            case .mebibytes4: 22
            case .gibibytes1: 30
            }
        }
    }

    /// Whether both are empty, links, memory or devices.
    func isOfKind(_ other: Self) -> Bool { (rawValue ^ other.rawValue) & (Self.present | Self.leaf) == 0 }

    // MARK: Links

    /// A link to a page, which may be a direct one: then it stands for a leaf of the guest.
    init(link page: ShadowPage.Pointer) {
        let role = page.pointee.role
        rawValue =
            UInt64(UInt(bitPattern: page)) | Self.present | (role.isDirect ? Self.parts : 0)
            | (role.isDirect && role.isGlobal ? Self.global : 0)
    }

    @inline(__always)
    var isLink: Bool { rawValue & (Self.present | Self.leaf) == Self.present }

    /// Whether the entry stands for a leaf of the guest, not for a table.
    @inline(__always)
    var isGuestLeaf: Bool { !isLink || rawValue & Self.parts != 0 }

    /// The page that a link leads to.
    @inline(__always)
    var page: ShadowPage.Pointer {
        // SAFETY: links hold addresses of pages, which readers may follow until their next quiescent state.
        ShadowPage.Pointer(bitPattern: UInt(rawValue & Self.linkAddress)).unsafelyUnwrapped
    }

    // MARK: Guest leaves

    @inline(__always)
    var isMemory: Bool { rawValue & (Self.present | Self.leaf) == Self.present | Self.leaf }

    @inline(__always)
    var isDevice: Bool { rawValue & (Self.present | Self.leaf) == Self.leaf }

    /// The guest's entry is marked global, whatever CR4.PGE says.
    @inline(__always)
    var isGlobal: Bool { rawValue & Self.global != 0 }

    // MARK: Memory

    init(
        memory host: UnsafeMutableRawPointer, isGlobal: Bool, size: GuestPageSize, permissions: ShadowPermissions
    ) {
        rawValue =
            UInt64(UInt(bitPattern: host)) & Self.address | Self.present | Self.leaf
            | UInt64(permissions.rawValue) << Self.permissionShift | size.rawValue << 3 | (isGlobal ? Self.global : 0)
    }

    /// Whether an entry has the bits for a host address.
    static func canHold(_ host: UnsafeMutableRawPointer) -> Bool { UInt64(UInt(bitPattern: host)) & ~address == 0 }

    /// Whether a memory entry allows an access.
    @inline(__always)
    func allows(_ permission: ShadowPermissions) -> Bool {
        rawValue & UInt64(permission.rawValue) << Self.permissionShift != 0
    }

    /// The first host byte of what a memory entry maps.
    @inline(__always)
    var hostAddress: UInt { UInt(rawValue & Self.address) }

    var guestPageSize: GuestPageSize { GuestPageSize(rawValue: rawValue >> 3 & 3).unsafelyUnwrapped }

    var permissions: ShadowPermissions {
        ShadowPermissions(
            rawValue: UInt8(
                truncatingIfNeeded: rawValue >> (isDevice ? Self.devicePermissionShift : Self.permissionShift)))
    }

    /// A memory entry without its write permissions.
    var withoutWrites: Self {
        Self(rawValue: rawValue & ~(UInt64(ShadowPermissions.writes.rawValue) << Self.permissionShift))
    }

    // MARK: Devices

    /// - Parameter generation: of the memory slots, under which the frame has no slot.
    init(device frame: UInt64, isGlobal: Bool, permissions: ShadowPermissions, generation: UInt64) {
        rawValue =
            Self.leaf | (isGlobal ? Self.global : 0) | UInt64(permissions.rawValue) << Self.devicePermissionShift
            | (frame & Self.frameMask) << Self.frameShift | generation << Self.generationShift
    }

    @inline(__always)
    func allowsDevice(_ permission: ShadowPermissions) -> Bool {
        rawValue & UInt64(permission.rawValue) << Self.devicePermissionShift != 0
    }

    /// The guest frame of a device entry.
    @inline(__always)
    var deviceFrame: UInt64 { rawValue >> Self.frameShift & Self.frameMask }

    /// Whether a device entry was made under `generation`, or under one that differs by a multiple of 2^13.
    @inline(__always)
    func isMade(under generation: UInt64) -> Bool { rawValue >> Self.generationShift == generation & 0x1FFF }
}

/// Who may do what with a page.
struct ShadowPermissions: OptionSet, Sendable {
    let rawValue: UInt8

    static let userRead = Self(rawValue: 1 << 0)
    static let userWrite = Self(rawValue: 1 << 1)
    static let userExecute = Self(rawValue: 1 << 2)
    static let supervisorRead = Self(rawValue: 1 << 3)
    static let supervisorWrite = Self(rawValue: 1 << 4)
    static let supervisorExecute = Self(rawValue: 1 << 5)
    /// Supervisor accesses that SMAP does not restrict.
    static let overrideRead = Self(rawValue: 1 << 6)
    static let overrideWrite = Self(rawValue: 1 << 7)

    static let writes: Self = [.userWrite, .supervisorWrite, .overrideWrite]

    init(rawValue: UInt8) { self.rawValue = rawValue }

    /// The one that an access needs.
    @inline(__always)
    init(_ access: PageAccess) {
        let base: UInt8 = access.isUser ? 0 : access.overridesAccessPrevention && access.kind != .execute ? 6 : 3
        rawValue = 1 << (base + access.kind.rawValue)
    }

    /// What the guest's tables allow under a role.
    ///
    /// - Parameter isStorable: a store may go ahead where the tables allow it.
    /// > Source: Intel SDM volume 3, section 4.6.1.
    init(_ rights: GuestWalk.Rights, _ role: ShadowRole, isStorable: Bool) {
        var set: Self = [.overrideRead]
        let isHidden = rights.isUser && role.preventsSupervisorAccess
        let supervisorWrites = isStorable && (rights.isWritable || !role.writeProtects)
        if !isHidden { set.insert(.supervisorRead) }
        if !isHidden && supervisorWrites { set.insert(.supervisorWrite) }
        if supervisorWrites { set.insert(.overrideWrite) }
        if rights.isExecutable && !(rights.isUser && role.preventsSupervisorExecution) {
            set.insert(.supervisorExecute)
        }
        if rights.isUser {
            set.insert(.userRead)
            if rights.isWritable && isStorable { set.insert(.userWrite) }
            if rights.isExecutable { set.insert(.userExecute) }
        }
        self = set
    }
}
