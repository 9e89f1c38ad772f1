import CHost
import Host
import Synchronization
import SystemPackage

/// The page in which writes to coalesced zones wait for the client, one for the machine.
///
/// The client sees it in the last page of each vCPU's run area. It is hostile as all its memory: `last` is read once and
/// checked.
///
/// > Source: Documentation/virt/kvm/api.rst, section 4.116; `struct kvm_coalesced_mmio_ring`.
final class CoalescedRing: Sendable {
    static let byteCount = 4096
    /// The entries that a page holds; one of them is never used.
    static let entryCount =
        (byteCount - MemoryLayout<kvm_coalesced_mmio_ring>.size) / MemoryLayout<kvm_coalesced_mmio>.stride

    private let page: MemoryMapping
    /// Orders the vCPUs. Innermost: held for one entry.
    private let lock = FutexLock()

    /// - Throws: `ENOMEM`.
    init() throws(Errno) {
        page = try MemoryMapping.anonymous(byteCount: Self.byteCount)
        try page.share(0..<Self.byteCount)
    }

    /// Makes a page of another mapping this one.
    ///
    /// - Parameter offset: where in `mapping`, a multiple of the page size.
    /// - Throws: `ENOMEM`.
    func show(in mapping: borrowing MemoryMapping, at offset: Int) throws(Errno) {
        try page.duplicate(0..<Self.byteCount, in: mapping, at: offset)
    }

    /// Adds a write of up to 8 bytes.
    ///
    /// - Returns: false if there is no room.
    func append(address: UInt64, byteCount: Int, value: UInt64, isPort: Bool) -> Bool {
        lock.withLock {
            let insertion = last.pointee.load(ordering: .relaxed)
            guard insertion < Self.entryCount else { return false }
            let next = (insertion + 1) % UInt32(Self.entryCount)
            // ORDERING: acquire pairs with the client's release: it has read the entry that is overwritten.
            guard next != first.pointee.load(ordering: .acquiring) else { return false }
            var entry = kvm_coalesced_mmio()
            entry.phys_addr = address
            entry.len = UInt32(byteCount)
            entry.pio = isPort ? 1 : 0
            withUnsafeMutableBytes(of: &entry.data) { $0.storeBytes(of: value, as: UInt64.self) }
            entries[Int(insertion)] = entry
            // ORDERING: release pairs with the client's acquire: the entry is complete.
            last.pointee.store(next, ordering: .releasing)
            return true
        }
    }

    // SAFETY: the page begins with two words, which client and core access as atomics, and the entries follow.

    /// The next entry that the client reads. The client's.
    private var first: UnsafeMutablePointer<Atomic<UInt32>> {
        page.baseAddress.assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// The next entry that is written.
    private var last: UnsafeMutablePointer<Atomic<UInt32>> {
        (page.baseAddress + 4).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    private var entries: UnsafeMutablePointer<kvm_coalesced_mmio> {
        (page.baseAddress + MemoryLayout<kvm_coalesced_mmio_ring>.size)
            .assumingMemoryBound(to: kvm_coalesced_mmio.self)
    }
}
