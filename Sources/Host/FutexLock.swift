import CHost
import Synchronization

/// A mutual-exclusion lock of one word: not recursive, not fair, no priority inheritance.
///
/// States of the word: 0 free, 1 held, 2 held and somebody may sleep. Written here rather than taken from the standard
/// library because that one's slow path is invisible to the thread sanitizer.
public struct FutexLock: ~Copyable, Sendable {
    private let word = FutexWord(0)

    public init() {}

    /// Takes the lock, sleeping until it is free.
    public borrowing func lock() {
        // ORDERING: acquire pairs with the release in `unlock`.
        let atomic = word.atomic
        if atomic.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged { return }
        for _ in 0..<100 {
            martlet_pause()
            if atomic.pointee.load(ordering: .relaxed) == 0,
                atomic.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
            {
                return
            }
        }
        // ORDERING: acquire pairs with the release in `unlock`. Whoever slept takes the lock as 2: others may still sleep.
        while atomic.pointee.exchange(2, ordering: .acquiring) != 0 {
            word.wait(while: 2)
        }
    }

    /// Takes the lock if it is free.
    public borrowing func tryLock() -> Bool {
        // ORDERING: acquire pairs with the release in `unlock`.
        word.atomic.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
    }

    /// Gives the lock up. Only its holder may call this.
    public borrowing func unlock() {
        // ORDERING: release pairs with the acquires in `lock` and `tryLock`.
        let old = word.atomic.pointee.exchange(0, ordering: .releasing)
        precondition(old != 0, "unlock of a lock that is not held")
        if old == 2 { word.wake(count: 1) }
    }

    /// Runs `body` with the lock held.
    @inline(__always)
    public borrowing func withLock<Result: ~Copyable, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock()
        defer { unlock() }
        return try body()
    }
}
