import Addressing
import CHost
import GuestMemory
import X86

/// Walks the guest's page tables.
///
/// Handles no paging, 32-bit paging with 4 MiB pages, PAE and 4-level paging with 4 KiB, 2 MiB and 1 GiB pages; sets
/// accessed and dirty bits with a compare-and-swap on the guest's entry, and walks again when the entry changed meanwhile.
///
/// A paging-structure cache remembers, for each 2 MiB of linear addresses, the last-level table and the rights
/// accumulated on the way to it, so that most walks read one entry. Who goes to another address space of the slots has to
/// ``flush()`` it.
///
/// > Concurrency: belongs to one vCPU. The caller is inside a read section of the guest memory.
/// > Source: APM volume 2, sections 5.2–5.6; Intel SDM volume 3, sections 4.6 and 4.10.3.
public final class GuestWalk {
    private let memory: GuestMemory
    /// The slot in which a table was found last.
    private var lastSlot = MemorySlotCache()
    private let cache: UnsafeMutablePointer<CachedTable>
    private static let cacheCount = 256
    /// Entries of other generations are empty.
    private var generation: UInt64 = 1
    /// An entry could not be read or written since the walk began.
    private var hasFailed = false

    /// A last-level table of 4-level paging.
    private struct CachedTable {
        /// The linear address of the 2 MiB region.
        var region: UInt64
        /// CR3 with the PCID.
        var context: UInt64
        /// The value of ``GuestWalk/generation`` when the entry was made.
        var generation: UInt64
        var table: UnsafeMutablePointer<UInt64>
        var tableAddress: UInt64
        var rights: Rights
    }

    /// Rights accumulated from the upper levels.
    struct Rights: Equatable {
        var isWritable = true
        var isUser = true
        var isExecutable = true

        mutating func restrict(by entry: UInt64, _ context: PagingContext) {
            if entry & Entry.writable == 0 { isWritable = false }
            if entry & Entry.user == 0 { isUser = false }
            if entry & Entry.noExecute != 0 && context.hasNoExecute { isExecutable = false }
        }
    }

    /// Bits of page-table entries.
    enum Entry {
        static var present: UInt64 { 1 << 0 }
        static var writable: UInt64 { 1 << 1 }
        static var user: UInt64 { 1 << 2 }
        static var accessed: UInt64 { 1 << 5 }
        static var dirty: UInt64 { 1 << 6 }
        static var large: UInt64 { 1 << 7 }
        static var global: UInt64 { 1 << 8 }
        static var noExecute: UInt64 { 1 << 63 }
        static var address: UInt64 { 0x000F_FFFF_FFFF_F000 }
        /// Bits 62–52.
        static var software: UInt64 { 0x7FF << 52 }
        /// Bits 63–52, 8–5, 2 and 1.
        static var reservedInPointer: UInt64 { 0xFFF0_0000_0000_01E6 }
    }

    /// Bits of a page fault's error code.
    public enum FaultCode {
        public static var present: UInt32 { 1 << 0 }
        public static var write: UInt32 { 1 << 1 }
        public static var user: UInt32 { 1 << 2 }
        public static var reserved: UInt32 { 1 << 3 }
        public static var fetch: UInt32 { 1 << 4 }
    }

    /// Where pages are reported in which the walk sets accessed and dirty bits.
    public var dirtyRing: DirtyRing?

    /// The number of physical address bits; higher ones are reserved in entries.
    public var physicalAddressBits: UInt64 = 48

    public init(memory: GuestMemory) {
        self.memory = memory
        cache = .allocate(capacity: Self.cacheCount)
        cache.initialize(
            repeating: CachedTable(
                region: 0, context: 0, generation: 0, table: UnsafeMutablePointer(bitPattern: 8).unsafelyUnwrapped,
                tableAddress: 0, rights: Rights()),
            count: Self.cacheCount)
    }

    deinit { cache.deallocate() }

    /// Empties the paging-structure cache.
    public func flush() {
        generation += 1
    }

    /// Translates the page of `linear`.
    public func translate(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) -> WalkResult {
        if !context.isPaging {
            return .translated(
                PageTranslation(
                    physical: linear & 0xFFFF_F000, isWritable: true, isGlobal: false, pageShift: 12))
        }
        while true {
            let result =
                if context.efer & EFER.longModeActive != 0 {
                    walkLong(linear, access, context)
                } else if context.cr4 & CR4.physicalAddressExtension != 0 {
                    walkPAE(linear, access, context)
                } else {
                    walk32(linear, access, context)
                }
            if hasFailed { return failure() }
            if let result { return result }
        }
    }

