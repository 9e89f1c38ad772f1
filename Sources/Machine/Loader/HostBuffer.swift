import Glibc

/// Host memory that grows up to a limit: what a file is read into and what a payload is unpacked into.
///
/// Growth that the host cannot satisfy is an error, not a trap. Memory that was reserved but not filled is never
/// touched, so a wrong guess of the size costs address space only.
package struct HostBuffer: ~Copyable {
    package enum Failure: Error, Equatable {
        /// The buffer holds `limit` bytes.
        case limitReached
        /// The host has no memory left.
        case outOfMemory
    }

    /// The most bytes it may hold.
    package let limit: Int
    package private(set) var count = 0
    /// How many bytes the last ``fill(_:)`` added.
    package private(set) var lastFill = 0
    private var capacity = 0
    private var base: UnsafeMutableRawPointer?

    package init(limit: Int) {
        precondition(limit >= 0, "a negative limit")
        self.limit = limit
    }

    deinit {
        // SAFETY: `base` came from realloc and no span of it outlives the buffer.
        free(base)
    }

    /// The filled part.
    package var bytes: RawSpan {
        @_lifetime(borrow self)
        get {
            // SAFETY: the first `count` bytes were filled; the span borrows the buffer, which cannot grow meanwhile.
            let span = RawSpan(_unsafeStart: base.map { UnsafeRawPointer($0) } ?? Self.nothing, byteCount: count)
            return _overrideLifetime(span, borrowing: self)
        }
    }

    /// An address for a span of no bytes.
    private static var nothing: UnsafeRawPointer { UnsafeRawPointer(bitPattern: 8).unsafelyUnwrapped }

    /// Makes room for `byteCount` further bytes, or for fewer, but at least one, when the limit is nearer.
    package mutating func reserve(_ byteCount: Int) throws(Failure) {
        precondition(byteCount > 0, "room for nothing")
        guard count < limit else { throw .limitReached }
        let wanted = byteCount > limit - count ? limit : count + byteCount
        guard wanted > capacity else { return }
        let doubled = capacity > limit / 2 ? limit : capacity * 2
        let newCapacity = max(wanted, doubled)
        // SAFETY: `base` is nil or from realloc; on failure the old block stays ours.
        guard let grown = realloc(base, newCapacity) else { throw .outOfMemory }
        base = grown
        capacity = newCapacity
    }

    /// Calls `fill` with the room that is left and the number of bytes it has filled, zero, to be set.
    package mutating func fill<R>(_ fill: (_ room: UnsafeMutableRawBufferPointer, _ filled: inout Int) -> R) -> R {
        var filled = 0
        // SAFETY: count ≤ capacity bytes belong to `base`.
        let room = UnsafeMutableRawBufferPointer(start: base.map { $0 + count }, count: capacity - count)
        let result = fill(room, &filled)
        precondition(filled >= 0 && filled <= capacity - count, "filled more than there was room for")
        count += filled
        lastFill = filled
        return result
    }
}
