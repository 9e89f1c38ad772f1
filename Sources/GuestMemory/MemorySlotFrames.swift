/// The slots of a set in the order of guest frames: a B+tree.
///
/// Both sets of an address space share their nodes, of which each holds one version for each set. A change is made in the
/// inactive set's versions, by searching, splitting and merging; after the switch the other set follows by copying the
/// versions of those nodes. So a set that has followed is node for node the same, a refused change is undone exactly, by
/// following the set that is still active, and neither takes memory.
///
/// Invariants:
/// 1. Only the inactive set's versions change, and its root and height. Headers, lists and the slots' `leaf` are the
///    writer's.
/// 2. A key is the first frame of the subtree that its item is, so all keys of a version ascend, and a frame belongs to the
///    entry whose key is the last one not greater. Above the first leaf, the first keys may be less than that frame: so
///    the first slot comes and goes without a change there.
/// 3. All leaves have the same depth. No node is empty; a root that is no leaf has two entries or more.
/// 4. Two neighbours below one node have 17 entries or more together. So n slots have less than n/7 + 2 leaves.
/// 5. Nodes whose versions differ are in the list of changes.
/// 6. A slot's `leaf` is where the inactive set holds it or, if it holds it nowhere, where the active one does.
struct MemorySlotFrames: ~Copyable {
    /// Which versions of the nodes are this set's.
    let set: Int
    private(set) var root: MemorySlotNode?
    /// The number of levels: 0 without slots, 1 if the root is a leaf.
    private(set) var height = 0
    private let changes: Changes

    /// The nodes that a change has changed, and where nodes come from; shared by both sets.
    final class Changes {
        fileprivate var first: MemorySlotNode?
        fileprivate let allocator: MemorySlotAllocator

        init(_ allocator: MemorySlotAllocator) { self.allocator = allocator }
    }

    /// A node and its neighbour become one if that leaves room for a quarter more.
    private static let mergedCount = MemorySlotNode.capacity * 3 / 4

    init(set: Int, changes: Changes) {
        self.set = set
        self.changes = changes
    }

    /// Frees the nodes of both sets, which are the same.
    func deallocate() {
        if let root { deallocate(root) }
    }

    private func deallocate(_ node: MemorySlotNode) {
        if !node.isLeaf {
            for index in 0..<node.count(set) { deallocate(node.child(index, set)) }
        }
        node.free()
    }

    // MARK: Readers

    /// The slot with the greatest base that is not greater than `frame`.
    ///
    /// - Complexity: logarithmic in the number of slots, to a base between 7 and 32.
    @inline(__always)
    func last(upTo frame: UInt64) -> MemorySlot.Pointer? {
        guard var node = root else { return nil }
        let frame = min(frame, MemorySlotNode.unusedKey &- 1)
        var level = height
        while true {
            let rank = node.rank(of: frame, set)
            // Below the first slot.
            if rank == 0 { return nil }
            level &-= 1
            if level == 0 { return node.slot(rank &- 1, set) }
            node = node.child(rank &- 1, set)
        }
    }

    /// Calls `body`, which may free it, with each slot in order.
    func forEach(_ body: (MemorySlot.Pointer) -> Void) {
        if let root { visit(root, body) }
    }

    private func visit(_ node: MemorySlotNode, _ body: (MemorySlot.Pointer) -> Void) {
        for index in 0..<node.count(set) {
            if node.isLeaf { body(node.slot(index, set)) } else { visit(node.child(index, set), body) }
        }
    }

    // MARK: Writers

    /// Gets the nodes that the next insertion may take: a split on each level and a root above.
    ///
    /// - Returns: false if memory is short.
    func reserve() -> Bool { changes.allocator.reserveNodes(height + 1) }

    /// Inserts a slot whose frames are free. Nodes are reserved.
    ///
    /// - Complexity: logarithmic in the number of slots.
    mutating func insert(_ slot: MemorySlot.Pointer) {
        let key = slot.pointee.baseFrame.value
        if let leaf = last(upTo: key)?.leaf.pointee, leaf.count(set) < MemorySlotNode.capacity {
            // Behind another in a leaf with room, a slot concerns no other node.
            add(key, UnsafeMutableRawPointer(slot), at: leaf.rank(of: key, set), to: leaf)
            return
        }
        guard let old = root else {
            let leaf = takeNode(isLeaf: true)
            add(key, UnsafeMutableRawPointer(slot), at: 0, to: leaf)
            (root, height) = (leaf, 1)
            return
        }
        guard let right = insert(slot, key, below: old, next: MemorySlotNode.capacity) else { return }
        let top = takeNode(isLeaf: false)
        add(old.keys(set)[0], old.item, at: 0, to: top)
        add(right.keys(set)[0], right.item, at: 1, to: top)
        (root, height) = (top, height + 1)
    }

    /// - Parameter next: the number of entries of the right neighbour; `capacity` if there is none.
    /// - Returns: the new right neighbour, if the node was split.
    private func insert(
        _ slot: MemorySlot.Pointer, _ key: UInt64, below node: MemorySlotNode, next: Int
    ) -> MemorySlotNode? {
        let rank = node.rank(of: key, set)
        if node.isLeaf { return add(key, UnsafeMutableRawPointer(slot), at: rank, to: node, next: next) }
        if rank == 0 {
            // Less than all before.
            change(node)
            node.keys(set)[0] = key
        }
        let index = max(rank - 1, 0)
        let nextCount = index + 1 < node.count(set) ? node.child(index + 1, set).count(set) : MemorySlotNode.capacity
        guard let right = insert(slot, key, below: node.child(index, set), next: nextCount) else { return nil }
        return add(right.keys(set)[0], right.item, at: index + 1, to: node, next: next)
    }

