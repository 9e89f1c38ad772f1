import Addressing
import Synchronization

/// One of the two sets of an address space's slots: a tree by guest frame, a table by id, the slot used last.
///
/// Invariants:
/// 1. While a set is active, only `lastUsed` changes, and only to slots of the set.
/// 2. Slots of a set do not overlap. Outside a change, both sets of an address space hold the same slots.
/// 3. The tree is a treap: ordered by `baseFrame` from left to right and by `priority` from the root down. Priorities
///    are scattered ids, so its depth is logarithmic whatever the frames are, and both sets have the same shape.
struct MemorySlotSet: ~Copyable {
    /// Which of a slot's links are this set's.
    let index: Int
    private(set) var root: MemorySlot.Pointer?
    private var ids = MemorySlotIDs()
    /// A slot of this set that a reader found, tried first; written by readers that miss.
    private let lastUsed = Atomic<MemorySlot.Pointer?>(nil)

    init(index: Int) { self.index = index }

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
        var next = root
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
    func find(id: UInt16) -> MemorySlot.Pointer? { ids[id] }

    /// The slot with the greatest base below `frame`.
    func last(before frame: GuestFrameNumber) -> MemorySlot.Pointer? {
        var found: MemorySlot.Pointer?
        var next = root
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

    /// Calls `body` with each slot, in the order of guest frames.
    func forEach(_ body: (MemorySlot.Pointer) -> Void) { visit(root, body) }

    private func visit(_ slot: MemorySlot.Pointer?, _ body: (MemorySlot.Pointer) -> Void) {
        guard let slot else { return }
        // The body may free the slot.
        let links = slot.links(index).pointee
        visit(links.left, body)
        body(slot)
        visit(links.right, body)
    }

    // MARK: Writers

    /// Removes `old`, adds `new`, or puts `new` in the place of `old`.
    ///
    /// - Complexity: O(1) if both start at the same frame, else logarithmic in the number of slots.
    /// > Concurrency: the slots lock is held and the set is inactive.
    mutating func replace(_ old: MemorySlot.Pointer?, with new: MemorySlot.Pointer?) {
        if let old {
            if lastUsed.load(ordering: .relaxed) == old { lastUsed.store(new, ordering: .relaxed) }
            ids[old.pointee.id] = nil
        }
        if let new { ids[new.pointee.id] = new }
        if let old, let new, old.pointee.baseFrame == new.pointee.baseFrame {
            // Same id, so the same priority: the heap order holds.
            assert(old.pointee.id == new.pointee.id)
            let links = old.links(index).pointee
            new.links(index).pointee = links
            setChild(of: links.parent, from: old, to: new)
            links.left?.links(index).pointee.parent = new
            links.right?.links(index).pointee.parent = new
            old.links(index).pointee = MemorySlot.Links()
            return
        }
        if let old { erase(old) }
        if let new { insert(new) }
    }

    /// Adds a slot to the tree alone.
    mutating func insert(_ slot: MemorySlot.Pointer) {
        var parent: MemorySlot.Pointer?
        var next = root
        while let current = next {
            parent = current
            let links = current.links(index).pointee
            next = slot.pointee.baseFrame < current.pointee.baseFrame ? links.left : links.right
        }
        slot.links(index).pointee = MemorySlot.Links(left: nil, right: nil, parent: parent)
        if let parent {
            if slot.pointee.baseFrame < parent.pointee.baseFrame {
                parent.links(index).pointee.left = slot
            } else {
                parent.links(index).pointee.right = slot
            }
        } else {
            root = slot
        }
        while let parent = slot.links(index).pointee.parent, parent.pointee.priority < slot.pointee.priority {
            rotateUp(slot)
        }
    }

    /// Removes a slot from the tree alone.
    mutating func erase(_ slot: MemorySlot.Pointer) {
        while true {
            let links = slot.links(index).pointee
            guard let left = links.left, let right = links.right else {
                let child = links.left ?? links.right
                setChild(of: links.parent, from: slot, to: child)
                child?.links(index).pointee.parent = links.parent
                break
            }
            rotateUp(left.pointee.priority > right.pointee.priority ? left : right)
        }
        slot.links(index).pointee = MemorySlot.Links()
    }

    /// Exchanges a slot with its parent, keeping the order of frames.
    private mutating func rotateUp(_ slot: MemorySlot.Pointer) {
        let parent = slot.links(index).pointee.parent!
        let grandparent = parent.links(index).pointee.parent
        let inner: MemorySlot.Pointer?
        if parent.links(index).pointee.left == slot {
            inner = slot.links(index).pointee.right
            parent.links(index).pointee.left = inner
            slot.links(index).pointee.right = parent
        } else {
            inner = slot.links(index).pointee.left
            parent.links(index).pointee.right = inner
            slot.links(index).pointee.left = parent
        }
        inner?.links(index).pointee.parent = parent
        parent.links(index).pointee.parent = slot
        slot.links(index).pointee.parent = grandparent
        setChild(of: grandparent, from: parent, to: slot)
    }

    /// Makes `parent`, or the root, point to `new` where it pointed to `old`.
    private mutating func setChild(
        of parent: MemorySlot.Pointer?, from old: MemorySlot.Pointer, to new: MemorySlot.Pointer?
    ) {
        guard let parent else {
            root = new
            return
        }
        if parent.links(index).pointee.left == old {
            parent.links(index).pointee.left = new
        } else {
            parent.links(index).pointee.right = new
        }
    }

    /// The slot tried first, for the check of invariants.
    var lastUsedSlot: MemorySlot.Pointer? { lastUsed.load(ordering: .relaxed) }
}
