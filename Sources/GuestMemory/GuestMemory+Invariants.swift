import Addressing

/// Checks of the structure, for tests and inspection.
extension GuestMemory {
    /// What is wrong with the slots; nil if nothing.
    ///
    /// - Complexity: linear in the number of slots.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func brokenInvariant() -> String? {
        slotsLock.withLock {
            var pages: UInt64 = 0
            var allocations = MemorySlotAllocator.Counts(nodes: allocator.freeNodeCount)
            for number in 0..<addressSpaceCount {
                let active = spaces[number].active.load()!
                let inactive = spaces[number].inactive
                if active == inactive { return "address space \(number): one set is active and inactive" }
                if let broken = active.pointee.brokenInvariant(inactive) ?? inactive.pointee.brokenInvariant(active) {
                    return "address space \(number): \(broken)"
                }
                allocations.nodes += active.pointee.frames.nodeCount
                var slots: (active: [MemorySlot.Pointer], inactive: [MemorySlot.Pointer]) = ([], [])
                active.pointee.forEach { slots.active.append($0) }
                inactive.pointee.forEach { slots.inactive.append($0) }
                if slots.active != slots.inactive { return "address space \(number): the sets differ" }
                for slot in slots.active {
                    pages += slot.pointee.pageCount
                    allocations.slots += 1
                    if slot.pointee.dirtyBitmap != nil { allocations.bitmaps += 1 }
                    if slot.pointee.flags.contains(.invalid) { return "slot \(slot.pointee.id) is left INVALID" }
                    if slot.pointee.flags.contains(.logDirtyPages) != (slot.pointee.dirtyBitmap != nil) {
                        return "slot \(slot.pointee.id): bitmap and flag disagree"
                    }
                }
                if generation(addressSpace: number).isUpdateInProgress { return "an update is left in progress" }
            }
            if allocations != allocator.counts { return "\(allocations) are in use, \(allocator.counts) are allocated" }
            return pages == totalPageCount ? nil : "\(pages) pages in slots, \(totalPageCount) counted"
        }
    }

    /// The order by guest frame of an address space: its levels and nodes.
    ///
    /// > Concurrency: as for `brokenInvariant`.
    package func frameOrderShape(addressSpace: Int = 0) -> (height: Int, nodeCount: Int) {
        slotsLock.withLock {
            let active = spaces[addressSpace].active.load()!
            return (active.pointee.frames.height, active.pointee.frames.nodeCount)
        }
    }
}
