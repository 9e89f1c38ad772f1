import CHost
import Glibc
import Host
import Synchronization

/// Read-copy-update whose readers may block: on a page fault, on a lock, on another domain's writers.
///
/// A blocked reader delays the writers of its own domain and of no other. Readers need no reader object; a section costs
/// two atomic additions, to a line that threads share only if there are more of them than lines.
///
///     let domain = SRCUDomain()
///     let host = domain.withReadSection { section in slots.load(in: section)?.pointee.find(frame) }
///
/// Invariants and memory ordering. Each line counts the readers inside by the parity of `epoch` they found:
///
/// 1. A section adds one to the count of the parity it reads, with a full fence before its loads, and takes it away with
///    release. Who reads 0 there afterwards, with acquire, has all accesses of the section behind it.
/// 2. A grace period waits for the other parity, increments `epoch`, and waits for the parity that was current. New readers
///    use the other one, so each wait ends although readers keep coming.
/// 3. The first wait is for those who read `epoch` before the last grace period and added to the count after it had looked:
///    it need not wait for them, since their loads come after its look and see its unlinking, but the next one must.
/// 4. A writer looks at a count by adding nothing: a reader that adds after the look acquires what the writer has unlinked.
/// 5. Sleeping: as invariant 4 of `RCUDomain`.
/// > Source: the Linux kernel's `srcutree.c`, with one count instead of two since a section ends on the line it began on.
public final class SRCUDomain: ReclamationDomain, @unchecked Sendable {
    @usableFromInline let readers: BlockingReaders

    public init() {
        readers = BlockingReaders()
        super.init(readers)
    }

    /// Runs `body`, in which pointers of the domain may be read and used, and which may block. Sections nest.
    @inlinable @inline(__always)
    @available(*, noasync)
    public func withReadSection<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing ReadSection) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let count = readers.enter()
        defer { readers.leave(count) }
        return try body(ReadSection())
    }
}

/// The readers of an `SRCUDomain`, and the wait for them.
@usableFromInline
final class BlockingReaders: GracePeriodSource, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: atomics, and what the lock guards.

    @usableFromInline typealias Count = UnsafeMutablePointer<Atomic<Int>>

    /// Lines of 64 bytes, each with the counts of both parities; a power of two of them.
    @usableFromInline let lines: UnsafeMutableRawPointer
    @usableFromInline let lineMask: Int
    /// The number of grace periods' flips; its parity is what new readers use.
    @usableFromInline let epoch = Atomic<Int>(0)
    /// 1 while a writer sleeps, or is about to, until a reader leaves.
    @usableFromInline let sleeping = FutexWord(0)

    /// The number of grace periods begun.
    private let begun = Atomic<Int>(0)
    private let gracePeriodLock = FutexLock()
    /// The number of the grace period ended last. Under the lock.
    private var completed = 0

    private static let spins = 200
    private static let maximumLineCount = 64

    init() {
        let processors = min(max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1), Self.maximumLineCount)
        // Twice as many as processors: neighbouring thread numbers mostly run at the same time.
        var lineCount = 2
        while lineCount < 2 * processors { lineCount *= 2 }
        lineMask = lineCount - 1
        lines = .allocate(byteCount: lineCount * 64, alignment: 64)
        lines.initializeMemory(as: Int.self, repeating: 0, count: lineCount * 8)
    }

    deinit { lines.deallocate() }

    // MARK: Readers

    @inlinable @inline(__always)
    func count(_ line: Int, parity: Int) -> Count {
        (lines + line * 64 + parity * 8).assumingMemoryBound(to: Atomic<Int>.self)
    }

    @inlinable @inline(__always)
    func enter() -> Count {
        let number = martlet_get_thread_number()
        let line = Int(number != 0 ? number : ThreadNumber.assign()) & lineMask
        // ORDERING: relaxed; an old parity is harmless (invariant 3).
        let count = count(line, parity: epoch.load(ordering: .relaxed) & 1)
        // ORDERING: the full fence of invariant 1; acquire for invariant 4.
        count.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
        return count
    }

    @inlinable @inline(__always)
    func leave(_ count: Count) {
        // ORDERING: release for invariant 1; full fence before the load of `sleeping` (invariant 5).
        count.pointee.wrappingSubtract(1, ordering: .sequentiallyConsistent)
        if sleeping.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 { wakeWriter() }
    }

    @usableFromInline @inline(never)
    func wakeWriter() {
        sleeping.atomic.pointee.store(0, ordering: .sequentiallyConsistent)
        sleeping.wake()
    }

    // MARK: Writers

    func synchronize() {
        // Any grace period that begins after this point will do, whoever runs it.
        // ORDERING: an adding of nothing: the caller's unlinking is released to whoever begins the grace period.
        let target = begun.wrappingAdd(0, ordering: .sequentiallyConsistent).oldValue + 1
        gracePeriodLock.withLock {
            if completed < target { advance() }
        }
    }

    var state: ReclamationState {
        // ORDERING: relaxed; the numbers need not agree with each other.
        let parity = epoch.load(ordering: .relaxed) & 1
        var counts = [0, 0]
        for line in 0...lineMask {
            for parity in 0...1 { counts[parity] += count(line, parity: parity).pointee.load(ordering: .relaxed) }
        }
        // A section that ends between two looks may count as less than none.
        counts = counts.map { max($0, 0) }
        return ReclamationState(
            begun: UInt64(begun.load(ordering: .relaxed)), activeReaders: counts[0] + counts[1],
            oldestReaderAge: counts[parity ^ 1] > 0 ? 1 : 0)
    }

    /// Runs one grace period. The lock is held.
    private func advance() {
        // ORDERING: acquire pairs with the addition in `synchronize`.
        let number = begun.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
        let parity = epoch.load(ordering: .relaxed) & 1
        waitUntilEmpty(parity: parity ^ 1)
        // ORDERING: full fence between the two waits' looks and the flip.
        epoch.wrappingAdd(1, ordering: .sequentiallyConsistent)
        waitUntilEmpty(parity: parity)
        completed = number
    }

    private func waitUntilEmpty(parity: Int) {
        for line in 0...lineMask {
            let count = count(line, parity: parity)
            if !isEmpty(count) { wait(for: count) }
        }
    }

    private func isEmpty(_ count: Count) -> Bool {
        // ORDERING: acquire and release for invariants 1 and 4. The plain look first keeps the line with its reader.
        count.pointee.load(ordering: .sequentiallyConsistent) == 0
            && count.pointee.wrappingAdd(0, ordering: .sequentiallyConsistent).oldValue == 0
    }

    private func wait(for count: Count) {
        for _ in 0..<Self.spins {
            martlet_pause()
            if isEmpty(count) { return }
        }
        while true {
            // ORDERING: full fence between arming and the second look (invariant 5).
            _ = sleeping.atomic.pointee.exchange(1, ordering: .sequentiallyConsistent)
            if isEmpty(count) { break }
            sleeping.wait(while: 1)
        }
        sleeping.atomic.pointee.store(0, ordering: .relaxed)
    }
}

/// Small numbers of threads, by which they spread over lines.
@usableFromInline
enum ThreadNumber {
    private static let last = Atomic<UInt32>(0)

    /// Gives this thread a number; not 0.
    @usableFromInline @inline(never)
    static func assign() -> UInt32 {
        let number = last.wrappingAdd(1, ordering: .relaxed).newValue
        martlet_set_thread_number(number == 0 ? 1 : number)
        return martlet_get_thread_number()
    }
}