    /// The end of a walk that could not access an entry.
    @inline(never)
    private func failure() -> WalkResult {
        hasFailed = false
        return .hostMemory
    }

    // MARK: Levels

    /// The result, or nil when an entry changed under the walk.
    private func walkLong(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) -> WalkResult? {
        let region = linear & ~0x1F_FFFF
        let slot = Int(truncatingIfNeeded: (linear >> 21) ^ (linear >> 39)) & (Self.cacheCount - 1)
        let cacheContext = context.cr3 & 0x000F_FFFF_FFFF_FFFF
        if cache[slot].region == region && cache[slot].context == cacheContext && cache[slot].generation == generation {
            let entry = cache[slot]
            return finish(
                linear, access, context, rights: entry.rights, table: entry.table, tableAddress: entry.tableAddress,
                index: Int((linear >> 12) & 511), shift: 12)
        }
        var rights = Rights()
        var tableAddress = context.root
        var shift: UInt64 = 39
        while true {
            guard let table = self.table(at: tableAddress, context) else { return unmapped(access, context) }
            let index = Int((linear >> shift) & 511)
            if shift == 12 {
                cache[slot] = CachedTable(
                    region: region, context: cacheContext, generation: generation, table: table,
                    tableAddress: tableAddress, rights: rights)
                return finish(
                    linear, access, context, rights: rights, table: table, tableAddress: tableAddress, index: index,
                    shift: 12)
            }
            let entry = load(table, index)
            if entry & Entry.present == 0 { return fault(access, context, protection: false) }
            if entry & Entry.large != 0 && shift <= 30 {
                return finish(
                    linear, access, context, rights: rights, table: table, tableAddress: tableAddress, index: index,
                    shift: shift)
            }
            // Bit 7 is reserved in the top level.
            if hasReservedBits(entry, context) || entry & Entry.large != 0 {
                return fault(access, context, protection: true, reserved: true)
            }
            if entry & Entry.accessed == 0, !set(Entry.accessed, table, index, entry, tableAddress, context) {
                return nil
            }
            rights.restrict(by: entry, context)
            tableAddress = entry & Entry.address
            shift -= 9
        }
    }

    private func walkPAE(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) -> WalkResult? {
        let rootAddress = context.cr3 & 0xFFFF_FFE0
        guard let page = self.table(at: rootAddress & ~0xFFF, context) else { return unmapped(access, context) }
        let pointer = load(page, Int((rootAddress & 0xFFF) >> 3) + Int((linear >> 30) & 3))
        if pointer & Entry.present == 0 { return fault(access, context, protection: false) }
        let directoryAddress = pointer & Entry.address
        guard let directory = self.table(at: directoryAddress, context) else { return unmapped(access, context) }
        let index = Int((linear >> 21) & 511)
        let entry = load(directory, index)
        if entry & Entry.present == 0 { return fault(access, context, protection: false) }
        if entry & Entry.large != 0 {
            return finish(
                linear, access, context, rights: Rights(), table: directory, tableAddress: directoryAddress,
                index: index, shift: 21)
        }
        if hasReservedBits(entry, context) { return fault(access, context, protection: true, reserved: true) }
        if entry & Entry.accessed == 0, !set(Entry.accessed, directory, index, entry, directoryAddress, context) {
            return nil
        }
        var rights = Rights()
        rights.restrict(by: entry, context)
        let tableAddress = entry & Entry.address
        guard let table = self.table(at: tableAddress, context) else { return unmapped(access, context) }
        return finish(
            linear, access, context, rights: rights, table: table, tableAddress: tableAddress,
            index: Int((linear >> 12) & 511), shift: 12)
    }

    /// Whether PAE's pointer table can be loaded: no entry that is present has reserved bits.
    ///
    /// - Returns: nil if the host cannot provide the table's memory.
    /// > Source: Intel SDM volume 3, section 4.4.1.
    public func hasValidPointers(_ context: PagingContext) -> Bool? {
        let rootAddress = context.cr3 & 0xFFFF_FFE0
        // Without memory there, the first walk says so.
        guard let page = table(at: rootAddress & ~0xFFF, context) else { return true }
        let areValid = (0..<4).allSatisfy { index in
            let pointer = load(page, Int((rootAddress & 0xFFF) >> 3) + index)
            return pointer & Entry.present == 0
                || pointer & Entry.reservedInPointer == 0 && (pointer & Entry.address) >> physicalAddressBits == 0
        }
        defer { hasFailed = false }
        return hasFailed ? nil : areValid
    }

