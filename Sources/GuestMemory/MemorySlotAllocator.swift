import Glibc

/// Where the memory of slots comes from: it may run out, and tests make it do so.
///
/// > Concurrency: the slots lock is held.
final class MemorySlotAllocator: @unchecked Sendable {
    /// What is allocated.
    struct Counts: Equatable {
        var slots = 0
        var bitmaps = 0
    }

    private(set) var counts = Counts()
    /// Asked before each allocation, which fails if the answer is true. For tests.
    var isExhausted: (() -> Bool)?

    /// A slot that no set holds; nil if memory is short.
    func makeSlot(
        _ description: MemorySlotDescription, dirtyBitmap: UnsafeMutablePointer<UInt64>?
    ) -> MemorySlot.Pointer? {
        guard isExhausted?() != true,
            let slot = MemorySlot.Pointer.make(MemorySlot(description, dirtyBitmap: dirtyBitmap))
        else { return nil }
        counts.slots += 1
        return slot
    }

    func free(_ slot: MemorySlot.Pointer) {
        counts.slots -= 1
        slot.free()
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
