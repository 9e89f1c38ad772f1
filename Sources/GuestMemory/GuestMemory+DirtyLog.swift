import Host
import SystemPackage

/// Which pages were written.
extension GuestMemory {
    /// Reads, and unless `keeping` clears, a slot's dirty bitmap. The C request is `KVM_GET_DIRTY_LOG`.
    ///
    /// - Parameter slot: bits 15–0 the slot's id, bits 31–16 the address space.
    /// - Parameter keeping: leaves the bits set, to be cleared by `clearDirtyLog` (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    /// - Parameter flush: called if bits were cleared; must return only when no vCPU can write to the slot without marking
    ///   the page again.
    /// - Returns: one bit a page, from the lowest of the first word on; bits behind the last page are 0.
    /// - Throws: `Errno.invalidArgument` if the id or the address space is unknown, `Errno.noSuchFileOrDirectory` if the
    ///   slot does not exist or is not logged.
    /// - Complexity: linear in the number of pages.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func getDirtyLog(
        slot: UInt32, keeping: Bool = false, flush: (MemorySlotDescription) -> Void
    ) throws(Errno) -> [UInt64] {
        try slotsLock.withLock { () throws(Errno) in
            let (description, bitmap) = try loggedSlot(slot)
            let count = MemorySlot.bitmapWordCount(pageCount: description.pageCount)
            var isAnySet = false
            let words = [UInt64](unsafeUninitializedCapacity: count) { words, initializedCount in
                for index in 0..<count {
                    let word = MemorySlot.atomic(bitmap + index)
                    var value = word.pointee.load(ordering: .acquiring)
                    // ORDERING: acquire, here and above, pairs with the release in `MemorySlot.markDirty`.
                    if value != 0 && !keeping { value = word.pointee.exchange(0, ordering: .acquiring) }
                    isAnySet = isAnySet || value != 0
                    (words.baseAddress! + index).initialize(to: value)
                }
                initializedCount = count
            }
            if isAnySet && !keeping { flush(description) }
            return words
        }
    }

    /// Clears bits that the client has seen. The C request is `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// - Parameter firstPage: a multiple of 64, from the start of the slot.
    /// - Parameter pageCount: a multiple of 64, unless the range ends with the slot.
    /// - Parameter bits: one bit a page to clear, starting with `firstPage`; at least `pageCount` of them.
    /// - Parameter flush: as for `getDirtyLog`.
    /// - Throws: as `getDirtyLog`; `Errno.invalidArgument` also if the range is not as described or leaves the slot.
    /// - Complexity: linear in `pageCount`.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func clearDirtyLog(
        slot: UInt32, firstPage: UInt64, pageCount: UInt64, bits: [UInt64], flush: (MemorySlotDescription) -> Void
    ) throws(Errno) {
        try slotsLock.withLock { () throws(Errno) in
            let (description, bitmap) = try loggedSlot(slot, firstPage: firstPage, pageCount: pageCount)
            guard MemorySlot.bitmapWordCount(pageCount: pageCount) <= bits.count else { throw .invalidArgument }
            var isAnyCleared = false
            for index in 0..<MemorySlot.bitmapWordCount(pageCount: pageCount) where bits[index] != 0 {
                let word = MemorySlot.atomic(bitmap + Int(firstPage / 64) + index)
                // ORDERING: acquire pairs with the release in `MemorySlot.markDirty`.
                let old = word.pointee.bitwiseAnd(~bits[index], ordering: .acquiring).oldValue
                isAnyCleared = isAnyCleared || old & bits[index] != 0
            }
            if isAnyCleared { flush(description) }
        }
    }

    /// Whether `clearDirtyLog` could be asked for a range now: the slot may change meanwhile.
    ///
    /// - Throws: what `clearDirtyLog` would.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func checkLogRange(slot: UInt32, firstPage: UInt64, pageCount: UInt64) throws(Errno) {
        try slotsLock.withLock { () throws(Errno) in
            _ = try loggedSlot(slot, firstPage: firstPage, pageCount: pageCount)
        }
    }

    /// The bitmap of a slot that is logged, for a range of whole words of it. The slots lock is held.
    private func loggedSlot(
        _ slot: UInt32, firstPage: UInt64, pageCount: UInt64
    ) throws(Errno) -> (MemorySlotDescription, UnsafeMutablePointer<UInt64>) {
        guard firstPage & 63 == 0 else { throw .invalidArgument }
        let found = try loggedSlot(slot)
        guard firstPage <= found.0.pageCount, pageCount <= found.0.pageCount - firstPage,
            pageCount & 63 == 0 || firstPage + pageCount == found.0.pageCount
        else { throw .invalidArgument }
        return found
    }

    /// The bitmap of a slot that is logged. The slots lock is held.
    func loggedSlot(
        _ slot: UInt32
    ) throws(Errno) -> (MemorySlotDescription, UnsafeMutablePointer<UInt64>) {
        let addressSpace = Int(slot >> 16)
        let id = UInt16(truncatingIfNeeded: slot)
        guard addressSpace < addressSpaceCount, Int(id) < Self.userSlotCount else { throw .invalidArgument }
        guard let slot = spaces[addressSpace].active.load()!.pointee.find(id: id), let bitmap = slot.pointee.dirtyBitmap
        else { throw .noSuchFileOrDirectory }
        return (slot.pointee.description, bitmap)
    }
}
