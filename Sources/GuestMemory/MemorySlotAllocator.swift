import Glibc

/// Where the memory of slots comes from: it may run out, and tests make it do so.
///
/// > Concurrency: the slots lock is held.
final class MemorySlotAllocator: @unchecked Sendable {
    /// What is allocated.
    struct Counts: Equatable {
        var slots = 0
        var bitmaps = 0
        /// Those in the pool included.
        var nodes = 0
    }

    /// The number of nodes that stay in the pool.
    private static let keptNodeCount = 6

    private(set) var counts = Counts()
    /// The pool: nodes that no tree holds, so that a change, once it has begun, needs no memory.
    private var firstFreeNode: MemorySlotNode?
    private(set) var freeNodeCount = 0
    /// The slabs with room.
    private var firstSlab: MemorySlotSlab?

    /// Asked before each allocation, which fails if the answer is true. For tests.
    var isExhausted: (() -> Bool)?

    /// A slot that no set holds; nil if memory is short.
    func makeSlot(
        _ description: MemorySlotDescription, dirtyBitmap: UnsafeMutablePointer<UInt64>?
    ) -> MemorySlot.Pointer? {
        if isExhausted?() == true { return nil }
        if firstSlab == nil { MemorySlotSlab.allocate()?.link(before: &firstSlab) }
        guard let slab = firstSlab else { return nil }
        let (slot, place) = slab.takePlace()
        if slab.isFull { slab.unlink(from: &firstSlab) }
        slot.make(MemorySlot(description, dirtyBitmap: dirtyBitmap, place: place))
        counts.slots += 1
        return slot
    }

    /// Frees a slot that no set holds and no reader can reach; its bitmap is the caller's.
    func free(_ slot: MemorySlot.Pointer) {
        let (slab, place) = (MemorySlotSlab(of: slot), slot.pointee.place)
        slot.deinitialize(count: 1)
        if slab.isFull { slab.link(before: &firstSlab) }
        slab.givePlace(place)
        counts.slots -= 1
        // One stays: a change makes one slot and frees one.
        guard slab.isEmpty && !slab.isOnly else { return }
        slab.unlink(from: &firstSlab)
        slab.free()
    }

    /// A clean bitmap of one bit a page; nil if memory is short.
    func makeBitmap(pageCount: UInt64) -> UnsafeMutablePointer<UInt64>? {
        let count = MemorySlot.bitmapWordCount(pageCount: pageCount)
        guard isExhausted?() != true, let memory = calloc(count, MemoryLayout<UInt64>.size) else { return nil }
        counts.bitmaps += 1
        return memory.bindMemory(to: UInt64.self, capacity: count)
    }

    func free(_ bitmap: UnsafeMutablePointer<UInt64>?) {
        guard let bitmap else { return }
        counts.bitmaps -= 1
        Glibc.free(bitmap)
    }

    // MARK: Nodes

    /// Fills the pool up to `count` nodes; false if memory is short.
    func reserveNodes(_ count: Int) -> Bool {
        while freeNodeCount < count {
            guard isExhausted?() != true, let node = MemorySlotNode.allocate() else { return false }
            counts.nodes += 1
            free(node)
        }
        return true
    }

    /// A node of the pool, which is not empty.
    func takeNode() -> MemorySlotNode {
        guard let node = firstFreeNode else { preconditionFailure("no node was reserved") }
        firstFreeNode = node.next
        freeNodeCount -= 1
        return node
    }

    /// Gives a node that no tree holds and no reader can reach to the pool.
    func free(_ node: MemorySlotNode) {
        node.next = firstFreeNode
        firstFreeNode = node
        freeNodeCount += 1
    }

    /// Gives memory back, but for a few nodes.
    func trimNodes() { trimNodes(to: Self.keptNodeCount) }

    private func trimNodes(to count: Int) {
        while freeNodeCount > count {
            takeNode().free()
            counts.nodes -= 1
        }
    }

    deinit {
        trimNodes(to: 0)
        // All slots are gone, and so are the slabs but one.
        firstSlab?.free()
    }

    // MARK: Ids

    /// Makes room for an id; false if memory is short.
    func reserve(_ id: UInt16, in ids: MemorySlotIDs) -> Bool {
        ids.isReserved(id) || isExhausted?() != true && ids.reserve(id)
    }
}

extension GuestMemory {
    /// Lets a test fail allocations: `isExhausted` is asked before each.
    package func failAllocations(_ isExhausted: (() -> Bool)?) {
        slotsLock.withLock { allocator.isExhausted = isExhausted }
    }
}
