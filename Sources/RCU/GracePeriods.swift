import CHost
import Host
import Synchronization

/// What a domain knows of one reader; on a cache line of its own.
///
/// Records are recycled, and freed only with the domain, so that a scan needs no lock.
@usableFromInline
struct ReaderRecord: ~Copyable {
    /// 0 off-line, else the grace-period counter the reader saw last. Written by the reader, read by writers.
    @usableFromInline let state = Atomic<UInt64>(0)
    /// The record registered before this one. Never changes.
    let next: UnsafeMutablePointer<ReaderRecord>?
    /// Whether a reader owns the record. Under the registry lock, as the two below.
    var isOwned = true
    var nudge: RCUReader.Nudge?
    var context: UnsafeMutableRawPointer?
    /// How many read sections are open; debug builds only. The reader's own.
    private let depth = Atomic<Int>(0)

    init(next: UnsafeMutablePointer<ReaderRecord>?) { self.next = next }

    /// Whether a read section is open.
    var isInSection: Bool { depth.load(ordering: .relaxed) != 0 }

    /// Opens (1) or closes (-1) a read section. Returns true, to be called from an assertion.
    @usableFromInline func changeDepth(_ change: Int) -> Bool {
        // ORDERING: relaxed; atomic only so that no access is to the record as a whole, which writers share.
        depth.store(depth.load(ordering: .relaxed) + change, ordering: .relaxed)
        return true
    }
}

/// The grace-period counter, the registry of readers and the wait for them.
///
/// Lock order: grace-period lock, registry lock.
final class GracePeriods: @unchecked Sendable {
    /// The number of the grace period begun last; starts at 1, since 0 means off-line to readers.
    let counter = Atomic<UInt64>(1)
    /// The number of the grace period ended last. Under the grace-period lock.
    private var completed: UInt64 = 1
    /// 1 while a writer sleeps, or is about to, until a reader reports.
    private let sleeping = FutexWord(0)
    private let gracePeriodLock = FutexLock()
    private let registryLock = FutexLock()
    /// The newest record; the list only grows.
    private let records = Atomic<UnsafeMutablePointer<ReaderRecord>?>(nil)

    private static let spins = 200

    deinit {
        var record = records.load(ordering: .relaxed)
        while let current = record {
            record = current.pointee.next
            current.deinitialize(count: 1)
            current.deallocate()
        }
    }

    // MARK: Registry

    func register(nudge: RCUReader.Nudge?, context: UnsafeMutableRawPointer?) -> UnsafeMutablePointer<ReaderRecord> {
        registryLock.withLock {
            let record = unownedRecord() ?? addRecord()
            record.pointee.isOwned = true
            record.pointee.nudge = nudge
            record.pointee.context = context
            return record
        }
    }

    func unregister(_ record: UnsafeMutablePointer<ReaderRecord>) {
        if record.pointee.state.load(ordering: .relaxed) != 0 { report(record, 0) }
        registryLock.withLock {
            record.pointee.nudge = nil
            record.pointee.context = nil
            record.pointee.isOwned = false
        }
    }

    private func unownedRecord() -> UnsafeMutablePointer<ReaderRecord>? {
        var record = records.load(ordering: .relaxed)
        while let current = record {
            if !current.pointee.isOwned { return current }
            record = current.pointee.next
        }
        return nil
    }

    private func addRecord() -> UnsafeMutablePointer<ReaderRecord> {
        let size = (MemoryLayout<ReaderRecord>.size + 63) & ~63
        let record = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
            .bindMemory(to: ReaderRecord.self, capacity: 1)
        record.initialize(to: ReaderRecord(next: records.load(ordering: .relaxed)))
        // ORDERING: release pairs with the acquire in `advance`. A writer that misses the record also misses the
        // reader's coming on-line, which invariant 3 allows.
        records.store(record, ordering: .releasing)
        return record
    }

    // MARK: Readers

    /// Writes a reader's state and wakes a writer that waits for it.
    @inline(never)
    func report(_ record: UnsafeMutablePointer<ReaderRecord>, _ value: UInt64) {
        // ORDERING: release pairs with the acquire in `hasPassed` (invariant 2); full fence before the load of
        // `sleeping` (invariant 4).
        _ = record.pointee.state.exchange(value, ordering: .sequentiallyConsistent)
        if sleeping.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 {
            sleeping.atomic.pointee.store(0, ordering: .sequentiallyConsistent)
            sleeping.wake()
        }
    }

    // MARK: Writers

    func synchronize() {
        // Any grace period that begins after this point will do, whoever runs it.
        // ORDERING: an adding of nothing instead of a load: the caller's unlinking is released into the counter, from
        // where the increment in `advance` acquires it and passes it on to readers (invariant 1).
        let target = counter.wrappingAdd(0, ordering: .sequentiallyConsistent).oldValue + 1
        gracePeriodLock.withLock {
            if completed < target { advance() }
        }
    }

    /// Runs one grace period. The grace-period lock is held.
    private func advance() {
        // ORDERING: release pairs with the acquires of the readers; full fence before the first look at a state
        // (invariants 1 and 3).
        let number = counter.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
        // ORDERING: acquire pairs with the release in `addRecord`.
        var record = records.load(ordering: .acquiring)
        var hasNudged = false
        while let current = record {
            if !hasPassed(current, number) {
                if !hasNudged { nudge(from: current, number) }
                hasNudged = true
                waitUntilPassed(current, number)
            }
            record = current.pointee.next
        }
        completed = number
    }

    /// Whether the reader is off-line or has reported since grace period `number` began.
    private func hasPassed(_ record: UnsafeMutablePointer<ReaderRecord>, _ number: UInt64) -> Bool {
        // ORDERING: acquire pairs with the release in `report` (invariant 2); sequentially consistent for invariant 4.
        let state = record.pointee.state.load(ordering: .sequentiallyConsistent)
        return state == 0 || state >= number
    }

    private func waitUntilPassed(_ record: UnsafeMutablePointer<ReaderRecord>, _ number: UInt64) {
        for _ in 0..<Self.spins {
            martlet_pause()
            if hasPassed(record, number) { return }
        }
        while true {
            // ORDERING: full fence between arming and the second look (invariant 4).
            _ = sleeping.atomic.pointee.exchange(1, ordering: .sequentiallyConsistent)
            if hasPassed(record, number) { break }
            sleeping.wait(while: 1)
        }
        sleeping.atomic.pointee.store(0, ordering: .relaxed)
    }

    /// Nudges `record` and every reader behind it, so that they report at the same time and not one after another.
    private func nudge(from first: UnsafeMutablePointer<ReaderRecord>, _ number: UInt64) {
        registryLock.withLock {
            var record: UnsafeMutablePointer<ReaderRecord>? = first
            while let current = record {
                if let nudge = current.pointee.nudge, let context = current.pointee.context,
                    !hasPassed(current, number)
                {
                    nudge(context)
                }
                record = current.pointee.next
            }
        }
    }
}
