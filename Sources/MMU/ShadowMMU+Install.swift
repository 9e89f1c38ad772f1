import Addressing
import GuestMemory
import Synchronization

/// Making entries from what the guest's tables hold.
extension ShadowMMU {
    /// What an entry is wanted for.
    struct Wish {
        let linear: UInt64
        let isWrite: Bool
        let context: PagingContext
        /// Pages compared before this epoch have to be compared again.
        let requirement: UInt64
        /// Knows the rules for reserved bits, and where the vCPU reports written pages.
        let walk: GuestWalk
    }

    /// What a leaf of the guest says of the frames it maps.
    private struct Leaf {
        var rights: GuestWalk.Rights
        var isDirty: Bool
        var isGlobal: Bool
        var size: ShadowEntry.GuestPageSize
    }

    /// Where walks of a context start: a table of the guest, or directly at memory.
    ///
    /// - Parameter quadrant: the GiB of the linear address where level 2 is the highest, else 0.
    func root(_ context: PagingContext, quadrant: Int) -> ShadowPage.Pointer? {
        let role = ShadowRole(root: context, quadrant: quadrant)
        let frame: UInt64
        switch role.format {
        case .none: frame = UInt64(quadrant) << 18
        case .long: frame = context.root >> 12
        case .bits32, .bits32WithLargePages: frame = (context.cr3 & 0xFFFF_F000) >> 12
        case .physicalAddressExtension:
            let address = context.cr3 & 0xFFFF_FFE0
            guard let table = hostPage(address >> 12, role.addressSpace) else { return nil }
            let pointers = table + Int(address & 0xFFF)
            let entry = GuestTableEntry.load(pointers, role, quadrant)
            guard entry.isPresent else { return nil }
            frame = entry.tableFrame
        }
        guard let root = page(frame: frame, role: role)?.page else { return nil }
        root.pointee.isRoot = true
        return root
    }

    /// Makes the entries that translate `wish.linear`, as far as the guest's tables allow it and its accessed bits are set.
    ///
    /// - Returns: whether the address is a device's now.
    /// > Concurrency: the lock is held, inside a read section of the memory, `installers` counts the caller.
    func install(_ wish: Wish, from root: ShadowPage.Pointer) -> Bool {
        var page = root
        var floor = root.linked.pointee.load(ordering: .relaxed)
        var pinned = InlineArray<5, ShadowPage.Pointer>(repeating: root)
        var pinnedCount = 0
        defer { for i in 0..<pinnedCount { pinned[i].pointee.isPinned = false } }
        while true {
            pinned[pinnedCount] = page
            pinnedCount += 1
            page.pointee.isPinned = true
            page.pointee.wasUsed = true
            let level = page.pointee.role.level
            let index = Int(wish.linear >> UInt64(3 + 9 * level)) & 511
            let next =
                page.pointee.role.isDirect
                ? installDirect(wish, page, index) : installShadow(wish, page, index, floor)
            switch next {
            case .page(let child):
                page = child
                floor = max(floor, child.linked.pointee.load(ordering: .relaxed))
            case .finished(let isDevice): return isDevice
            }
        }
    }

    private enum Step {
        case page(ShadowPage.Pointer)
        case finished(isDevice: Bool)
    }

    private func installDirect(_ wish: Wish, _ page: ShadowPage.Pointer, _ index: Int) -> Step {
        let role = page.pointee.role
        let leaf = Leaf(
            rights: role.rights, isDirty: role.isDirty, isGlobal: role.isGlobal, size: role.guestPageSize)
        let frame = page.pointee.frame + UInt64(index) << UInt64(9 * (role.level - 1))
        return place(wish, leaf, frame, page, index, guestEntry: 0)
    }

