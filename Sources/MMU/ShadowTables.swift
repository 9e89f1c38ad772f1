/// The pages of a shadow MMU and how they hang together.
///
/// Every entry that is not empty is in one of three reverse maps: memory by guest frame, devices by guest frame, links by
/// the page they lead to.
/// > Concurrency: the lock of the shadow MMU is held.
struct ShadowTables {
    /// The first page of each frame; `nextOfFrame` leads on.
    private var pagesByFrame: [UInt64: ShadowPage.Pointer] = [:]
    private(set) var pageCount = 0
    /// The ends of the order in which pages are recycled.
    private(set) var oldest: ShadowPage.Pointer?
    private var newest: ShadowPage.Pointer?

    /// Entries that map memory, by ``ReverseMap/key(frame:level:)``.
    private(set) var memoryEntries = ReverseMap()
    /// Device entries, by the key of their frame.
    private(set) var deviceEntries = ReverseMap()
    /// Entries that lead to a page, by its address.
    private(set) var links = ReverseMap()

    // MARK: Pages

    func find(frame: UInt64, role: ShadowRole) -> ShadowPage.Pointer? {
        var page = pagesByFrame[frame]
        while let current = page, current.pointee.role != role { page = current.pointee.nextOfFrame }
        return page
    }

    /// The pages that shadow the table in a frame.
    func shadows(of frame: UInt64) -> [ShadowPage.Pointer] {
        var result: [ShadowPage.Pointer] = []
        var page = pagesByFrame[frame]
        while let current = page {
            if !current.pointee.role.isDirect { result.append(current) }
            page = current.pointee.nextOfFrame
        }
        return result
    }

    var frameCount: Int { pagesByFrame.count }
    var frames: some Collection<UInt64> { pagesByFrame.keys }

    mutating func insert(_ page: ShadowPage.Pointer) {
        page.pointee.nextOfFrame = pagesByFrame.updateValue(page, forKey: page.pointee.frame)
        pageCount += 1
        append(page)
    }

    /// Takes out a page whose entries are empty and to which no link leads.
    mutating func remove(_ page: ShadowPage.Pointer) {
        let frame = page.pointee.frame
        if pagesByFrame[frame] == page {
            pagesByFrame[frame] = page.pointee.nextOfFrame
        } else {
            var before = pagesByFrame[frame].unsafelyUnwrapped
            while before.pointee.nextOfFrame != page { before = before.pointee.nextOfFrame.unsafelyUnwrapped }
            before.pointee.nextOfFrame = page.pointee.nextOfFrame
        }
        pageCount -= 1
        unchain(page)
    }

    /// Puts a page behind all others in the order in which they are recycled.
    mutating func makeNewest(_ page: ShadowPage.Pointer) {
        unchain(page)
        append(page)
    }

    private mutating func append(_ page: ShadowPage.Pointer) {
        page.pointee.older = newest
        page.pointee.newer = nil
        newest?.pointee.newer = page
        newest = page
        if oldest == nil { oldest = page }
    }

    private mutating func unchain(_ page: ShadowPage.Pointer) {
        if oldest == page { oldest = page.pointee.newer }
        if newest == page { newest = page.pointee.older }
        page.pointee.older?.pointee.newer = page.pointee.newer
        page.pointee.newer?.pointee.older = page.pointee.older
        page.pointee.older = nil
        page.pointee.newer = nil
    }

    /// Calls `body` with each page, which it may free.
    func forEachPage(_ body: (ShadowPage.Pointer) -> Void) {
        var page = oldest
        while let current = page {
            page = current.pointee.newer
            body(current)
        }
    }

    // MARK: Entries

    /// Makes `new` the entry at `index`, with the guest's entry it was made from.
    /// - Returns: the page to which the old entry was the last link.
    mutating func replace(
        _ page: ShadowPage.Pointer, _ index: Int, with new: ShadowEntry, guestEntry: UInt64
    ) -> ShadowPage.Pointer? {
        let old = page.value(index)
        let oldKey = key(of: old, page, index)
        if new != old { page.set(index, new) }
        if !page.pointee.role.isDirect { page.guestEntries[index] = guestEntry }
        let newKey = key(of: new, page, index)
        // As a rule the same is found again, with another permission.
        if newKey == oldKey && new.isOfKind(old) { return nil }
        let reference = ShadowEntryReference(page, index)
        if new.isLink {
            links.insert(reference, newKey)
        } else if new.isMemory {
            memoryEntries.insert(reference, newKey)
        } else if new.isDevice {
            deviceEntries.insert(reference, newKey)
        }
        return forget(reference, old, oldKey)
    }

    /// Empties the entry at `index`.
    /// - Returns: the page to which it was the last link.
    mutating func empty(_ page: ShadowPage.Pointer, _ index: Int) -> ShadowPage.Pointer? {
        let old = page.value(index)
        let oldKey = key(of: old, page, index)
        page.set(index, .empty)
        return forget(ShadowEntryReference(page, index), old, oldKey)
    }

    private mutating func forget(
        _ reference: ShadowEntryReference, _ old: ShadowEntry, _ key: UInt64
    ) -> ShadowPage.Pointer? {
        if old.isLink { return links.remove(reference, key) ? old.page : nil }
        if old.isMemory {
            memoryEntries.remove(reference, key)
        } else if old.isDevice {
            deviceEntries.remove(reference, key)
        }
        return nil
    }

    /// The entries that lead to a page.
    func parents(of page: ShadowPage.Pointer) -> [ShadowEntryReference] { links[Self.key(of: page)] }

    private static func key(of page: ShadowPage.Pointer) -> UInt64 { UInt64(UInt(bitPattern: page)) }

    private func key(of entry: ShadowEntry, _ page: ShadowPage.Pointer, _ index: Int) -> UInt64 {
        if entry.isLink { return Self.key(of: entry.page) }
        if entry.isDevice { return ReverseMap.key(frame: entry.deviceFrame, level: 1) }
        if entry.isMemory {
            return ReverseMap.key(frame: mappedFrame(page, index), level: page.pointee.role.level)
        }
        return 0
    }

    /// The first frame that the memory entry at `index` maps.
    func mappedFrame(_ page: ShadowPage.Pointer, _ index: Int) -> UInt64 {
        let role = page.pointee.role
        if role.isDirect { return page.pointee.frame + UInt64(index) << UInt64(9 * (role.level - 1)) }
        return GuestTableEntry(page.guestEntries[index], role).frame(at: index)
    }
}
