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
            for number in 0..<addressSpaceCount {
                let active = spaces[number].active.load()!
                let inactive = spaces[number].inactive
                if active == inactive { return "address space \(number): one set is active and inactive" }
                if let broken = active.pointee.brokenInvariant() ?? inactive.pointee.brokenInvariant() {
                    return "address space \(number): \(broken)"
                }
                var slots: (active: [MemorySlot.Pointer], inactive: [MemorySlot.Pointer]) = ([], [])
                active.pointee.forEach { slots.active.append($0) }
                inactive.pointee.forEach { slots.inactive.append($0) }
                if slots.active != slots.inactive { return "address space \(number): the sets differ" }
                for slot in slots.active {
                    pages += slot.pointee.pageCount
                    if slot.pointee.flags.contains(.invalid) { return "slot \(slot.pointee.id) is left INVALID" }
                    if slot.pointee.flags.contains(.logDirtyPages) != (slot.pointee.dirtyBitmap != nil) {
                        return "slot \(slot.pointee.id): bitmap and flag disagree"
                    }
                }
                if generation(addressSpace: number).isUpdateInProgress { return "an update is left in progress" }
            }
            return pages == totalPageCount ? nil : "\(pages) pages in slots, \(totalPageCount) counted"
        }
    }
}

extension MemorySlotSet {
    /// What is wrong with the set; nil if nothing.
    func brokenInvariant() -> String? {
        var previousEnd = GuestFrameNumber(0)
        var broken: String?
        // Readers change it meanwhile.
        let lastUsed = lastUsedSlot
        var isLastUsedPresent = lastUsed == nil
        forEach { slot in
            let links = slot.links(index).pointee
            if slot == lastUsed { isLastUsedPresent = true }
            if slot.pointee.baseFrame < previousEnd { broken = "slot \(slot.pointee.id) overlaps its predecessor" }
            previousEnd = slot.pointee.endFrame
            if find(id: slot.pointee.id) != slot { broken = "slot \(slot.pointee.id) is not found by its id" }
            if links.parent == nil && root != slot { broken = "slot \(slot.pointee.id) has no parent" }
            for child in [links.left, links.right] {
                guard let child else { continue }
                if child.links(index).pointee.parent != slot { broken = "slot \(child.pointee.id) has a wrong parent" }
                if child.pointee.priority > slot.pointee.priority { broken = "slot \(child.pointee.id) is too deep" }
            }
        }
        if !isLastUsedPresent { broken = "the slot used last is not in the set" }
        return broken
    }
}