    private func installShadow(
        _ wish: Wish, _ page: ShadowPage.Pointer, _ index: Int, _ floor: UInt64
    ) -> Step {
        let role = page.pointee.role
        let synced = page.synced.pointee.load(ordering: .relaxed)
        if synced == ShadowPage.always {
            page.pointee.storeCount = 0
            // Links to tables need no look at a table whose stores are caught. What maps memory has a dirty bit, which walks
            // set.
            let old = page.value(index)
            if old.isLink && !old.page.pointee.role.isDirect { return .page(old.page) }
        } else if synced <= max(wish.requirement, floor), !synchronize(page) {
            return .finished(isDevice: false)
        }
        guard let table = hostPage(page.pointee.frame, role.addressSpace) else { return .finished(isDevice: false) }
        let entry = GuestTableEntry.load(table, role, index)
        guard entry.isPresent, entry.isAccessed, entry.isValid(wish.context, wish.walk) else {
            return .finished(isDevice: false)
        }
        if entry.isLeaf {
            let leaf = Leaf(
                rights: entry.rights(wish.context), isDirty: entry.isDirty, isGlobal: entry.isGlobal,
                size: entry.pageSize)
            return place(wish, leaf, entry.frame(at: index), page, index, guestEntry: entry.rawValue)
        }
        var childRole = role
        childRole.level -= 1
        childRole.rights = entry.rights(wish.context)
        childRole.quadrant = role.hasNarrowEntries ? index & 1 : 0
        return link(page, index, to: entry.tableFrame, childRole, guestEntry: entry.rawValue)
    }

    /// Makes a leaf for the frames from `frame` on, or a link to a direct page that maps them in smaller parts.
    private func place(
        _ wish: Wish, _ leaf: Leaf, _ frame: UInt64, _ page: ShadowPage.Pointer, _ index: Int, guestEntry: UInt64
    ) -> Step {
        let role = page.pointee.role
        // Before the look-up: what is found holds for this generation.
        let generation = memory.generation(addressSpace: role.addressSpace)
        let slot = memory.lookup(GuestFrameNumber(frame), addressSpace: role.addressSpace, cache: &slotCache)
        if role.level > 1 && !canMapLarge(frame, role.level, slot) {
            var part = role
            part.level -= 1
            part.isDirect = true
            part.quadrant = 0
            part.rights = leaf.rights
            part.isDirty = leaf.isDirty
            part.isGlobal = leaf.isGlobal
            part.guestPageSize = leaf.size
            return link(page, index, to: frame, part, guestEntry: guestEntry)
        }
        guard let slot else {
            return .finished(isDevice: placeDevice(leaf, frame, page, index, guestEntry, generation))
        }
        let host = slot.pointee.hostPointer(for: GuestFrameNumber(frame))
        // A client may name any address; an access to such a one fails by itself.
        guard ShadowEntry.canHold(host) else { return .finished(isDevice: false) }
        let isStorable =
            leaf.isDirty && !slot.pointee.flags.contains(.readOnly)
            && (role.level > 1 || isStorable(frame, slot, isWrite: wish.isWrite))
        if isStorable { slot.pointee.markDirty(frame: GuestFrameNumber(frame), ring: wish.walk.dirtyRing) }
        let entry = ShadowEntry(
            memory: host, isGlobal: leaf.isGlobal, size: leaf.size,
            permissions: ShadowPermissions(leaf.rights, role, isStorable: isStorable))
        replace(page, index, with: entry, guestEntry: guestEntry)
        return .finished(isDevice: false)
    }

    /// Whether nobody has to hear of stores to a frame.
    private func isStorable(_ frame: UInt64, _ slot: UnsafePointer<MemorySlot>, isWrite: Bool) -> Bool {
        // Marking a page that is only read would be wrong.
        if slot.pointee.flags.contains(.logDirtyPages) && !isWrite { return false }
        let host = slot.pointee.hostPointer(for: GuestFrameNumber(frame))
        return tracked[frame] == nil && !isGuarded(UInt64(UInt(bitPattern: host)) >> pageShift)
    }

    /// Whether one entry of `level` may map all its frames: they are in one slot, and treated alike.
    private func canMapLarge(_ frame: UInt64, _ level: Int, _ slot: UnsafePointer<MemorySlot>?) -> Bool {
        guard let slot, slot.pointee.flags.isDisjoint(with: [.readOnly, .logDirtyPages]) else { return false }
        let count = UInt64(1) << UInt64(9 * (level - 1))
        guard frame + count <= slot.pointee.endFrame.value else { return false }
        guard level <= 3, !mixedRegions[level - 2].contains(frame / count) else { return false }
        let host = UInt64(UInt(bitPattern: slot.pointee.hostPointer(for: GuestFrameNumber(frame)))) >> pageShift
        let pages = host...host + count - 1
        // The host's memory may be aligned otherwise: it lies in two regions then.
        return (host / count...pages.upperBound / count).allSatisfy { region in
            mixedHostRegions[level - 2][region].map { !$0.overlaps(pages) } ?? true
        }
    }

