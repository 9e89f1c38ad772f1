import CHost
import Glibc
import Host
import Synchronization

/// Read-copy-update for any thread of the process, without a reader object.
///
/// One domain for all: a section costs two stores to the thread's own line and no fence; writers pay for both sides with
/// a barrier on all processors (`membarrier`). A section may nest and must not block for long: it delays every writer.
///
///     let size = ThreadRCU.withReadSection { section in table.load(in: section)?.pointee.size }
///     let old = table.exchange(new)
///     ThreadRCU.domain.call { old?.deinitialize(count: 1).deallocate() }
///
/// Invariants and memory ordering, for `gp` the grace-period counter and `state` a thread's word (0 outside, else the value
/// of `gp` when its section began):
///
/// 1. As for `RCUDomain`: who has read n from `gp` sees every unlinking that preceded increment n.
/// 2. A section begins and ends by a releasing write of `state`, which the writer reads with acquire: all accesses of
///    earlier sections happen before the writer frees.
/// 3. The writer increments `gp`, has every processor pass a full barrier, then looks at `state`. The barrier falls, on the
///    reader's processor, before the section's first write of `state`, and then the section sees the unlinking, or after
///    it, and then the writer sees the section. Between that write and the section's loads the compiler must not reorder;
///    the processor may.
/// 4. A writer that sleeps sets the thread's `isAwaited`, has every processor pass a barrier, and looks again; a reader
///    writes 0 and then looks at `isAwaited`. As in 3, one of the two sees the other.
/// 5. A thread without a record points at one that is inside a section for ever, so that its first section and nested ones
///    leave the fast path by the same test.
public enum ThreadRCU {
    /// Where writers wait and queue callbacks.
    public static var domain: ReclamationDomain { ThreadDomain.shared }

    /// Runs `body`, in which pointers that writers of `domain` replace may be read and used. Sections nest.
    @inlinable @inline(__always)
    @available(*, noasync)
    public static func withReadSection<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing ReadSection) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let own = currentRecord
        let record: UnsafeMutablePointer<ReaderRecord>?
        // ORDERING: relaxed; only this thread writes the word.
        if _fastPath(own.pointee.state.load(ordering: .relaxed) == 0) {
            enter(own)
            record = own
        } else {
            record = enterSlowly()
        }
        defer { if let record { leave(record) } }
        return try body(ReadSection())
    }

    /// Begins the thread's first section, or one inside another, which has nothing to do.
    /// - Returns: the record to leave; nil inside another section.
    @usableFromInline @inline(never)
    static func enterSlowly() -> UnsafeMutablePointer<ReaderRecord>? {
        guard !isInSection else { return nil }
        let record = registerThread()
        enter(record)
        return record
    }

    /// Whether this thread is inside a read section.
    public static var isInSection: Bool {
        let record = currentRecord
        return isRegistered(record) && record.pointee.state.load(ordering: .relaxed) != 0
    }

    // MARK: Forks

    /// Before a fork: takes what a child needs to find free. Waits for callbacks that run.
    /// > Concurrency: not inside a read section or a callback.
    public static func beginFork() { ThreadDomain.shared.beginFork() }

    /// After a fork, on the same thread, in both processes. In the child there are no other threads: none is in a section.
    public static func endFork(isChild: Bool) { ThreadDomain.shared.endFork(isChild: isChild, own: currentRecord) }

    // MARK: Readers

    @inlinable @inline(__always)
    static var line: GracePeriodLine { GracePeriodLine(at: martlet_thread_grace_period_line()) }

    @inlinable @inline(__always)
    static var currentRecord: UnsafeMutablePointer<ReaderRecord> {
        // SAFETY: the word holds what `registerThread` put there, or something of which only `state` may be read.
        martlet_get_thread_record().unsafelyUnwrapped.assumingMemoryBound(to: ReaderRecord.self)
    }

    private static func isRegistered(_ record: UnsafeMutablePointer<ReaderRecord>) -> Bool {
        UnsafeMutableRawPointer(record) != martlet_unregistered_record_address()
    }

    @inlinable @inline(__always)
    static func enter(_ record: UnsafeMutablePointer<ReaderRecord>) {
        // ORDERING: acquire for invariant 1, release for invariant 2; the compiler barrier for invariant 3.
        record.pointee.state.store(line.counter.pointee.load(ordering: .acquiring), ordering: .releasing)
        martlet_compiler_barrier()
    }

    @inlinable @inline(__always)
    static func leave(_ record: UnsafeMutablePointer<ReaderRecord>) {
        // ORDERING: release for invariant 2; the compiler barrier for invariant 4.
        record.pointee.state.store(0, ordering: .releasing)
        martlet_compiler_barrier()
        if _slowPath(record.pointee.isAwaited.load(ordering: .relaxed) != 0) { wakeWriter(record) }
    }

    @usableFromInline @inline(never)
    static func wakeWriter(_ record: UnsafeMutablePointer<ReaderRecord>) { GracePeriods.wakeWriter(record) }

    /// Gives this thread a record, which goes back when the thread ends.
    private static func registerThread() -> UnsafeMutablePointer<ReaderRecord> {
        let record = ThreadDomain.shared.gracePeriods.register(nudge: nil, context: nil)
        martlet_set_thread_record(record)
        let error = pthread_setspecific(threadEnd, record)
        precondition(error == 0, "no memory for a thread-local slot: errno \(error)")
        return record
    }

    /// The thread-local slot whose destructor takes the record back. A destructor that reads later registers anew.
    private static let threadEnd: pthread_key_t = {
        var key = pthread_key_t()
        let error = pthread_key_create(&key) { pointer in
            martlet_set_thread_record(nil)
            // SAFETY: the slot holds the record that `registerThread` put there.
            if let pointer {
                ThreadDomain.shared.gracePeriods.unregister(pointer.assumingMemoryBound(to: ReaderRecord.self))
            }
        }
        precondition(error == 0, "no thread-local slot is left: errno \(error)")
        return key
    }()
}

/// The one domain of ``ThreadRCU``.
private final class ThreadDomain: ReclamationDomain, @unchecked Sendable {
    static let shared = ThreadDomain()

    let gracePeriods: GracePeriods

    private init() {
        let barrier: ProcessBarrier
        do { barrier = try ProcessBarrier() } catch {
            fatalError("this kernel has no membarrier (\(error)); Linux 4.14 with CONFIG_MEMBARRIER is needed")
        }
        gracePeriods = GracePeriods(line: ThreadRCU.line, barrier: barrier)
        super.init(gracePeriods)
    }

    func beginFork() {
        beginReclaimerFork()
        gracePeriods.beginFork()
    }

    func endFork(isChild: Bool, own: UnsafeMutablePointer<ReaderRecord>) {
        gracePeriods.endFork(isChild: isChild, own: own)
        endReclaimerFork(isChild: isChild)
    }

    /// > Concurrency: as `ReclamationDomain.synchronize`; traps inside a read section.
    @available(*, noasync)
    override func synchronize() {
        precondition(!ThreadRCU.isInSection, "a thread waits for its own read section")
        super.synchronize()
    }
}
