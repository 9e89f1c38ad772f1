import Addressing
import GuestMemory
import Host
import RCU
import Synchronization

/// Shadow page tables of one machine: for a guest's linear address the host address, or the device, in one walk without
/// locks.
///
/// Walkers (vCPUs, see ``ShadowWalker``) read; everything that changes entries holds `lock`. A walker that finds nothing
/// has the guest's tables walked, and what that found installed here.
///
/// Invariants:
///
/// 1. *Memory.* A walker is inside a read section of `domain` from the load of its root to the use of what it found. A page
///    is unlinked, and its memory freed after a grace period. Walkers keep roots across sections, but only under one value
///    of `rootGeneration`, which is advanced before a root is freed: who still reads the old value is in a section that
///    began before.
/// 2. *Nothing older than the last flush.* `epoch` counts comparisons. A page is compared by advancing `epoch` to e (full
///    fence), reading the guest's table, dropping what differs, and only then setting the page's `synced` to e (release).
///    A vCPU's flush is a full fence and a load of `epoch`, R; its walks take entries only from pages with `synced` > R,
///    which they read before the entry (acquire). Either the flush sees e, so R ≥ e, or the comparison sees every store
///    to the guest's tables that came before the flush.
/// 3. *Nothing younger that is wrong.* An entry is made with the lock held from what the guest's table then holds. So it is
///    not older than the `synced` of its page. INVLPG raises no requirement for leaves but compares its own, on the way that
///    then leads to it. So when a page that was there gets another parent, its `linked` is set to a new epoch first, and
///    walks take leaves only from pages with `synced` above each `linked` on their way.
/// 4. *Caught stores.* `synced` is ``ShadowPage/always`` for direct pages, and for tables whose frame is tracked: all vCPUs
///    have dropped their write entries since the frame was marked, each store is followed by a look at the entries it
///    changed before the storing instruction ends, and before a frame may be written freely again its pages are gone.
/// 5. *Writes.* Whoever forbids writes to a frame, or to a page of the host's and so to each frame at which a slot of any
///    address space shows it, first says so where `install` looks (the slot's log, translated code,
///    `tracked`), then takes the write permissions from the frame's entries, then has the vCPUs drop theirs. `install`
///    looks, and grants, under the lock.
/// 6. *Devices.* A device entry holds for one generation of the memory slots. It stores 13 bits of it; `deviceEra` is the
///    rest. Walkers read `deviceEra` before the entry, and it is advanced after all older device entries are dropped.
///
/// Only upper-level tables are ever tracked, and only after they were compared several times without a change: the tables
/// of short-lived address spaces are not worth the interruption of all vCPUs.
///
/// Frames are told apart by number, not by address space: a store to a tracked frame is caught in either. Stores to tracked
/// tables by others than vCPUs (a client's, a device model's), or through another frame that shows the same memory, go
/// unseen, as under KVM.
///
/// Lock order: read section of the memory, slots lock → `lock` → lock of the translated code. Nobody waits for vCPUs or
/// grace periods while holding `lock`.
/// > Source: Intel SDM volume 3, section 4.10; Linux, Documentation/virt/kvm/x86/mmu.rst (behaviour).
public final class ShadowMMU: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: what is mutable is guarded by `lock` or atomic, as the members say.

    let memory: GuestMemory
    let domain: RCUDomain
    /// Whether stores to a page of the host's, named by its number, must be caught because of translated code.
    let isGuarded: @Sendable (UInt64) -> Bool
    let published = ShadowPublished()
    let garbage = ShadowGarbage()
    /// How often a table is compared without a change before its stores are caught.
    let trackingThreshold: Int

    let lock = FutexLock()

    // Under the lock.

    /// The greatest number of pages.
    var pageLimit: Int

    var tables = ShadowTables()
    /// Frames of tables whose stores are caught.
    var tracked: [UInt64: TrackedFrame] = [:]
    var trackingSerial: UInt64 = 0
    /// 2 MiB and 1 GiB regions with frames that were tracked once: they are mapped by small pages.
    var mixedRegions: [Set<UInt64>] = [[], []]
    /// The same for host memory, since a slot that comes later may show it at other frames: in 2 MiB and 1 GiB regions, the
    /// first and the last page that was guarded once.
    var mixedHostRegions: [[UInt64: ClosedRange<UInt64>]] = [[:], [:]]
    /// Unlinked, to be handed to `domain` when the lock is given up.
    var retired: ShadowPage.Pointer?
    /// Frames that were compared often enough, for the walker that holds the lock.
    var candidates: [UInt64] = []
    var counters = ShadowCounters()
    var slotCache = MemorySlotCache()

    /// The number of tracked frames, so that stores need no lock while there are none.
    private let trackedCount = Atomic<Int>(0)

    /// - Parameters:
    ///   - domain: in whose read sections walkers are.
    ///   - pageLimit: the greatest number of pages, at least 16; see ``pageLimit(frameCount:)``.
    ///   - trackingThreshold: how often an upper-level table is compared without a change before its stores are caught.
    ///   - isGuarded: whether stores to a page of the host's, named by its number, must be caught because code was
    ///     translated from it. Called with the lock held.
    public init(
        memory: GuestMemory, domain: RCUDomain, pageLimit: Int = 64, trackingThreshold: Int = 16,
        isGuarded: @escaping @Sendable (UInt64) -> Bool
    ) {
        precondition(pageLimit >= 16 && trackingThreshold > 0)
        self.memory = memory
        self.domain = domain
        self.pageLimit = pageLimit
        self.trackingThreshold = trackingThreshold
        self.isGuarded = isGuarded
    }

    deinit {
        // No walker is left: they hold references.
        tables.forEachPage { $0.free() }
    }

    /// The page limit for a machine with so many frames: less than 2 % of their memory.
    public static func pageLimit(frameCount: UInt64) -> Int { max(64, Int(frameCount / 128)) }

    /// The machine's memory has another size.
    /// > Concurrency: any thread.
    public func setPageLimit(frameCount: UInt64) {
        lock.withLock { pageLimit = Self.pageLimit(frameCount: frameCount) }
    }

    /// Runs `body` with the lock held, and hands over what it unlinked.
    func withLock<Result>(_ body: () -> Result) -> Result {
        lock.lock()
        let result = body()
        let pages = retired
        retired = nil
        lock.unlock()
        if let pages { garbage.retire(pages, domain) }
        return result
    }

    /// The number under which a comparison of a page begins.
    func nextEpoch() -> UInt64 {
        // ORDERING: the full fence of invariant 2, before the guest's table is read.
        published.epoch.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
    }

    func publishTrackedCount() {
        // ORDERING: release; the vCPUs' acknowledgement of the request that follows makes it visible (invariant 5).
        trackedCount.store(tracked.count, ordering: .releasing)
    }

    /// Whether any stores are caught.
    public var tracksFrames: Bool { trackedCount.load(ordering: .relaxed) != 0 }

    /// Whether stores to a frame must be caught because a table lies there.
    ///
    /// > Concurrency: a vCPU, which fills no write entry after it acknowledged a request that this look preceded.
    public func isTracked(_ frame: UInt64) -> Bool {
        // ORDERING: acquire pairs with the release in `publishTrackedCount`.
        if trackedCount.load(ordering: .acquiring) == 0 { return false }
        return lock.withLock { tracked[frame] != nil }
    }
}

