import Synchronization

/// What a domain knows of one reader; on a cache line of its own.
///
/// Records are recycled, and freed only with the domain, so that a scan needs no lock.
@usableFromInline
struct ReaderRecord: ~Copyable {
    // The first two words' places are known to `GracePeriods` and `ThreadRCU`.

    /// 0 outside (off-line), else the grace-period counter the reader saw last. Written by the reader, read by writers.
    @usableFromInline let state = Atomic<UInt64>(0)
    /// 1 while a writer sleeps, or is about to, until the reader reports; 0 otherwise. Written by both.
    @usableFromInline let isAwaited = Atomic<UInt32>(0)
    /// The record registered before this one. Never changes.
    let next: UnsafeMutablePointer<ReaderRecord>?
    /// Whether a reader owns the record. Under the registry lock, as the two below.
    var isOwned = true
    var nudge: RCUReader.Nudge?
    var context: UnsafeMutableRawPointer?
    /// How many read sections of an `RCUReader` are open; debug builds only. The reader's own.
    private let depth = Atomic<Int>(0)

    init(next: UnsafeMutablePointer<ReaderRecord>?) { self.next = next }

    /// Whether a read section is open.
    @usableFromInline var isInSection: Bool { depth.load(ordering: .relaxed) != 0 }

    /// Opens (1) or closes (-1) a read section. Returns true, to be called from an assertion.
    @usableFromInline func changeDepth(_ change: Int) -> Bool {
        // ORDERING: relaxed; atomic only so that no access is to the record as a whole, which writers share.
        depth.store(depth.load(ordering: .relaxed) + change, ordering: .relaxed)
        return true
    }
}

/// The cache line that writers and readers of a domain share; readers do not write it.
@usableFromInline
struct GracePeriodLine: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the line holds atomics, and outlives the domain's readers.

    @usableFromInline let address: UnsafeMutableRawPointer

    @inlinable @inline(__always)
    init(at address: UnsafeMutableRawPointer) { self.address = address }

    static func allocate() -> GracePeriodLine {
        let address = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
        address.initializeMemory(as: UInt64.self, repeating: 0, count: 8)
        address.storeBytes(of: 1, as: UInt64.self)
        return GracePeriodLine(at: address)
    }

    /// The number of the grace period begun last; starts at 1, since 0 means outside to readers.
    @inlinable @inline(__always)
    var counter: UnsafeMutablePointer<Atomic<UInt64>> { address.assumingMemoryBound(to: Atomic<UInt64>.self) }
}
