/// The proof that a read section is open. What is read with it cannot outlive it: that does not compile.
///
/// Made by `withReadSection` of each kind of domain, for the time of one closure.
public struct ReadSection: ~Copyable, ~Escapable {
    @_lifetime(immortal)
    @inlinable @inline(__always)
    init() {}
}

/// What an `RCUPointer` led to, readable inside one read section.
///
///     let size = reader.withReadSection { section in
///         table.load(in: section)?.pointee.size
///     }
///
/// Guards the object itself, not what the object's own unsafe pointers lead to.
public struct RCUReference<Pointee: ~Copyable>: ~Escapable {
    @usableFromInline let pointer: UnsafePointer<Pointee>

    @_lifetime(borrow section)
    @inlinable @inline(__always)
    init(_ pointer: UnsafePointer<Pointee>, _ section: borrowing ReadSection) {
        self.pointer = pointer
    }

    /// The object, complete as it was published.
    @inlinable @inline(__always)
    public var pointee: Pointee {
        // SAFETY: the writer frees the object after a grace period, which the section delays; the reference ends first.
        unsafeAddress { pointer }
    }
}
