import CHost
import X86

/// An entry of a guest's table, read under the rules of a shadow page.
struct GuestTableEntry {
    let rawValue: UInt64
    private let role: ShadowRole

    init(_ rawValue: UInt64, _ role: ShadowRole) {
        self.rawValue = rawValue
        self.role = role
    }

    /// Loads the entry that the shadow entry at `index` of a page with `role` stands for. One that the host cannot provide maps
    /// nothing: no shadow entry is made or kept for it, and the guest's walk, which comes before any use, finds out why.
    static func load(_ table: UnsafeMutableRawPointer, _ role: ShadowRole, _ index: Int) -> Self {
        let guestIndex = role.guestIndex(index)
        // SAFETY: the table is a whole page of guest memory, which may be missing, and the index below 512, or 1024 for narrow
        // entries.
        if role.hasNarrowEntries {
            var entry: UInt32 = 0
            _ = martlet_guarded_load32(table + guestIndex * 4, &entry)
            return Self(UInt64(entry), role)
        }
        var entry: UInt64 = 0
        _ = martlet_guarded_load64(table + guestIndex * 8, &entry)
        return Self(entry, role)
    }

    private func has(_ bit: UInt64) -> Bool { rawValue & bit != 0 }

    var isPresent: Bool { has(GuestWalk.Entry.present) }
    var isAccessed: Bool { has(GuestWalk.Entry.accessed) }
    var isDirty: Bool { has(GuestWalk.Entry.dirty) }
    var isGlobal: Bool { has(GuestWalk.Entry.global) }

    /// Whether the entry maps memory by itself.
    var isLeaf: Bool {
        switch role.level {
        case 1: true
        case 2: has(GuestWalk.Entry.large) && role.format != .bits32
        case 3: has(GuestWalk.Entry.large)
        default: false
        }
    }

    /// The size of the page that a leaf maps.
    var pageSize: ShadowEntry.GuestPageSize {
        switch role.level {
        case 1: .kibibytes4
        case 2: role.hasNarrowEntries ? .mebibytes4 : .mebibytes2
        default: .gibibytes1
        }
    }

    /// Whether no reserved bit is set; `walk` has the rules.
    /// > Source: Intel SDM volume 3, tables 4-5 to 4-19.
    func isValid(_ context: PagingContext, _ walk: GuestWalk) -> Bool {
        if role.hasNarrowEntries { return !(role.level == 2 && isLeaf && has(1 << 21)) }
        if walk.hasReservedBits(rawValue, context) { return false }
        if role.level == 1 { return true }
        if !isLeaf { return role.level < 4 || !has(GuestWalk.Entry.large) }
        return rawValue & ((UInt64(1) << UInt64(pageSize.shift)) - 1) & 0x3FFF_E000 == 0
    }

    /// Rights from above, restricted by this entry.
    func rights(_ context: PagingContext) -> GuestWalk.Rights {
        var rights = role.rights
        rights.restrict(by: rawValue, context)
        return rights
    }

    /// The frame of the next table.
    var tableFrame: UInt64 { (rawValue & (role.hasNarrowEntries ? 0xFFFF_F000 : GuestWalk.Entry.address)) >> 12 }

    /// The first frame that the shadow entry at `index` maps, of a leaf.
    func frame(at index: Int) -> UInt64 {
        if role.level == 1 { return tableFrame }
        if role.hasNarrowEntries {
            // Bits 13–20 are address bits 32–39; two shadow entries share the 4 MiB.
            let base = rawValue & 0xFFC0_0000 | (rawValue >> 13 & 0xFF) << 32
            return base >> 12 + UInt64(index & 1) << 9
        }
        return tableFrame & ~(UInt64(1) << UInt64(9 * (role.level - 1)) - 1)
    }

    /// Whether what was made from `old` can stay, if only accessed and dirty bits were set or the dirty bit cleared.
    func differsInStatusOnly(from old: UInt64) -> Bool {
        (rawValue ^ old) & ~(GuestWalk.Entry.accessed | GuestWalk.Entry.dirty) == 0 && isAccessed
    }
}
