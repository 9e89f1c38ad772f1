import Synchronization

/// A pointer that readers of a domain follow while writers replace it.
///
/// Does not own what it points to.
public struct RCUPointer<Pointee: ~Copyable>: ~Copyable, @unchecked Sendable {
    @usableFromInline let pointer: Atomic<UnsafeMutablePointer<Pointee>?>

    @inlinable public init(_ initial: UnsafeMutablePointer<Pointee>?) { pointer = Atomic(initial) }

    /// What readers see now; complete, and valid until the section ends.
    @_lifetime(borrow section)
    @inlinable @inline(__always)
    public borrowing func load(in section: borrowing ReadSection) -> RCUReference<Pointee>? {
        guard let current = load() else { return nil }
        return RCUReference(UnsafePointer(current), section)
    }

    /// The pointer itself, for writers, and for types that guard it by themselves.
    ///
    /// > Concurrency: inside a read section, after which it is not used, or with the writers' lock held.
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
