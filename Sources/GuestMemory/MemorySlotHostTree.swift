/// The slots of a set by host address, then by id: a tree through links in the slots, so changing it allocates nothing and
/// cannot fail.
///
/// A treap: ordered from left to right, by `priority` from the root down. Priorities are scattered ids, so the depth is
/// logarithmic whatever the addresses are, and trees of the same slots have the same shape. Host ranges may overlap, so each
/// node knows the greatest end in its subtree.
struct MemorySlotHostTree {
    /// Which of a slot's links are this tree's.
    let set: Int
    private(set) var root: MemorySlot.Pointer?

    init(set: Int) { self.set = set }

    @inline(__always)
    private func links(_ slot: MemorySlot.Pointer) -> UnsafeMutablePointer<MemorySlot.Links> { slot.hostLinks(set) }

    @inline(__always)
    private func precedes(_ a: MemorySlot.Pointer, _ b: MemorySlot.Pointer) -> Bool {
        (a.pointee.hostAddress, a.pointee.id) < (b.pointee.hostAddress, b.pointee.id)
    }

    /// Calls `body`, which may free it, with each slot in order.
    func forEach(_ body: (MemorySlot.Pointer) -> Void) { visit(root, body) }

    private func visit(_ slot: MemorySlot.Pointer?, _ body: (MemorySlot.Pointer) -> Void) {
        guard let slot else { return }
        let links = links(slot).pointee
        visit(links.left, body)
        body(slot)
        visit(links.right, body)
    }

    // MARK: Writers

    /// - Complexity: logarithmic in the number of slots.
    mutating func insert(_ slot: MemorySlot.Pointer) {
        var parent: MemorySlot.Pointer?
        var next = root
        var isLeft = false
        while let current = next {
            parent = current
            isLeft = precedes(slot, current)
            next = isLeft ? links(current).pointee.left : links(current).pointee.right
        }
        links(slot).pointee = MemorySlot.Links(left: nil, right: nil, parent: parent)
        if let parent {
            if isLeft { links(parent).pointee.left = slot } else { links(parent).pointee.right = slot }
        } else {
            root = slot
        }
        summarize(slot)
        while let parent = links(slot).pointee.parent, parent.pointee.priority < slot.pointee.priority {
            rotateUp(slot)
        }
        summarizeUpwards(links(slot).pointee.parent)
    }

    /// - Complexity: logarithmic in the number of slots.
    mutating func erase(_ slot: MemorySlot.Pointer) {
        while true {
            let old = links(slot).pointee
            guard let left = old.left, let right = old.right else {
                let child = old.left ?? old.right
                setChild(of: old.parent, from: slot, to: child)
                if let child { links(child).pointee.parent = old.parent }
                summarizeUpwards(old.parent)
                break
            }
            rotateUp(left.pointee.priority > right.pointee.priority ? left : right)
        }
        links(slot).pointee = MemorySlot.Links()
    }

    /// Puts `new` in the place of `old`, which has the same id and the same place in the order.
    mutating func substitute(_ new: MemorySlot.Pointer, for old: MemorySlot.Pointer) {
        // The same id, so the same priority: the heap order holds.
        assert(old.pointee.id == new.pointee.id)
        let old = (slot: old, links: links(old).pointee)
        links(new).pointee = old.links
        setChild(of: old.links.parent, from: old.slot, to: new)
        if let left = old.links.left { links(left).pointee.parent = new }
        if let right = old.links.right { links(right).pointee.parent = new }
        summarize(new)
        links(old.slot).pointee = MemorySlot.Links()
    }

    /// Exchanges a slot with its parent, keeping the order.
    private mutating func rotateUp(_ slot: MemorySlot.Pointer) {
        let parent = links(slot).pointee.parent!
        let grandparent = links(parent).pointee.parent
        let inner: MemorySlot.Pointer?
        if links(parent).pointee.left == slot {
            inner = links(slot).pointee.right
            links(parent).pointee.left = inner
            links(slot).pointee.right = parent
        } else {
            inner = links(slot).pointee.left
            links(parent).pointee.right = inner
            links(slot).pointee.left = parent
        }
        if let inner { links(inner).pointee.parent = parent }
        links(parent).pointee.parent = slot
        links(slot).pointee.parent = grandparent
        setChild(of: grandparent, from: parent, to: slot)
        summarize(parent)
        summarize(slot)
    }

    /// Makes `parent`, or the root, point to `new` where it pointed to `old`.
    private mutating func setChild(
        of parent: MemorySlot.Pointer?, from old: MemorySlot.Pointer, to new: MemorySlot.Pointer?
    ) {
        guard let parent else {
            root = new
            return
        }
        if links(parent).pointee.left == old {
            links(parent).pointee.left = new
        } else {
            links(parent).pointee.right = new
        }
    }

    /// Computes the greatest end of `slot` from itself and its children.
    private func summarize(_ slot: MemorySlot.Pointer) {
        let links = links(slot).pointee
        var end = slot.pointee.hostRange.upperBound
        if let left = links.left { end = max(end, left.greatestHostEnd(set).pointee) }
        if let right = links.right { end = max(end, right.greatestHostEnd(set).pointee) }
        slot.greatestHostEnd(set).pointee = end
    }

    private func summarizeUpwards(_ slot: MemorySlot.Pointer?) {
        var next = slot
        while let slot = next {
            summarize(slot)
            next = links(slot).pointee.parent
        }
    }

    // MARK: Checks

    /// What is wrong with the tree; nil if nothing.
    func brokenInvariant() -> String? {
        var previous: MemorySlot.Pointer?
        var broken: String?
        if let root, links(root).pointee.parent != nil { return "the root by host address has a parent" }
        forEach { slot in
            let id = slot.pointee.id
            if let previous, !precedes(previous, slot) { broken = "slot \(id) is out of order by host address" }
            previous = slot
            let own = links(slot).pointee
            if own.parent == nil && root != slot { broken = "slot \(id) has no parent by host address" }
            for child in [own.left, own.right] {
                guard let child else { continue }
                if links(child).pointee.parent != slot {
                    broken = "slot \(child.pointee.id) has a wrong parent by host address"
                }
                if child.pointee.priority > slot.pointee.priority {
                    broken = "slot \(child.pointee.id) is too deep by host address"
                }
            }
        }
        return broken
    }
}
