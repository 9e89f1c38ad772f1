import Synchronization

/// Counts events of one thread; others may look at any time.
public struct OwnedCounter: ~Copyable, Sendable {
    private let count = Atomic<UInt64>(0)

    public init() {}

    /// > Concurrency: one thread at a time.
    @inline(__always)
    public borrowing func increment() {
        // ORDERING: relaxed; nobody concludes anything from the number. No locked instruction: there is one writer.
        count.store(count.load(ordering: .relaxed) &+ 1, ordering: .relaxed)
    }

    /// > Concurrency: any thread.
    public var value: UInt64 { count.load(ordering: .relaxed) }
}