/// A frame of tables whose stores are caught, or will be.
struct TrackedFrame {
    /// Tells one tracking of the frame from a later one.
    let serial: UInt64
    /// All vCPUs have dropped their write entries since.
    var isComplete = false

    /// After so many stores since the frame was last used as a table it is not taken for one any more.
    static var storeLimit: Int { 32 }
}

/// What walkers read besides pages, on two cache lines: what hardly ever changes, and what comparisons change.
struct ShadowPublished: ~Copyable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the memory holds atomics only.

    private let memory = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)

    init() {
        memory.initializeMemory(as: UInt64.self, repeating: 0, count: 16)
        epoch.pointee.store(1, ordering: .relaxed)
    }

    deinit { memory.deallocate() }

    private func word(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        // SAFETY: `Atomic<UInt64>` has the size and alignment of `UInt64`; the words are accessed as atomics only.
        (memory + index * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// Advanced before a page that walkers may start from is freed.
    var rootGeneration: UnsafeMutablePointer<Atomic<UInt64>> { word(0) }
    /// The upper bits of the memory slots' generation under which device entries hold.
    var deviceEra: UnsafeMutablePointer<Atomic<UInt64>> { word(1) }
    /// The number of comparisons.
    var epoch: UnsafeMutablePointer<Atomic<UInt64>> { word(8) }
    /// The number of threads that may be making entries from what they read of guest tables.
    var installers: UnsafeMutablePointer<Atomic<UInt64>> { word(9) }
}

/// Pages that were unlinked and wait for a grace period.
final class ShadowGarbage: Sendable {
    private let pageCount = Atomic<Int>(0)

    /// How many there are.
    var count: Int { pageCount.load(ordering: .relaxed) }

    private final class Batch: @unchecked Sendable {
        // SAFETY: `@unchecked Sendable`: handed from one thread to the one that frees it.
        let first: ShadowPage.Pointer
        let count: Int
        let garbage: ShadowGarbage

        init(_ first: ShadowPage.Pointer, _ count: Int, _ garbage: ShadowGarbage) {
            self.first = first
            self.count = count
            self.garbage = garbage
        }
    }

    /// Frees a chain of pages after a grace period. > Concurrency: any thread; does not wait.
    func retire(_ first: ShadowPage.Pointer, _ domain: RCUDomain) {
        var count = 0
        var page: ShadowPage.Pointer? = first
        while let current = page {
            count += 1
            page = current.pointee.newer
        }
        pageCount.wrappingAdd(count, ordering: .relaxed)
        let batch = Batch(first, count, self)
        domain.call {
            var page: ShadowPage.Pointer? = batch.first
            while let current = page {
                page = current.pointee.newer
                current.free()
            }
            batch.garbage.pageCount.wrappingSubtract(batch.count, ordering: .relaxed)
        }
    }
}