    /// Checks and completes the entry that maps the page.
    private func finish(
        _ linear: UInt64, _ access: PageAccess, _ context: PagingContext, rights upper: Rights,
        table: UnsafeMutablePointer<UInt64>, tableAddress: UInt64, index: Int, shift: UInt64
    ) -> WalkResult? {
        let entry = load(table, index)
        if entry & Entry.present == 0 { return fault(access, context, protection: false) }
        let pageMask = (UInt64(1) << shift) - 1
        // Bits between the page offset and bit 13 (bit 12 is PAT) are reserved in large pages.
        if hasReservedBits(entry, context) || (shift > 12 && entry & pageMask & 0x3FFF_E000 != 0) {
            return fault(access, context, protection: true, reserved: true)
        }
        var rights = upper
        rights.restrict(by: entry, context)
        return complete(
            linear, access, context, rights, entry, base: entry & Entry.address & ~pageMask, shift: shift
        ) { set($0, table, index, entry, tableAddress, context) }
    }

    /// Checks the rights to a page, sets the bits of its entry and makes the translation.
    ///
    /// - Parameter set: sets bits in the entry unless it has changed.
    @inline(__always)
    private func complete(
        _ linear: UInt64, _ access: PageAccess, _ context: PagingContext, _ rights: Rights, _ entry: UInt64,
        base: UInt64, shift: UInt64, set: (UInt64) -> Bool
    ) -> WalkResult? {
        guard allows(access, rights, context) else { return fault(access, context, protection: true) }
        var needed = Entry.accessed
        if access.kind == .write { needed |= Entry.dirty }
        if entry & needed != needed, !set(needed) { return nil }
        let isDirty = (entry | needed) & Entry.dirty != 0
        let mayWrite =
            isDirty
            && allows(
                PageAccess(.write, isUser: access.isUser, overridesAccessPrevention: access.overridesAccessPrevention),
                rights, context)
        let pageMask = (UInt64(1) << shift) - 1
        return .translated(
            PageTranslation(
                physical: base | (linear & pageMask & ~0xFFF), isWritable: mayWrite,
                isGlobal: entry & Entry.global != 0 && context.cr4 & CR4.globalPages != 0, pageShift: UInt8(shift)))
    }

    /// 32-bit paging, with its 4-byte entries.
    private func walk32(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) -> WalkResult? {
        let directoryAddress = context.cr3 & 0xFFFF_F000
        guard let directory = self.table(at: directoryAddress, context) else { return unmapped(access, context) }
        let directoryIndex = Int((linear >> 22) & 1023)
        let entry = load32(directory, directoryIndex)
        if entry & Entry.present == 0 { return fault(access, context, protection: false) }
        var rights = Rights()
        rights.restrict(by: entry, context)
        if entry & Entry.large != 0 && context.cr4 & CR4.pageSizeExtension != 0 {
            // PSE-36: bits 13–20 are address bits 32–39; bit 21 is reserved.
            if entry & (1 << 21) != 0 { return fault(access, context, protection: true, reserved: true) }
            let base = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
            return complete(linear, access, context, rights, entry, base: base, shift: 22) {
                set32($0, directory, directoryIndex, entry, directoryAddress, context)
            }
        }
        if entry & Entry.accessed == 0,
            !set32(Entry.accessed, directory, directoryIndex, entry, directoryAddress, context)
        {
            return nil
        }
        let tableAddress = entry & 0xFFFF_F000
        guard let table = self.table(at: tableAddress, context) else { return unmapped(access, context) }
        let index = Int((linear >> 12) & 1023)
        let leaf = load32(table, index)
        if leaf & Entry.present == 0 { return fault(access, context, protection: false) }
        rights.restrict(by: leaf, context)
        return complete(linear, access, context, rights, leaf, base: leaf & 0xFFFF_F000, shift: 12) {
            set32($0, table, index, leaf, tableAddress, context)
        }
    }

    // MARK: Rules

    private func allows(_ access: PageAccess, _ rights: Rights, _ context: PagingContext) -> Bool {
        switch access.kind {
        case .execute:
            if !rights.isExecutable { return false }
            if access.isUser { return rights.isUser }
            return !(rights.isUser && context.cr4 & CR4.supervisorExecutionPrevention != 0)
        case .read, .write:
            if access.isUser {
                return rights.isUser && (access.kind == .read || rights.isWritable)
            }
            if rights.isUser && context.cr4 & CR4.supervisorAccessPrevention != 0
                && !access.overridesAccessPrevention
            {
                return false
            }
            return access.kind == .read || rights.isWritable || !context.writeProtects
        }
    }

