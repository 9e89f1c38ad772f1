import CHost
import Synchronization
import SystemPackage

/// Which writes of the guest signal an event descriptor instead of leaving the core.
public struct IOEvent: Equatable, Sendable {
    public var address: UInt64
    /// 1, 2, 4 or 8; 0 for writes of any size.
    public var byteCount: UInt32
    public var isPort: Bool
    /// Only writes of this value; nil for all.
    public var value: UInt64?

    public init(address: UInt64, byteCount: UInt32, isPort: Bool = false, value: UInt64? = nil) {
        self.address = address
        self.byteCount = byteCount
        self.isPort = isPort
        self.value = value
    }

    fileprivate func request(_ descriptor: Int32, flags: UInt32) -> kvm_ioeventfd {
        var request = kvm_ioeventfd()
        request.datamatch = value ?? 0
        request.addr = address
        request.len = byteCount
        request.fd = descriptor
        // The bits have the numbers of `KVM_IOEVENTFD_FLAG_…`.
        request.flags = flags | (value == nil ? 0 : 1 << 0) | (isPort ? 1 << 1 : 0)
        return request
    }
}

extension VirtualMachine {
    /// Lets writes of the guest signal `descriptor`, an `eventfd`, which may be closed afterwards. The corresponding C request
    /// is `KVM_IOEVENTFD`.
    /// - Throws: `Errno.fileExists` if another event takes such writes, `Errno.badFileDescriptor`, `Errno.invalidArgument`.
    public func addIOEvent(_ event: IOEvent, descriptor: Int32) throws(Errno) {
        try backend.call(self.descriptor, .setIOEvent, from: event.request(descriptor, flags: 0))
    }

    /// Takes an event back: after this no write signals it. The corresponding C request is `KVM_IOEVENTFD` with
    /// `KVM_IOEVENTFD_FLAG_DEASSIGN`.
    /// - Throws: `Errno.noSuchFileOrDirectory` if there is none like that.
    public func removeIOEvent(_ event: IOEvent, descriptor: Int32) throws(Errno) {
        try backend.call(self.descriptor, .setIOEvent, from: event.request(descriptor, flags: 1 << 2))
    }

    /// Lets signals of `descriptor`, an `eventfd`, raise the line `gsi`. The corresponding C request is `KVM_IRQFD`.
    ///
    /// - Parameter resample: an `eventfd` that is signalled when the guest has ended the interrupt, up to which the line stays
    ///   high; nil for edges.
    /// - Throws: `Errno.resourceBusy` if the descriptor has a line, `Errno.badFileDescriptor`, `Errno.invalidArgument`.
    public func addInterruptEvent(descriptor: Int32, gsi: UInt32, resample: Int32? = nil) throws(Errno) {
        var request = kvm_irqfd()
        request.fd = UInt32(bitPattern: descriptor)
        request.gsi = gsi
        request.flags = resample == nil ? 0 : 1 << 1
        request.resamplefd = UInt32(bitPattern: resample ?? 0)
        try backend.call(self.descriptor, .setInterruptEvent, from: request)
    }

    /// Takes an event back: after this its signals raise nothing. The corresponding C request is `KVM_IRQFD` with
    /// `KVM_IRQFD_FLAG_DEASSIGN`.
    public func removeInterruptEvent(descriptor: Int32, gsi: UInt32) throws(Errno) {
        var request = kvm_irqfd()
        request.fd = UInt32(bitPattern: descriptor)
        request.gsi = gsi
        request.flags = 1 << 0
        try backend.call(self.descriptor, .setInterruptEvent, from: request)
    }

    // MARK: Writes that wait

    /// Lets writes to a range wait in the machine's ring until the client reads it. The corresponding C request is
    /// `KVM_REGISTER_COALESCED_MMIO`.
    public func addCoalescedZone(address: UInt64, byteCount: UInt32, isPort: Bool = false) throws(Errno) {
        var zone = kvm_coalesced_mmio_zone()
        zone.addr = address
        zone.size = byteCount
        zone.pio = isPort ? 1 : 0
        try backend.call(descriptor, .registerCoalescedZone, from: zone)
    }

    /// Takes back every zone that contains the range. The corresponding C request is `KVM_UNREGISTER_COALESCED_MMIO`.
    public func removeCoalescedZones(address: UInt64, byteCount: UInt32, isPort: Bool = false) throws(Errno) {
        var zone = kvm_coalesced_mmio_zone()
        zone.addr = address
        zone.size = byteCount
        zone.pio = isPort ? 1 : 0
        try backend.call(descriptor, .unregisterCoalescedZone, from: zone)
    }
}

/// A write of the guest that waited in the ring. The corresponding C type is `kvm_coalesced_mmio`.
public struct CoalescedWrite: Equatable, Sendable {
    public var address: UInt64
    public var byteCount: Int
    public var isPort: Bool
    public var value: UInt64

    public init(address: UInt64, byteCount: Int, isPort: Bool = false, value: UInt64) {
        self.address = address
        self.byteCount = byteCount
        self.isPort = isPort
        self.value = value
    }
}

extension RunArea {
    /// Takes what waits in the machine's ring, the oldest write first.
    ///
    /// - Parameter pageOffset: the answer to ``KVMCapability/coalescedMMIO``.
    /// > Concurrency: one thread at a time; vCPUs may run meanwhile. All run areas of a machine show one ring.
    public func takeCoalescedWrites(pageOffset: Int) -> [CoalescedWrite] {
        let headerByteCount = MemoryLayout<kvm_coalesced_mmio_ring>.size
        let stride = MemoryLayout<kvm_coalesced_mmio>.stride
        let entryCount = UInt32((4096 - headerByteCount) / stride)
        precondition(bytes.count >= (pageOffset + 1) * 4096, "the run area has no ring")
        let ring = bytes.baseAddress! + pageOffset * 4096
        // SAFETY: the ring begins with the two words, which both sides access as atomics.
        let first = ring.assumingMemoryBound(to: Atomic<UInt32>.self)
        let last = first + 1
        var writes: [CoalescedWrite] = []
        var next = first.pointee.load(ordering: .relaxed)
        // ORDERING: acquire pairs with the core's release: the entries are complete.
        while next != last.pointee.load(ordering: .acquiring) {
            precondition(next < entryCount, "the ring's index is \(next)")
            let entry = (ring + headerByteCount + Int(next) * stride).load(as: kvm_coalesced_mmio.self)
            let mask: UInt64 = entry.len < 8 ? 1 << UInt64(entry.len * 8) - 1 : .max
            let value = withUnsafeBytes(of: entry.data) { $0.loadUnaligned(as: UInt64.self) } & mask
            writes.append(
                CoalescedWrite(
                    address: entry.phys_addr, byteCount: Int(entry.len), isPort: entry.pio != 0, value: value))
            next = (next + 1) % entryCount
            // ORDERING: release pairs with the core's acquire: the entry has been read.
            first.pointee.store(next, ordering: .releasing)
        }
        return writes
    }
}
