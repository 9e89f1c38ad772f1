import Addressing
import Synchronization
import SystemPackage

/// A piece of an address space: memory, a device's registers, a window onto another region, or a container of regions.
///
/// Regions form an acyclic graph: a container has subregions, each at an offset and with a priority, and an alias shows a
/// part of its target. Where subregions overlap, the one of higher priority is seen, and of two with the same priority the
/// one that was added later. A region that is memory or a device may have subregions too; they lie on top of it.
/// Made by ``MemoryTopology``, which says how regions are changed.
///
/// > Concurrency: what can change belongs to the writer of the topology; what cannot may be read by any thread.
/// > Source: QEMU, docs/devel/memory.rst, for the behaviour.
public final class MemoryRegion: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the variables are used by the topology's one writer only; readers of a flat view get
    // copies of them in its ranges.

    /// What a region is.
    public enum Content: Sendable {
        case container
        /// Memory at `host`. `writes` takes the guest's writes while it is read-only; if nil they are lost.
        case memory(host: HostVirtualAddress, writes: (any MemoryDevice)?)
        case device(any MemoryDevice)
        /// The part of `target` from `offset` on.
        case alias(target: MemoryRegion, offset: UInt64)
    }

    /// For people.
    public let name: String
    public let content: Content
    public let topology: MemoryTopology
    /// The greatest size, in bytes. For memory, what the host has mapped.
    public let capacity: UInt128
    /// Keeps the host's memory mapped while the region lives.
    private let owner: (any AnyObject & Sendable)?

    /// The size in bytes, at most ``capacity``.
    public internal(set) var byteCount: UInt128
    /// Whether the region, with all it contains, is there.
    public internal(set) var isEnabled = true
    /// Whether the guest's writes are kept from memory; applies to all that is seen through the region.
    public internal(set) var isReadOnly: Bool
    /// Whether written pages are recorded.
    public internal(set) var logsDirtyPages = false
    /// The distance from the container's start.
    public internal(set) var offset: UInt64 = 0
    public internal(set) var priority: Int32 = 0
    public internal(set) weak var container: MemoryRegion?
    /// In the order in which they are seen: highest priority, then latest, first.
    public internal(set) var subregions: [MemoryRegion] = []

    /// Made when logging is first turned on, and kept.
    private let record = AtomicLazyReference<DirtyRecord>()

    init(
        _ name: String, _ content: Content, byteCount: UInt128, isReadOnly: Bool = false, topology: MemoryTopology,
        owner: (any AnyObject & Sendable)? = nil
    ) {
        precondition(byteCount > 0 && byteCount <= 1 << 64, "region \(name) has a size that cannot be: \(byteCount)")
        self.name = name
        self.content = content
        self.byteCount = byteCount
        self.isReadOnly = isReadOnly
        self.topology = topology
        self.owner = owner
        capacity = byteCount
    }

    /// Where a region of memory lies in this process; nil for other regions.
    public var host: HostVirtualAddress? { if case .memory(let host, _) = content { host } else { nil } }

    // MARK: Written pages

    /// Records a write of `byteCount` bytes at `offset`, if written pages were ever recorded.
    /// > Concurrency: any thread.
    public func markDirty(offset: UInt64, byteCount: UInt64) {
        record.load()?.mark(offset: offset, byteCount: byteCount)
    }

    /// The pages written since the last call, 64 in each element, one bit for each 4 KiB from the region's start; empty if
    /// they were never recorded.
    ///
    /// What an accelerator has recorded is among them once its listener has been asked for it.
    /// > Concurrency: any thread.
    public func takeDirtyPages() -> [UInt64] { record.load()?.take() ?? [] }

    /// - Throws: `Errno.invalidArgument` if the region is not memory, `Errno.noMemory`.
    func makeDirtyRecord() throws(Errno) {
        guard host != nil else { throw .invalidArgument }
        guard record.load() == nil else { return }
        guard let made = DirtyRecord(byteCount: UInt64(clamping: capacity)) else { throw .noMemory }
        _ = record.storeIfNil(made)
    }
}
