/// Checks of the order by guest frame.
extension MemorySlotFrames {
    /// What is wrong with the tree; nil if nothing. Outside a change.
    ///
    /// - Parameter other: the other set's tree, node for node the same.
    func brokenInvariant(_ other: borrowing MemorySlotFrames) -> String? {
        if root != other.root || height != other.height { return "the sets have different roots by frame" }
        if hasChanges { return "a change by frame is left" }
        guard let root else { return height == 0 ? nil : "no node by frame, but a height" }
        if !root.isLeaf && root.count(set) < 2 { return "the root by frame has one node below it" }
        return brokenInvariant(root, height: height, isFirst: true, other.set)
    }

    /// - Parameter isFirst: whether no node of the level is left of this.
    private func brokenInvariant(_ node: MemorySlotNode, height: Int, isFirst: Bool, _ other: Int) -> String? {
        let count = node.count(set)
        guard (1...MemorySlotNode.capacity).contains(count) else { return "a node by frame has \(count) entries" }
        if count != node.count(other) { return "the versions of a node by frame have different counts" }
        if node.isLeaf != (height == 1) { return "a leaf by frame is \(height - 1) levels above the others" }
        if node.isChanged { return "a node by frame is left changed" }
        for index in 0..<MemorySlotNode.capacity {
            let key = node.keys(set)[index]
            if key != node.keys(other)[index] { return "the versions of a node by frame have different keys" }
            if (key == MemorySlotNode.unusedKey) != (index >= count) { return "key \(index) of \(count) is \(key)" }
            if index == 0 || index >= count { continue }
            if key <= node.keys(set)[index - 1] { return "key \(key) by frame is out of order" }
        }
        for index in 0..<count {
            if node.items(set)[index] != node.items(other)[index] { return "the versions of a node by frame differ" }
            let isFirst = isFirst && index == 0
            if let broken = brokenInvariant(entry: index, of: node, height: height, isFirst: isFirst, other) {
                return broken
            }
        }
        return nil
    }

    private func brokenInvariant(
        entry index: Int, of node: MemorySlotNode, height: Int, isFirst: Bool, _ other: Int
    ) -> String? {
        let key = node.keys(set)[index]
        if node.isLeaf {
            let slot = node.slot(index, set)
            if slot.pointee.baseFrame.value != key { return "slot \(slot.pointee.id) has another key" }
            return slot.leaf.pointee == node ? nil : "slot \(slot.pointee.id) has a wrong leaf"
        }
        let child = node.child(index, set)
        let first = child.keys(set)[0]
        if isFirst ? key > first : key != first { return "key \(key) by frame is not that of the node below" }
        if index > 0 {
            let left = node.child(index - 1, set)
            let total = left.count(set) + child.count(set)
            if total <= MemorySlotNode.capacity / 2 { return "two neighbours by frame have \(total) entries" }
            // The child's own keys are checked against one another, those of the left neighbour against this.
            if left.keys(set)[left.count(set) - 1] >= key { return "a node by frame reaches into the next" }
        }
        return brokenInvariant(child, height: height - 1, isFirst: isFirst, other)
    }

    /// The number of nodes.
    var nodeCount: Int {
        func count(_ node: MemorySlotNode) -> Int {
            node.isLeaf ? 1 : (0..<node.count(set)).reduce(1) { $0 + count(node.child($1, set)) }
        }
        return root.map(count) ?? 0
    }
}