    private func fault(
        _ access: PageAccess, _ context: PagingContext, protection: Bool, reserved: Bool = false
    ) -> WalkResult {
        var code: UInt32 = 0
        if protection { code |= FaultCode.present }
        if access.kind == .write { code |= FaultCode.write }
        if access.isUser { code |= FaultCode.user }
        if reserved { code |= FaultCode.reserved }
        // The fetch bit exists only where fetches are distinguished.
        if access.kind == .execute
            && (context.hasNoExecute && context.cr4 & CR4.physicalAddressExtension != 0
                || context.cr4 & CR4.supervisorExecutionPrevention != 0)
        {
            code |= FaultCode.fetch
        }
        return .fault(code: code)
    }

    /// A table that lies where there is no memory maps nothing, as under KVM.
    private func unmapped(_ access: PageAccess, _ context: PagingContext) -> WalkResult {
        fault(access, context, protection: false)
    }

    func hasReservedBits(_ entry: UInt64, _ context: PagingContext) -> Bool {
        if entry & Entry.noExecute != 0 && !context.hasNoExecute { return true }
        // What long mode leaves to software is reserved with PAE.
        if entry & Entry.software != 0 && context.efer & EFER.longModeActive == 0 { return true }
        return (entry & Entry.address) >> physicalAddressBits != 0
    }

    // MARK: Entries

    /// The host address of the table page at guest physical `address`.
    private func table(at address: UInt64, _ context: PagingContext) -> UnsafeMutablePointer<UInt64>? {
        let frame = GuestFrameNumber(address >> 12)
        guard let slot = memory.lookup(frame, addressSpace: context.addressSpace, cache: &lastSlot) else { return nil }
        return slot.pointee.hostPointer(for: frame).assumingMemoryBound(to: UInt64.self)
    }

    /// 0, which maps nothing, if there is no memory.
    @inline(__always)
    private func load(_ table: UnsafeMutablePointer<UInt64>, _ index: Int) -> UInt64 {
        var entry: UInt64 = 0
        // SAFETY: `index` is below 512 and the table is a whole page of guest memory, which may be missing.
        if !martlet_guarded_load64(table + index, &entry) { hasFailed = true }
        return entry
    }

    /// As ``load(_:_:)``.
    private func load32(_ table: UnsafeMutablePointer<UInt64>, _ index: Int) -> UInt64 {
        var entry: UInt32 = 0
        // SAFETY: `index` is below 1024 and the table is a whole page of guest memory, which may be missing.
        if !martlet_guarded_load32(UnsafeMutableRawPointer(table) + index * 4, &entry) { hasFailed = true }
        return UInt64(entry)
    }

    /// Sets bits in an entry unless it changed since it was read; the page it lies in becomes dirty in the slot's log.
    private func set(
        _ bits: UInt64, _ table: UnsafeMutablePointer<UInt64>, _ index: Int, _ old: UInt64, _ tableAddress: UInt64,
        _ context: PagingContext
    ) -> Bool {
        // SAFETY: as in `load`.
        finishSet(martlet_guarded_exchange64(table + index, old, old | bits), tableAddress, context)
    }

    private func set32(
        _ bits: UInt64, _ table: UnsafeMutablePointer<UInt64>, _ index: Int, _ old: UInt64, _ tableAddress: UInt64,
        _ context: PagingContext
    ) -> Bool {
        let expected = UInt32(truncatingIfNeeded: old)
        // SAFETY: as in `load32`.
        let result = martlet_guarded_exchange32(
            UnsafeMutableRawPointer(table) + index * 4, expected, expected | UInt32(truncatingIfNeeded: bits))
        return finishSet(result, tableAddress, context)
    }

    /// - Parameter result: what a guarded exchange returned.
    private func finishSet(_ result: CInt, _ tableAddress: UInt64, _ context: PagingContext) -> Bool {
        if result > 0 { markDirty(tableAddress, context) }
        if result < 0 { hasFailed = true }
        return result > 0
    }

    private func markDirty(_ address: UInt64, _ context: PagingContext) {
        let frame = GuestFrameNumber(address >> 12)
        if let slot = memory.lookup(frame, addressSpace: context.addressSpace, cache: &lastSlot) {
            slot.pointee.markDirty(frame: frame, ring: dirtyRing)
        }
    }
}
