import Host
import Synchronization
import SystemPackage

/// The pages that one vCPU wrote, in a ring that the client reads without a request. The C structure is `kvm_dirty_gfn[]`.
///
/// The vCPU adds entries, the client harvests them, and `KVM_RESET_DIRTY_RINGS` takes back what was harvested; from then on
/// the next write of such a page is reported again. An entry's first word says whose it is:
///
///     0 the vCPU's  →  1 the client's, to harvest  →  2 the reset's  →  0
///
/// Invariants:
/// 1. `dirtyIndex` is written by the vCPU only, `resetIndex` by resets only, under the slots lock. Both count up and wrap;
///    the place of an index is its remainder.
/// 2. Slot and offset of an entry are complete before its word becomes 1 (release), and read only after that was seen.
/// 3. An entry is added only when a bit of a slot's bitmap changes from 0 to 1, so a page has one entry at a time.
/// 4. The client may write anything into the ring. The core believes only the word's harvest bit, and checks slot and
///    offset before it uses them.
/// > Source: Documentation/virt/kvm/api.rst, section 8.29.
public final class DirtyRing: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: atomics, and the division of invariants 1 and 2.

    /// One entry.
    public struct Entry {
        public var flags: UInt32
        /// Bits 15–0 the slot's id, bits 31–16 the address space.
        public var slot: UInt32
        /// The page's number in the slot.
        public var offset: UInt64
    }

    /// The client's mapping.
    public let bytes: UnsafeMutableRawBufferPointer
    private let memory: MemoryMapping
    private let entryCount: Int
    private let dirtyIndex = Atomic<UInt32>(0)
    private let resetIndex = Atomic<UInt32>(0)

    /// Entries that are kept back: what an instruction may still add after the vCPU was asked to leave.
    public static var reservedCount: Int { 64 }
    /// The largest ring.
    public static var maximumCount: Int { 65536 }

    /// - Parameter byteCount: of the whole ring: a power of two of entries of 16 bytes.
    /// - Throws: `Errno.noMemory`.
    public init(byteCount: Int) throws(Errno) {
        let stride = MemoryLayout<Entry>.stride
        precondition(byteCount & (byteCount - 1) == 0 && byteCount > Self.reservedCount * stride)
        memory = try MemoryMapping.sharedAnonymous(byteCount: byteCount)
        bytes = UnsafeMutableRawBufferPointer(start: memory.baseAddress, count: byteCount)
        entryCount = byteCount / stride
    }

    private func entry(_ index: UInt32) -> UnsafeMutablePointer<Entry> {
        // SAFETY: the remainder is below the number of entries.
        (bytes.baseAddress! + Int(index) % entryCount * MemoryLayout<Entry>.stride).assumingMemoryBound(to: Entry.self)
    }

    private func flags(_ index: UInt32) -> UnsafeMutablePointer<Atomic<UInt32>> {
        // SAFETY: `flags` is an entry's first word, and is accessed as an atomic only.
        UnsafeMutableRawPointer(entry(index)).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Entries between the two indices.
    public var usedCount: Int {
        Int(dirtyIndex.load(ordering: .relaxed) &- resetIndex.load(ordering: .acquiring))
    }

    /// Whether the client has to harvest before the vCPU goes on.
    public var isFull: Bool { usedCount >= entryCount - Self.reservedCount }

    // MARK: The vCPU

    /// Reports a page. A ring without room loses it; the vCPU stops long before (``isFull``).
    /// > Concurrency: the vCPU's thread.
    func push(slot: UInt32, offset: UInt64) {
        guard usedCount < entryCount else { return }
        let index = dirtyIndex.load(ordering: .relaxed)
        let entry = entry(index)
        entry.pointee.slot = slot
        entry.pointee.offset = offset
        // ORDERING: release for invariant 2.
        flags(index).pointee.store(1, ordering: .releasing)
        dirtyIndex.store(index &+ 1, ordering: .releasing)
    }

    // MARK: Reset

    /// Takes back the harvested entries at the ring's start.
    ///
    /// - Parameter body: called with slot and offset of each, as they are in the ring.
    /// - Returns: how many there were.
    /// > Concurrency: the slots lock is held.
    func reset(_ body: (UInt32, UInt64) -> Void) -> Int {
        var count = 0
        // The client could harvest for ever: once around is enough.
        while count < entryCount {
            let index = resetIndex.load(ordering: .relaxed)
            // ORDERING: acquire pairs with the client's release.
            guard index != dirtyIndex.load(ordering: .acquiring),
                flags(index).pointee.load(ordering: .acquiring) & 2 != 0
            else { break }
            let entry = entry(index).pointee
            flags(index).pointee.store(0, ordering: .relaxed)
            // ORDERING: release pairs with the acquire in `usedCount`: the vCPU writes the entry after this.
            resetIndex.store(index &+ 1, ordering: .releasing)
            body(entry.slot, entry.offset)
            count += 1
        }
        return count
    }
}

extension GuestMemory {
    /// Takes back what clients have harvested of `rings`. The C request is `KVM_RESET_DIRTY_RINGS`.
    ///
    /// - Parameter flush: called if there was anything; must return only when no vCPU can write to a page of these slots
    ///   without marking it again.
    /// - Returns: the number of entries taken back.
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func resetDirtyRings(_ rings: [DirtyRing], flush: () -> Void) -> Int {
        slotsLock.withLock {
            var count = 0
            for ring in rings {
                count += ring.reset { slot, offset in
                    guard let (description, bitmap) = try? loggedSlot(slot), offset < description.pageCount else {
                        return
                    }
                    // ORDERING: as in `clearDirtyLog`.
                    MemorySlot.atomic(bitmap + Int(offset / 64)).pointee
                        .bitwiseAnd(~(1 << (offset % 64)), ordering: .acquiring)
                }
            }
            if count > 0 { flush() }
            return count
        }
    }
}