    private func placeDevice(
        _ leaf: Leaf, _ frame: UInt64, _ page: ShadowPage.Pointer, _ index: Int, _ guestEntry: UInt64,
        _ generation: MemorySlotGeneration
    ) -> Bool {
        if generation.isUpdateInProgress { return false }
        let era = generation.rawValue >> ShadowEntry.generationBits
        if era != published.deviceEra.pointee.load(ordering: .relaxed) {
            dropDevices()
            // ORDERING: release, after the entries were dropped; pairs with the walkers' acquire (invariant 6).
            published.deviceEra.pointee.store(era, ordering: .releasing)
        }
        let entry = ShadowEntry(
            device: frame, isGlobal: leaf.isGlobal,
            permissions: ShadowPermissions(leaf.rights, page.pointee.role, isStorable: leaf.isDirty),
            generation: generation.rawValue)
        replace(page, index, with: entry, guestEntry: guestEntry)
        return true
    }

    private func dropDevices() {
        counters.deviceDropCount += 1
        for key in Array(tables.deviceEntries.keys) {
            for entry in tables.deviceEntries[key] { empty(entry.page, entry.index) }
        }
    }

    /// Follows, or makes, the link at `index` to the page of a frame and a role.
    private func link(
        _ page: ShadowPage.Pointer, _ index: Int, to frame: UInt64, _ role: ShadowRole, guestEntry: UInt64
    ) -> Step {
        let old = page.value(index)
        if old.isLink, old.page.pointee.frame == frame, old.page.pointee.role == role {
            if !page.pointee.role.isDirect { page.guestEntries[index] = guestEntry }
            return .page(old.page)
        }
        guard let (child, isNew) = self.page(frame: frame, role: role) else { return .finished(isDevice: false) }
        // ORDERING: relaxed; published by the link (invariant 3).
        if !isNew && !role.isDirect { child.linked.pointee.store(nextEpoch(), ordering: .relaxed) }
        replace(page, index, with: ShadowEntry(link: child), guestEntry: guestEntry)
        return .page(child)
    }

    // MARK: Pages

    /// The page of a frame and a role, made if there is none; nil if there is no room.
    private func page(frame: UInt64, role: ShadowRole) -> (page: ShadowPage.Pointer, isNew: Bool)? {
        if let page = tables.find(frame: frame, role: role) { return (page, false) }
        guard makeRoom() else { return nil }
        let isKept = role.isDirect || role.level > 1 && tracked[frame]?.isComplete == true
        guard
            let page = ShadowPage.make(role: role, frame: frame, synced: isKept ? ShadowPage.always : nextEpoch())
        else { return nil }
        page.pointee.isTracked = isKept && !role.isDirect
        tables.insert(page)
        counters.madePageCount += 1
        return (page, true)
    }

    /// Recycles pages if there are too many: those made first, unless they were used since they were last looked at.
    private func makeRoom() -> Bool {
        // What waits to be freed counts as well.
        if garbage.count >= pageLimit { return false }
        guard tables.pageCount >= pageLimit else { return true }
        let goal = pageLimit - max(1, pageLimit / 16)
        var left = 2 * tables.pageCount
        while tables.pageCount > goal, left > 0, let page = tables.oldest {
            left -= 1
            if page.pointee.isPinned || page.pointee.wasUsed {
                page.pointee.wasUsed = false
                tables.makeNewest(page)
            } else {
                zap(page)
                counters.recycledPageCount += 1
            }
        }
        return tables.pageCount < pageLimit
    }

    // MARK: Entries

    /// Makes an entry, and zaps the page to which the old one was the last link.
    func replace(_ page: ShadowPage.Pointer, _ index: Int, with entry: ShadowEntry, guestEntry: UInt64) {
        if let orphan = tables.replace(page, index, with: entry, guestEntry: guestEntry) { zapOrphan(orphan) }
    }

    /// Empties an entry, and zaps the page to which it was the last link.
    func empty(_ page: ShadowPage.Pointer, _ index: Int) {
        if let orphan = tables.empty(page, index) { zapOrphan(orphan) }
    }

    /// The host address of a frame; nil without a slot.
    func hostPage(_ frame: UInt64, _ addressSpace: Int) -> UnsafeMutableRawPointer? {
        let frame = GuestFrameNumber(frame)
        return memory.lookup(frame, addressSpace: addressSpace, cache: &slotCache)?.pointee.hostPointer(for: frame)
    }
}
