import Addressing
import Host
import RCU
import Synchronization

/// A virtual machine's memory slots: which guest frames are backed by which host memory.
///
/// Each address space has two sets of slots that share the slots themselves. Readers use the active set, without locks;
/// writers change the inactive one, make it active by one store, wait for the readers of the other and repeat the change
/// there. Nothing reachable from the active set is ever modified, so a reader sees the slots before or after a change.
///
/// A slot that goes away, or elsewhere, is first replaced by an INVALID copy. Readers then find no slot, so no new
/// translation of its frames arises; the writer has all cached ones dropped and only then commits.
///
/// Does not own or touch the host memory of slots: it belongs to the client.
///
/// Lock order: the slots lock is taken outside every read section, and held while waiting for readers.
public final class GuestMemory: @unchecked Sendable {
    /// The number of slots a client may have in an address space; their ids are below it.
    public static let userSlotCount = 32764
    /// The greatest number of pages in a slot.
    public static let maximumPageCount: UInt64 = 1 << 31 - 1
    /// The number of frames that 52 bits of guest physical address give.
    public static let frameCount: UInt64 = 1 << 40

    /// Readers may block: on the fault of a host page, or on a lock.
    public let domain = SRCUDomain()
    public let addressSpaceCount: Int
    let spaces: UnsafeMutablePointer<AddressSpaceSlots>
    let slotsLock = FutexLock()
    /// Under the slots lock.
    let allocator = MemorySlotAllocator()
    /// Whether the pages of a slot count as written when logging begins (`KVM_DIRTY_LOG_INITIALLY_SET`): what there is to
    /// clear is then cleared piece by piece, and nothing has to be protected at once.
    public let logsStartSet = Atomic<Bool>(false)
    /// The pages of all slots. Under the slots lock.
    var totalPageCount: UInt64 = 0

    /// - Parameter initialGeneration: where the generation counters start; tests start near the wrap-around.
    public init(addressSpaceCount: Int = 2, initialGeneration: UInt64 = 0) {
        precondition((1...255).contains(addressSpaceCount))
        self.addressSpaceCount = addressSpaceCount
        spaces = .allocate(capacity: addressSpaceCount)
        for number in 0..<addressSpaceCount {
            let generation = initialGeneration &+ UInt64(number)
            (spaces + number).initialize(to: AddressSpaceSlots(generation: generation, allocator: allocator))
        }
    }

    deinit {
        // No reader is left: they hold references.
        for number in 0..<addressSpaceCount {
            spaces[number].active.load()!.pointee.forEach { slot in
                allocator.free(slot.pointee.dirtyBitmap)
                allocator.free(slot)
            }
        }
        spaces.deinitialize(count: addressSpaceCount)
        spaces.deallocate()
    }

    // MARK: Readers

