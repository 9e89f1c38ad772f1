import CHost
import Synchronization
import SystemPackage

/// The client's side of a vCPU's dirty ring: the pages that the vCPU wrote, in the order of their first writes.
///
/// > Concurrency: one thread at a time; the vCPU may run meanwhile.
public final class DirtyRingArea: @unchecked Sendable {
    private let backend: any KVMBackend
    private let bytes: UnsafeMutableRawBufferPointer
    /// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET`.
    private static let dirty: UInt32 = 1 << 0
    private static let harvested: UInt32 = 1 << 1
    /// The next entry to harvest.
    private var next = 0

    init(backend: any KVMBackend, bytes: UnsafeMutableRawBufferPointer) {
        self.backend = backend
        self.bytes = bytes
    }

    deinit { backend.unmapRunArea(bytes) }

    /// Takes all entries that are there. ``VirtualMachine/resetDirtyRings()`` has to follow before the pages are read:
    /// only then is a later write reported again.
    ///
    /// - Parameter body: called with the slot (bits 15–0 id, bits 31–16 address space) and the page's number in it.
    /// - Returns: how many there were.
    @discardableResult
    public func harvest(_ body: (_ slot: UInt32, _ page: UInt64) -> Void) -> Int {
        let stride = MemoryLayout<kvm_dirty_gfn>.stride
        let entryCount = bytes.count / stride
        var count = 0
        while count < entryCount {
            let entry = bytes.baseAddress! + next * stride
            // SAFETY: an entry's first word, which the core and the client access as an atomic.
            let flags = entry.assumingMemoryBound(to: Atomic<UInt32>.self)
            // ORDERING: acquire pairs with the core's release: the entry is complete.
            guard flags.pointee.load(ordering: .acquiring) == Self.dirty else { break }
            let content = entry.load(as: kvm_dirty_gfn.self)
            body(content.slot, content.offset)
            // ORDERING: release pairs with the core's acquire at the reset.
            flags.pointee.store(Self.harvested, ordering: .releasing)
            next = (next + 1) % entryCount
            count += 1
        }
        return count
    }
}

extension VCPU {
    /// Maps the vCPU's ring, of the size in bytes that `KVMCapability.dirtyLogRing` was enabled with.
    ///
    /// - Throws: `Errno.invalidArgument` if it has no such ring.
    public func dirtyRing(byteCount: Int) throws(Errno) -> DirtyRingArea {
        DirtyRingArea(backend: backend, bytes: try backend.mapDirtyRing(descriptor, byteCount: byteCount))
    }
}

extension VirtualMachine {
    /// Takes back what was harvested of all vCPUs' rings. The corresponding C request is `KVM_RESET_DIRTY_RINGS`.
    ///
    /// - Returns: the number of entries.
    @discardableResult
    public func resetDirtyRings() throws(Errno) -> Int { Int(try backend.call(descriptor, .resetDirtyRings)) }

    /// Clears a range of a slot's dirty bitmap; for `KVMCapability.manualDirtyLogProtect`. The corresponding C request is
    /// `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// - Parameter firstPage: a multiple of 64.
    /// - Parameter pageCount: a multiple of 64, unless the range ends with the slot.
    /// - Parameter bits: the pages to clear, from `firstPage` on.
    public func clearDirtyLog(slot: UInt32, firstPage: Int, pageCount: Int, bits: [UInt64]) throws(Errno) {
        precondition(bits.count * 64 >= pageCount, "too few bits")
        var request = kvm_clear_dirty_log()
        request.slot = slot
        request.first_page = UInt64(firstPage)
        request.num_pages = UInt32(pageCount)
        let bitmap = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: bits.count)
        _ = bitmap.initialize(from: bits)
        defer { bitmap.deallocate() }
        request.dirty_bitmap = UnsafeMutableRawPointer(bitmap.baseAddress)
        try backend.call(descriptor, .clearDirtyLog, with: &request)
    }
}
