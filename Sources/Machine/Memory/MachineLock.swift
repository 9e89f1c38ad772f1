import Glibc
import Host
import Synchronization

/// The lock of whoever changes the machine as a whole: its memory map, its set of processors.
///
/// Not recursive; a thread can ask whether it is the holder. Lock order: outermost.
package final class MachineLock: Sendable {
    private let lock = FutexLock()
    /// The holder's `pthread_self`; 0 if there is none.
    private let owner = Atomic<UInt>(0)

    package init() {}

    /// Whether the calling thread holds the lock.
    package var isHeldByCurrentThread: Bool {
        // ORDERING: relaxed; only the calling thread itself can have stored its own number.
        owner.load(ordering: .relaxed) == UInt(pthread_self())
    }

    /// Runs `body` with the lock held. The caller does not hold it yet.
    package func withLock<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        precondition(!isHeldByCurrentThread, "the machine lock is taken by its holder")
        lock.lock()
        owner.store(UInt(pthread_self()), ordering: .relaxed)
        defer {
            owner.store(0, ordering: .relaxed)
            lock.unlock()
        }
        return try body()
    }
}
