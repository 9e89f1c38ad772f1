import AddressSpace
import Host
import SystemPackage

/// Keeps the memory slots of an accelerator as the flat view of an address space is: each range of memory is one slot, or
/// more if it is very large. Accesses to what no slot maps leave the accelerator and are performed by the address space.
///
/// Changes are collected, and made at the commit, deletions before additions. What a running guest sees of them:
///
/// - Where the accelerator takes a batch, the commit is one request, and nobody is stopped.
/// - Else, if what goes overlaps what comes, or a slot goes whose written pages are recorded, all requests are inhibited
///   meanwhile, so that no vCPU runs while memory is missing, or writes between the reading of a slot's dirty pages and its
///   deletion. Other changes need no such care: an address that has memory before and after keeps its slot.
///
/// No written page is lost: what the accelerator has recorded of a slot is entered into the region's record when the slot
/// goes.
///
/// A commit that throws has gone back: a batch has then changed nothing, and without one each change made so far has been
/// taken back, with the vCPUs still outside if they were. Should the accelerator refuse even that, an old slot that cannot be
/// made again is missing, so that accesses to it go to the address space, which performs them; and a new one that cannot be
/// deleted stays, with its region kept alive. Each later commit begins with putting this right, and throws if it cannot.
///
/// Lock order: machine lock, inhibition of requests, slots lock.
///
/// > Concurrency: a listener's methods with the machine lock held; `synchronizeDirtyPages` by any thread.
package final class SlotListener: MemoryListener, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `slots` is guarded by the slots lock, the other variables by the machine lock.

    let target: any MemorySlotTarget
    let blocker: AccelBlocker
    let slotLimit: Int
    private let batchLimit: Int

    private let slotsLock = FutexLock()
    /// The slots of each range of memory, by the range's first address: those that the accelerator has once `repairs` are made.
    var slots: [UInt64: [MappedSlot]] = [:]
    /// What could not be taken back.
    var repairs: [SlotEdit] = []

    /// What this change does, lowest address first.
    private(set) var deleted: [FlatRange] = []
    private(set) var added: [FlatRange] = []
    private(set) var relogged: [FlatRange] = []

    package init(_ target: any MemorySlotTarget, blocker: AccelBlocker) {
        self.target = target
        self.blocker = blocker
        batchLimit = target.memoryRegionBatchLimit
        slotLimit = target.memorySlotLimit
    }

    // MARK: Collecting

    package func begin() {}

    package func delete(_ range: FlatRange) { if range.host != nil { deleted.append(range) } }

    package func add(_ range: FlatRange) { if range.host != nil { added.append(range) } }

    package func keep(_ range: FlatRange, changesDirtyLogging: Bool) {
        if changesDirtyLogging { relogged.append(range) }
    }

    // MARK: Applying

    package func commit() throws(Errno) {
        defer { (deleted, added, relogged) = ([], [], []) }
        try repair()
        let change = try slotsLock.withLock { () throws(Errno) in try makeChange() }
        if change.edits.isEmpty || change.edits.count <= batchLimit {
            try slotsLock.withLock { () throws(Errno) in try applyAtOnce(change) }
            return
        }
        let inhibits = change.removesLoggedSlots || Self.overlap(deleted, added)
        if inhibits { blocker.inhibit() }
        defer { if inhibits { blocker.permit() } }
        try slotsLock.withLock { () throws(Errno) in try applyInOrder(change) }
    }

    /// Makes what an earlier commit could not take back.
    private func repair() throws(Errno) {
        guard !repairs.isEmpty else { return }
        blocker.inhibit()
        defer { blocker.permit() }
        try slotsLock.withLock { () throws(Errno) in
            while let edit = repairs.first {
                try make(edit)
                repairs.removeFirst()
            }
        }
    }

    /// Whether a range of one list overlaps one of the other; both are in order.
    static func overlap(_ first: [FlatRange], _ second: [FlatRange]) -> Bool {
        var (i, j) = (0, 0)
        while i < first.count && j < second.count {
            let (a, b) = (first[i].addresses, second[j].addresses)
            if a.overlaps(b) { return true }
            if a.last < b.last { i += 1 } else { j += 1 }
        }
        return false
    }

    // MARK: Written pages

    /// Enters what the accelerator has recorded so far into the records of the regions.
    ///
    /// - Throws: what the accelerator throws, as it does while a slot is missing; pages of slots that were read are in the
    ///   records.
    /// > Concurrency: any thread that is inside no request.
    package func synchronizeDirtyPages() throws(Errno) {
        try blocker.withMachineRequest { () throws(Errno) in
            try slotsLock.withLock { () throws(Errno) in
                for slot in slots.values.joined() where slot.range.logsDirtyPages { try fetchDirtyPages(of: slot) }
            }
        }
    }

    /// > Concurrency: the slots lock is held.
    func fetchDirtyPages(of slot: MappedSlot) throws(Errno) {
        slot.record(try target.dirtyLog(slot: slot.number, pageCount: slot.pageCount))
    }
}