    /// Adds an entry to a node and splits it first if it is full.
    @discardableResult
    private func add(
        _ key: UInt64, _ item: UnsafeMutableRawPointer, at index: Int, to node: MemorySlotNode,
        next: Int = MemorySlotNode.capacity
    ) -> MemorySlotNode? {
        change(node)
        guard node.count(set) == MemorySlotNode.capacity else {
            node.insert(key, item, at: index, set)
            if node.isLeaf { node.slot(index, set).leaf.pointee = node }
            return nil
        }
        let right = takeNode(isLeaf: node.isLeaf)
        // Behind the last entry, the others stay together: slots that come in ascending order fill their leaves. But no two
        // neighbours may have few entries.
        let half = MemorySlotNode.capacity / 2
        let cut = index == MemorySlotNode.capacity && next >= half ? index : half
        node.move(from: cut, to: right, set)
        if index <= half {
            add(key, item, at: index, to: node)
        } else {
            add(key, item, at: index - cut, to: right)
        }
        return right
    }

    /// Removes a slot of the set.
    ///
    /// - Complexity: logarithmic in the number of slots.
    mutating func erase(_ slot: MemorySlot.Pointer) {
        let key = slot.pointee.baseFrame.value
        guard let old = root, let leaf = slot.leaf.pointee else {
            preconditionFailure("slot \(slot.pointee.id) is not in the set")
        }
        let index = leaf.rank(of: key, set) - 1
        if index > 0 && leaf.count(set) > Self.mergedCount {
            // Neither the first of its leaf nor enough to merge it: no other node is concerned.
            precondition(leaf.slot(index, set) == slot, "slot \(slot.pointee.id) is not in its leaf")
            remove(at: index, of: leaf)
            return
        }
        _ = erase(slot, key, below: old, isFirst: true)
        if old.count(set) == 0 {
            (root, height) = (nil, 0)
        } else {
            while let top = root, !top.isLeaf, top.count(set) == 1 {
                (root, height) = (top.child(0, set), height - 1)
                remove(at: 0, of: top)
            }
        }
    }

    /// - Parameter isFirst: whether no node of the level is left of this.
    /// - Returns: whether the node has lost an entry.
    private func erase(
        _ slot: MemorySlot.Pointer, _ key: UInt64, below node: MemorySlotNode, isFirst: Bool
    ) -> Bool {
        let index = node.rank(of: key, set) - 1
        if node.isLeaf {
            precondition(node.slot(index, set) == slot, "slot \(slot.pointee.id) is not in the set")
            remove(at: index, of: node)
            return true
        }
        let child = node.child(index, set)
        let isFirst = isFirst && index == 0
        let isSmaller = erase(slot, key, below: child, isFirst: isFirst)
        guard child.count(set) > 0 else {
            remove(at: index, of: node)
            return true
        }
        if !isFirst && node.keys(set)[index] != child.keys(set)[0] {
            change(node)
            node.keys(set)[index] = child.keys(set)[0]
        }
        guard isSmaller else { return false }
        let count = node.count(set)
        mergeIfSmall(index, of: node)
        mergeIfSmall(index - 1, of: node)
        return node.count(set) != count
    }

    /// Makes entry `index` and the next one, if there are both, one if they are small.
    private func mergeIfSmall(_ index: Int, of node: MemorySlotNode) {
        guard index >= 0, index + 1 < node.count(set) else { return }
        let (left, right) = (node.child(index, set), node.child(index + 1, set))
        let seam = left.count(set)
        guard seam + right.count(set) <= Self.mergedCount else { return }
        change(left)
        change(right)
        right.move(from: 0, to: left, set)
        remove(at: index + 1, of: node)
        // These were no neighbours before.
        if !left.isLeaf { mergeIfSmall(seam - 1, of: left) }
    }

    private func remove(at index: Int, of node: MemorySlotNode) {
        change(node)
        node.remove(at: index, set)
    }

    /// Puts `new` in the place of `old`, which starts at the same frame.
    func substitute(_ new: MemorySlot.Pointer, for old: MemorySlot.Pointer) {
        let leaf = old.leaf.pointee!
        let index = leaf.rank(of: old.pointee.baseFrame.value, set) - 1
        precondition(leaf.slot(index, set) == old, "slot \(old.pointee.id) is not in its leaf")
        change(leaf)
        leaf.items(set)[index] = UnsafeMutableRawPointer(new)
        new.leaf.pointee = leaf
    }

    private func takeNode(isLeaf: Bool) -> MemorySlotNode {
        let node = changes.allocator.takeNode()
        node.clear(isLeaf: isLeaf, set)
        change(node)
        return node
    }

    /// Whether the sets may differ.
    var hasChanges: Bool { changes.first != nil }

    /// Notes that the set's version of a node changes.
    private func change(_ node: MemorySlotNode) {
        if node.isChanged { return }
        node.isChanged = true
        node.next = changes.first
        changes.first = node
    }

    /// Makes this set what the active one is. Cannot fail.
    ///
    /// - Parameter restoring: whether this set's own changes are taken back.
    /// - Complexity: linear in the number of nodes changed since both were the same.
    mutating func follow(_ active: borrowing MemorySlotFrames, restoring: Bool) {
        (root, height) = (active.root, active.height)
        var next = changes.first
        changes.first = nil
        while let node = next {
            next = node.next
            node.isChanged = false
            if node.count(active.set) == 0 {
                changes.allocator.free(node)
            } else {
                node.copy(from: active.set, to: set)
                if restoring && node.isLeaf { node.claim(from: 0, set) }
            }
        }
        changes.allocator.trimNodes()
    }
}