    /// Runs `body`, in which slots may be looked up and used.
    @inlinable @inline(__always)
    @available(*, noasync)
    public func withReadSection<Result: ~Copyable, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try domain.withReadSection { (_) throws(Failure) in try body() }
    }

    /// The slot that backs `frame`, or nil: then an access is a device's.
    ///
    /// - Complexity: O(1) for the slot used last, else logarithmic in the number of slots.
    /// > Concurrency: inside a read section of the domain; the slot is valid until its end.
    @inline(__always)
    public func lookup(_ frame: GuestFrameNumber, addressSpace: Int) -> UnsafePointer<MemorySlot>? {
        assert(addressSpace < addressSpaceCount)
        // The sets exist as long as the memory.
        let slot = spaces[addressSpace].active.load().unsafelyUnwrapped.pointee.find(frame)
        guard let slot, !slot.pointee.flags.contains(.invalid) else { return nil }
        return UnsafePointer(slot)
    }

    /// As `lookup` without `cache`, which is tried first: one for each vCPU keeps them from competing for the set's.
    @inline(__always)
    public func lookup(
        _ frame: GuestFrameNumber, addressSpace: Int, cache: inout MemorySlotCache
    ) -> UnsafePointer<MemorySlot>? {
        let generation = generation(addressSpace: addressSpace)
        // A slot cached under the current generation stays reachable until the end of this section: a change would have
        // set the update bit before it began to wait for readers.
        if let slot = cache.slot, cache.generation == generation, cache.addressSpace == addressSpace,
            slot.pointee.contains(frame)
        {
            return slot
        }
        let slot = lookup(frame, addressSpace: addressSpace)
        if let slot, !generation.isUpdateInProgress {
            cache = MemorySlotCache(slot: slot, generation: generation, addressSpace: addressSpace)
        }
        return slot
    }

    /// The slot with an id, or nil.
    ///
    /// > Concurrency: as for `lookup` by frame.
    public func lookup(id: UInt16, addressSpace: Int) -> UnsafePointer<MemorySlot>? {
        guard Int(id) < Self.userSlotCount else { return nil }
        let slot = spaces[addressSpace].active.load().unsafelyUnwrapped.pointee.find(id: id)
        guard let slot, !slot.pointee.flags.contains(.invalid) else { return nil }
        return UnsafePointer(slot)
    }

    /// Calls `body` with each slot whose host memory shares a byte with `range`, in the order of host addresses. INVALID
    /// slots are among them, as their translations may still be cached.
    ///
    /// - Complexity: logarithmic in the number of slots for each slot found, and for them together no more than linear;
    ///   logarithmic and linear in those found if host ranges do not overlap.
    /// > Concurrency: inside a read section of the domain; the slots are valid until its end.
    public func forEachSlot(
        overlapping range: Range<UInt>, addressSpace: Int, _ body: (UnsafePointer<MemorySlot>) -> Void
    ) {
        spaces[addressSpace].active.load().unsafelyUnwrapped.pointee
            .forEach(overlapping: range) { body(UnsafePointer($0)) }
    }

    /// The current generation of an address space.
    ///
    /// To cache what a look-up found, read the generation first and cache nothing while an update is in progress; what was
    /// cached holds while the generation is the same.
    @inline(__always)
    public func generation(addressSpace: Int = 0) -> MemorySlotGeneration {
        // ORDERING: acquire pairs with the releases in `AddressSpaceSlots.swap`: who sees a generation sees its slots.
        MemorySlotGeneration(rawValue: spaces[addressSpace].generation.load(ordering: .acquiring))
    }

    // MARK: Inspection

    /// Calls `body` with each slot of an address space, in the order of guest frames.
    ///
    /// > Concurrency: takes the slots lock; not inside a read section. `body` changes no slots.
    public func forEachSlot(addressSpace: Int = 0, _ body: (MemorySlotDescription) -> Void) {
        slotsLock.withLock {
            spaces[addressSpace].active.load()!.pointee.forEach { body($0.pointee.description) }
        }
    }

    /// The slot that a client named (bits 15–0 id, bits 31–16 address space).
    ///
    /// > Concurrency: takes the slots lock; not inside a read section.
    public func slot(_ slot: UInt32) -> MemorySlotDescription? {
        let addressSpace = Int(slot >> 16)
        let id = UInt16(truncatingIfNeeded: slot)
        guard addressSpace < addressSpaceCount, Int(id) < Self.userSlotCount else { return nil }
        return slotsLock.withLock { spaces[addressSpace].active.load()!.pointee.find(id: id)?.pointee.description }
    }
}

/// The slot a vCPU used last.
public struct MemorySlotCache {
    let slot: UnsafePointer<MemorySlot>?
    let generation: MemorySlotGeneration
    let addressSpace: Int

    /// A cache that holds nothing.
    public init() { self.init(slot: nil, generation: MemorySlotGeneration(rawValue: 0), addressSpace: 0) }

    init(slot: UnsafePointer<MemorySlot>?, generation: MemorySlotGeneration, addressSpace: Int) {
        self.slot = slot
        self.generation = generation
        self.addressSpace = addressSpace
    }
}

/// The two sets of one address space.
struct AddressSpaceSlots: ~Copyable {
    /// The set that readers use.
    let active: RCUPointer<MemorySlotSet>
    let generation: Atomic<UInt64>
    /// Both sets' slots by id.
    let ids: MemorySlotIDs
    private let sets: UnsafeMutablePointer<MemorySlotSet>

    init(generation: UInt64, allocator: MemorySlotAllocator) {
        sets = .allocate(capacity: 2)
        ids = MemorySlotIDs()
        let changes = MemorySlotFrames.Changes(allocator)
        for index in 0..<2 { (sets + index).initialize(to: MemorySlotSet(index: index, ids: ids, changes: changes)) }
        active = RCUPointer(sets)
        self.generation = Atomic(generation & ~MemorySlotGeneration.updateInProgressBit)
    }

    deinit {
        sets.pointee.frames.deallocate()
        sets.deinitialize(count: 2)
        sets.deallocate()
        ids.deallocate()
    }

    /// The set that writers change. Under the slots lock.
    var inactive: UnsafeMutablePointer<MemorySlotSet> { active.load() == sets ? sets + 1 : sets }

    /// Makes the inactive set active and waits until no reader uses the other.
    ///
    /// - Parameter stride: what the generation advances by.
    func swap(domain: SRCUDomain, stride: UInt64) {
        let old = generation.load(ordering: .relaxed)
        // ORDERING: release, before the set is published: who sees the new set sees that an update is in progress.
        generation.store(old | MemorySlotGeneration.updateInProgressBit, ordering: .releasing)
        active.publish(inactive)
        domain.synchronize()
        // ORDERING: release pairs with the acquire in `GuestMemory.generation`.
        generation.store((old &+ stride) & ~MemorySlotGeneration.updateInProgressBit, ordering: .releasing)
    }
}
