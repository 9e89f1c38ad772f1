import Synchronization

/// A pointer that readers of a domain follow while writers replace it.
///
/// Does not own what it points to.
public struct RCUPointer<Pointee: ~Copyable>: ~Copyable, @unchecked Sendable {
    @usableFromInline let pointer: Atomic<UnsafeMutablePointer<Pointee>?>

    @inlinable public init(_ initial: UnsafeMutablePointer<Pointee>?) { pointer = Atomic(initial) }

    /// The current pointer, for readers; what it points to is complete, and valid until the reader's next quiescent
    /// state.
    ///
    /// > Concurrency: inside a read section, or with the writers' lock held.
    @inlinable @inline(__always)
    public borrowing func load() -> UnsafeMutablePointer<Pointee>? {
        // ORDERING: acquire pairs with the releases below.
        pointer.load(ordering: .acquiring)
    }

    /// Makes a complete object visible to readers.
    ///
    /// > Concurrency: the writers' lock is held.
    @inlinable @inline(__always)
    public borrowing func publish(_ new: UnsafeMutablePointer<Pointee>?) {
        // ORDERING: release pairs with the acquire in `load`.
        pointer.store(new, ordering: .releasing)
    }

    /// Makes a complete object visible to readers and returns its predecessor, to be freed after a grace period.
    @inlinable @inline(__always)
    public borrowing func exchange(_ new: UnsafeMutablePointer<Pointee>?) -> UnsafeMutablePointer<Pointee>? {
        // ORDERING: release pairs with the acquire in `load`; acquire, because the caller reads what others published.
        pointer.exchange(new, ordering: .acquiringAndReleasing)
    }
}
