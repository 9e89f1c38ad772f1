/// What the slots look like, for inspection.
extension GuestMemory {
    /// How many slots there are, in all address spaces, and their pages.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public var counts: (slots: Int, pages: UInt64) { slotsLock.withLock { (allocator.counts.slots, totalPageCount) } }

    /// Both sets of an address space, in the order of guest frames, and which of them is active.
    /// > Concurrency: as `counts`.
    public func sets(addressSpace: Int) -> (active: Int, slots: [[MemorySlotDescription]]) {
        slotsLock.withLock {
            let active = spaces[addressSpace].active.load()!
            let inactive = spaces[addressSpace].inactive
            var slots: [[MemorySlotDescription]] = [[], []]
            active.pointee.forEach { slots[active.pointee.index].append($0.pointee.description) }
            inactive.pointee.forEach { slots[inactive.pointee.index].append($0.pointee.description) }
            return (active.pointee.index, slots)
        }
    }
}
