import Addressing
import Synchronization

/// One of the two sets of an address space's slots: trees by guest frame and by host address, a table by id, the slot used
/// last.
///
/// Invariants:
/// 1. While a set is active, only `lastUsed` changes, and only to slots of the set.
/// 2. Slots of a set do not overlap in guest frames; in host addresses they may. Outside a change, both sets of an address
///    space hold the same slots.
struct MemorySlotSet: ~Copyable {
    private var frames: MemorySlotTree<GuestFrameOrder>
    private var hostAddresses: MemorySlotTree<HostAddressOrder>
    /// Both sets' table.
    private let ids: MemorySlotIDs
    /// A slot of this set that a reader found, tried first; written by readers that miss.
    private let lastUsed = Atomic<MemorySlot.Pointer?>(nil)

    /// - Parameter index: which of a slot's links are this set's (0 or 1).
    init(index: Int, ids: MemorySlotIDs) {
        frames = MemorySlotTree(set: index)
        hostAddresses = MemorySlotTree(set: index)
        self.ids = ids
    }

    /// Which of the two sets it is.
    var index: Int { frames.set }

    // MARK: Readers

    /// The slot that holds `frame`, valid or not.
    ///
    /// - Complexity: O(1) for the slot found last, else logarithmic in the number of slots.
    @inline(__always)
    func find(_ frame: GuestFrameNumber) -> MemorySlot.Pointer? {
        // ORDERING: relaxed; the slot was complete before the set was published, and the caller acquired the set.
        if let slot = lastUsed.load(ordering: .relaxed), slot.pointee.contains(frame) { return slot }
        return walk(frame)
    }

    @inline(never)
    private func walk(_ frame: GuestFrameNumber) -> MemorySlot.Pointer? {
        var next = frames.root
        while let slot = next {
            if frame < slot.pointee.baseFrame {
                next = slot.links(index).pointee.left
            } else if slot.pointee.contains(frame) {
                lastUsed.store(slot, ordering: .relaxed)
                return slot
            } else {
                next = slot.links(index).pointee.right
            }
        }
        return nil
    }

    /// The slot with the given id.
    func find(id: UInt16) -> MemorySlot.Pointer? { ids.find(id, set: index) }

    /// The slot with the greatest base below `frame`.
    func last(before frame: GuestFrameNumber) -> MemorySlot.Pointer? {
        var found: MemorySlot.Pointer?
        var next = frames.root
        while let slot = next {
            if slot.pointee.baseFrame < frame {
                found = slot
                next = slot.links(index).pointee.right
            } else {
                next = slot.links(index).pointee.left
            }
        }
        return found
    }

    /// Whether a slot other than `id` shares a frame with `frames`.
    func overlaps(_ frames: Range<GuestFrameNumber>, except id: UInt16) -> Bool {
        var slot = last(before: frames.upperBound)
        while let current = slot, frames.lowerBound < current.pointee.endFrame {
            if current.pointee.id != id { return true }
            slot = last(before: current.pointee.baseFrame)
        }
        return false
    }

    /// Calls `body` with each slot whose host memory shares a byte with `range`, in the order of host addresses.
    ///
    /// - Complexity: logarithmic in the number of slots for each slot found, and for them together no more than linear;
    ///   logarithmic and linear in those found if host ranges do not overlap.
    func forEach(overlapping range: Range<UInt>, _ body: (MemorySlot.Pointer) -> Void) {
        guard !range.isEmpty else { return }
        visit(hostAddresses.root, range, body)
    }

    private func visit(_ slot: MemorySlot.Pointer?, _ range: Range<UInt>, _ body: (MemorySlot.Pointer) -> Void) {
        var next = slot
        // Nothing below a node reaches further than its greatest end; nothing right of it starts before it does.
        while let slot = next, slot.greatestHostEnd(index).pointee > range.lowerBound {
            let links = slot.hostLinks(index).pointee
            visit(links.left, range, body)
            let own = slot.pointee.hostRange
            guard own.lowerBound < range.upperBound else { return }
            if own.upperBound > range.lowerBound { body(slot) }
            next = links.right
        }
    }

    /// Calls `body`, which may free it, with each slot, in the order of guest frames.
    func forEach(_ body: (MemorySlot.Pointer) -> Void) { frames.forEach(body) }

    // MARK: Writers

    /// Removes `old`, adds `new`, whose id is reserved, or puts `new` in the place of `old`, which has the same id and host
    /// address. Cannot fail.
    ///
    /// - Complexity: O(1) if both start at the same frame, else logarithmic in the number of slots.
    /// > Concurrency: the slots lock is held and the set is inactive.
    mutating func replace(_ old: MemorySlot.Pointer?, with new: MemorySlot.Pointer?) {
        if let old, lastUsed.load(ordering: .relaxed) == old { lastUsed.store(new, ordering: .relaxed) }
        ids.replace((old ?? new)!.pointee.id, set: index, with: new)
        guard let old, let new else {
            if let old {
                frames.erase(old)
                hostAddresses.erase(old)
            }
            if let new {
                frames.insert(new)
                hostAddresses.insert(new)
            }
            return
        }
        assert(old.pointee.hostRange == new.pointee.hostRange)
        hostAddresses.substitute(new, for: old)
        if old.pointee.baseFrame == new.pointee.baseFrame {
            frames.substitute(new, for: old)
        } else {
            frames.erase(old)
            frames.insert(new)
        }
    }

    /// Lets `body` change the frames of a slot of the set.
    ///
    /// - Complexity: logarithmic in the number of slots.
    /// > Concurrency: as for `replace`.
    mutating func move(_ slot: MemorySlot.Pointer, _ body: (MemorySlot.Pointer) -> Void) {
        frames.erase(slot)
        body(slot)
        frames.insert(slot)
    }

    // MARK: Checks

    /// What is wrong with the set; nil if nothing.
    func brokenInvariant() -> String? {
        if let broken = frames.brokenInvariant("frame") ?? hostAddresses.brokenInvariant("host address") {
            return broken
        }
        var previousEnd = GuestFrameNumber(0)
        var broken: String?
        var count = 0
        // Readers change it meanwhile.
        let lastUsed = lastUsed.load(ordering: .relaxed)
        var isLastUsedPresent = lastUsed == nil
        forEach { slot in
            count += 1
            if slot == lastUsed { isLastUsedPresent = true }
            if slot.pointee.baseFrame < previousEnd { broken = "slot \(slot.pointee.id) overlaps its predecessor" }
            previousEnd = slot.pointee.endFrame
            if find(id: slot.pointee.id) != slot { broken = "slot \(slot.pointee.id) is not found by its id" }
        }
        hostAddresses.forEach { slot in
            count -= 1
            if find(id: slot.pointee.id) != slot { broken = "slot \(slot.pointee.id) by host address is another by id" }
            let links = slot.hostLinks(index).pointee
            let ends = [links.left, links.right].compactMap { $0?.greatestHostEnd(index).pointee }
            if slot.greatestHostEnd(index).pointee != ends.reduce(slot.pointee.hostRange.upperBound, max) {
                broken = "slot \(slot.pointee.id) has a wrong greatest host end"
            }
        }
        if count != 0 { broken = "the trees hold different numbers of slots" }
        if !isLastUsedPresent { broken = "the slot used last is not in the set" }
        return broken
    }
}
