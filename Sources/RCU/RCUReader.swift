import Host
import Synchronization

/// A participant whose read sections a domain's writers wait for: a thread, or a vCPU that moves between threads.
///
/// Starts off-line. An off-line reader delays nobody and may block; an on-line one must pass quiescent states and must
/// not wait for a writer.
/// > Concurrency: used by one thread at a time; a hand-over between threads is synchronised by the caller.
public struct RCUReader: ~Copyable, @unchecked Sendable {
    @usableFromInline let record: UnsafeMutablePointer<ReaderRecord>
    @usableFromInline let line: GracePeriodLine
    private let domain: RCUDomain

    /// Asks the reader to pass a quiescent state soon; runs on a writer's thread.
    ///
    /// Must not wait or take locks. May be late: the reader may have passed already.
    public typealias Nudge = @convention(c) (UnsafeMutableRawPointer) -> Void

    /// Registers a reader, off-line.
    ///
    /// - Parameter nudge: called with `context` when a writer has to wait for this reader. `context` must be valid until
    ///   the reader ends.
    public init(_ domain: RCUDomain, nudge: Nudge? = nil, context: UnsafeMutableRawPointer? = nil) {
        precondition((nudge == nil) == (context == nil), "a nudge and its context come together")
        self.domain = domain
        line = domain.gracePeriods.line
        record = domain.gracePeriods.register(nudge: nudge, context: context)
    }

    deinit { domain.gracePeriods.unregister(record) }

    /// Whether the reader is on-line.
    @inlinable @inline(__always)
    public var isOnline: Bool {
        // ORDERING: relaxed; only the reader itself writes the word.
        record.pointee.state.load(ordering: .relaxed) != 0
    }

    /// Begins to take part: pointers read from now on stay valid until the next quiescent state.
    public borrowing func online() {
        precondition(!isOnline, "the reader is on-line already")
        // ORDERING: the load pairs with the increment in `GracePeriods.advance`; the exchange is the full fence of
        // invariant 3.
        let current = line.counter.pointee.load(ordering: .acquiring)
        _ = record.pointee.state.exchange(current, ordering: .sequentiallyConsistent)
    }

    /// Ends taking part: the reader holds no pointers any more and writers do not wait for it.
    public borrowing func offline() {
        assert(!record.pointee.isInSection, "off-line inside a read section")
        precondition(isOnline, "the reader is off-line already")
        domain.gracePeriods.report(record, 0)
    }

    /// Declares that the reader holds no pointers it read before.
    @inlinable @inline(__always)
    public borrowing func quiescentState() {
        assert(isOnline, "a quiescent state of an off-line reader")
        assert(!record.pointee.isInSection, "a quiescent state inside a read section")
        // ORDERING: acquire pairs with the increment in `GracePeriods.advance` (invariant 1).
        let current = line.counter.pointee.load(ordering: .acquiring)
        if current != record.pointee.state.load(ordering: .relaxed) { report(current) }
    }

    @usableFromInline
    borrowing func report(_ current: UInt64) { domain.gracePeriods.report(record, current) }

    /// Runs `body`, in which pointers of the domain may be read and used. Sections nest.
    ///
    /// Costs nothing in a release build: on-line is inside. The section bounds references when it is compiled, and debug
    /// builds check that no quiescent state falls into it.
    @inlinable @inline(__always)
    @available(*, noasync)
    public borrowing func withReadSection<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing ReadSection) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try withReadSection { () throws(Failure) in try body(ReadSection()) }
    }

    /// The same for pointers that the compiler does not watch.
    @inlinable @inline(__always)
    @available(*, noasync)
    public borrowing func withReadSection<Result: ~Copyable, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        assert(isOnline, "a read section of an off-line reader")
        assert(record.pointee.changeDepth(1))
        defer { assert(record.pointee.changeDepth(-1)) }
        return try body()
    }

    /// Runs `body` off-line, in which the thread may block or wait for writers, and comes back if it was on-line.
    @available(*, noasync)
    public borrowing func whileOffline<Result: ~Copyable, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        guard isOnline else { return try body() }
        offline()
        defer { online() }
        return try body()
    }

    /// `RCUDomain.synchronize` for a caller that may be on-line: it counts as off-line meanwhile.
    @available(*, noasync)
    public borrowing func synchronize() {
        let domain = self.domain
        whileOffline { domain.synchronize() }
    }
}
