/// Comparing pages with the guest's tables.
extension ShadowMMU {
    /// Drops the entries of a page that the guest's table does not bear out any more.
    ///
    /// - Returns: false if the table has no memory any more; the page is zapped then.
    /// > Concurrency: the lock is held, inside a read section of the memory.
    func synchronize(_ page: ShadowPage.Pointer) -> Bool {
        let epoch = nextEpoch()
        let role = page.pointee.role
        guard let table = hostPage(page.pointee.frame, role.addressSpace) else {
            zap(page)
            return false
        }
        var hasChanged = false
        page.forEachUsed { index in
            if compare(page, index, GuestTableEntry.load(table, role, index)) { hasChanged = true }
        }
        // ORDERING: release, after what differs was dropped; pairs with the walkers' acquire (invariant 2).
        page.synced.pointee.store(epoch, ordering: .releasing)
        counters.syncCount += 1
        page.pointee.cleanSyncCount = hasChanged ? 0 : page.pointee.cleanSyncCount + 1
        if role.level > 1 && page.pointee.cleanSyncCount == trackingThreshold, tracked[page.pointee.frame] == nil {
            candidates.append(page.pointee.frame)
        }
        return true
    }

    /// Compares one entry, and drops it, or its write permission, if the guest's is another now.
    ///
    /// - Returns: whether the guest's entry has another meaning.
    func compare(_ page: ShadowPage.Pointer, _ index: Int, _ new: GuestTableEntry) -> Bool {
        let old = page.guestEntries[index]
        if new.rawValue == old { return false }
        guard new.differsInStatusOnly(from: old) else {
            empty(page, index)
            return true
        }
        if old & GuestWalk.Entry.dirty != 0 && !new.isDirty {
            let entry = page.value(index)
            guard entry.isMemory else {
                empty(page, index)
                return true
            }
            page.set(index, entry.withoutWrites)
        }
        page.guestEntries[index] = new.rawValue
        return false
    }

    /// Compares the entries on the way to a linear address, up to the one that maps it.
    ///
    /// > Concurrency: the lock is held, inside a read section of the memory.
    func compare(pathTo linear: UInt64, from root: ShadowPage.Pointer) {
        var page = root
        while true {
            let role = page.pointee.role
            let index = Int(linear >> UInt64(3 + 9 * role.level)) & 511
            if page.value(index) == .empty { return }
            if page.synced.pointee.load(ordering: .relaxed) != ShadowPage.always {
                guard let table = hostPage(page.pointee.frame, role.addressSpace) else { return zap(page) }
                _ = compare(page, index, GuestTableEntry.load(table, role, index))
            }
            let entry = page.value(index)
            guard entry.isLink else { return }
            page = entry.page
        }
    }
}
