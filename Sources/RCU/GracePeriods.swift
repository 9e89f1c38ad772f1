import CHost
import Host
import Synchronization

/// What a domain's writers and its reclaimer wait for.
protocol GracePeriodSource: AnyObject, Sendable {
    /// Waits until every read section that may have begun before the call has ended.
    func synchronize()
    /// Readers and grace periods now; the callbacks are not its own.
    var state: ReclamationState { get }
}

/// The grace-period counter, the registry of readers and the wait for them.
///
/// Lock order: grace-period lock, registry lock.
final class GracePeriods: GracePeriodSource, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: atomics, and what the two locks guard.

    let line: GracePeriodLine
    private let ownsLine: Bool
    /// The writer's half of the fences that readers leave out; nil if readers fence for themselves.
    private let barrier: ProcessBarrier?
    /// The number of the grace period ended last. Under the grace-period lock.
    private var completed: UInt64 = 1
    private let gracePeriodLock = FutexLock()
    private let registryLock = FutexLock()
    /// The newest record; the list only grows.
    private let records = Atomic<UnsafeMutablePointer<ReaderRecord>?>(nil)
    /// How many records have no reader. Guarded by `registryLock`.
    private var unownedCount = 0

    private static let spins = 200

    /// Grace periods of readers that fence when they come on-line and when they report.
    init() {
        line = .allocate()
        ownsLine = true
        barrier = nil
    }

    /// Grace periods of readers that never fence.
    init(line: GracePeriodLine, barrier: ProcessBarrier) {
        self.line = line
        ownsLine = false
        self.barrier = barrier
    }

    deinit {
        var record = records.load(ordering: .relaxed)
        while let current = record {
            record = current.pointee.next
            current.deinitialize(count: 1)
            current.deallocate()
        }
        if ownsLine { line.address.deallocate() }
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
            unownedCount += 1
        }
    }

    /// Takes a record whose reader has gone. > Concurrency: the registry's lock is held.
    private func unownedRecord() -> UnsafeMutablePointer<ReaderRecord>? {
        guard unownedCount > 0 else { return nil }
        var record = records.load(ordering: .relaxed)
        while let current = record {
            if !current.pointee.isOwned {
                unownedCount -= 1
                return current
            }
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
        // reader's coming in, which invariant 3 of either kind of domain allows.
        records.store(record, ordering: .releasing)
        return record
    }

    // MARK: Forks

    func beginFork() {
        gracePeriodLock.lock()
        registryLock.lock()
    }

    /// In a child every reader but `own` has gone.
    func endFork(isChild: Bool, own: UnsafeMutablePointer<ReaderRecord>) {
        var record = isChild ? records.load(ordering: .relaxed) : nil
        while let current = record {
            if current != own, current.pointee.isOwned {
                current.pointee.state.store(0, ordering: .relaxed)
                current.pointee.nudge = nil
                current.pointee.context = nil
                current.pointee.isOwned = false
                unownedCount += 1
            }
            record = current.pointee.next
        }
        registryLock.unlock()
        gracePeriodLock.unlock()
    }

    // MARK: Readers

    /// Writes a reader's state, with a fence, and wakes a writer that waits for it.
    @inline(never)
    func report(_ record: UnsafeMutablePointer<ReaderRecord>, _ value: UInt64) {
        // ORDERING: release pairs with the acquire in `hasPassed` (invariant 2); full fence before the load of
        // `isAwaited` (invariant 4).
        _ = record.pointee.state.exchange(value, ordering: .sequentiallyConsistent)
        if record.pointee.isAwaited.load(ordering: .sequentiallyConsistent) != 0 { Self.wakeWriter(record) }
    }

    /// Ends the sleep of the writer that waits for `record`.
    static func wakeWriter(_ record: UnsafeMutablePointer<ReaderRecord>) {
        record.pointee.isAwaited.store(0, ordering: .sequentiallyConsistent)
        Futex.wake(awaitedWord(record))
    }

    /// What a writer sleeps on.
    private static func awaitedWord(_ record: UnsafeMutablePointer<ReaderRecord>) -> UnsafeMutableRawPointer {
        // SAFETY: `isAwaited` is the second word of a record, and records stay where they are until the domain ends.
        UnsafeMutableRawPointer(record) + MemoryLayout<Atomic<UInt64>>.stride
    }

    // MARK: Writers

    func synchronize() {
        // Any grace period that begins after this point will do, whoever runs it.
        // ORDERING: an adding of nothing instead of a load: the caller's unlinking is released into the counter, from
        // where the increment in `advance` acquires it and passes it on to readers (invariant 1).
        let target = line.counter.pointee.wrappingAdd(0, ordering: .sequentiallyConsistent).oldValue + 1
        gracePeriodLock.withLock {
            if completed < target { advance() }
        }
    }

    var state: ReclamationState {
        // ORDERING: relaxed; the numbers need not agree with each other.
        let begun = line.counter.pointee.load(ordering: .relaxed)
        var state = ReclamationState(begun: begun - 1, activeReaders: 0, oldestReaderAge: 0)
        // ORDERING: acquire pairs with the release in `addRecord`.
        var record = records.load(ordering: .acquiring)
        while let current = record {
            let seen = current.pointee.state.load(ordering: .relaxed)
            if seen != 0 {
                state.activeReaders += 1
                // A reader that has just come in may know a newer number.
                if seen < begun { state.oldestReaderAge = max(state.oldestReaderAge, begun - seen) }
            }
            record = current.pointee.next
        }
        return state
    }

    /// Runs one grace period. The grace-period lock is held.
    private func advance() {
        // ORDERING: release pairs with the acquires of the readers; full fence before the first look at a state, on
        // readers' processors too where they do not fence (invariants 1 and 3).
        let number = line.counter.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
        barrier?.run()
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

    /// Whether the reader is outside or has reported since grace period `number` began.
    private func hasPassed(_ record: UnsafeMutablePointer<ReaderRecord>, _ number: UInt64) -> Bool {
        // ORDERING: acquire pairs with the reader's releasing write (invariant 2); sequentially consistent for
        // invariant 4.
        let state = record.pointee.state.load(ordering: .sequentiallyConsistent)
        return state == 0 || state >= number
    }

    private func waitUntilPassed(_ record: UnsafeMutablePointer<ReaderRecord>, _ number: UInt64) {
        for _ in 0..<Self.spins {
            martlet_pause()
            if hasPassed(record, number) { return }
        }
        while true {
            // ORDERING: full fence between arming and the second look, on both sides (invariant 4).
            _ = record.pointee.isAwaited.exchange(1, ordering: .sequentiallyConsistent)
            barrier?.run()
            if hasPassed(record, number) { break }
            _ = Futex.wait(on: Self.awaitedWord(record), while: 1)
        }
        record.pointee.isAwaited.store(0, ordering: .relaxed)
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
