import CHost
import Host
import KVMInterface
import SystemPackage

// Event descriptors in the place of exits and of requests, and writes that wait in the ring.
// > Source: Documentation/virt/kvm/api.rst, sections 4.59, 4.75 and 4.116.

extension UserspaceVM {
    // MARK: Writes that signal an event

    /// - Throws: `EINVAL` for unknown flags, lengths, a range that overflows, a value to compare with writes of any length, or a
    ///   descriptor of another kind; `EBADF`; `EEXIST` if another event takes such writes; `ENOENT` if there is none to remove.
    func setIOEvent(at argument: UInt) throws(Errno) {
        var request = kvm_ioeventfd()
        try ClientMemory.copyIn(&request, from: argument)
        let flags = IOEventFlags(rawValue: request.flags)
        // What is removed need not be valid: it is compared.
        if !flags.contains(.remove) { try Self.validate(request, flags) }
        let descriptor = try EventDescriptor(duplicating: request.fd)
        let trigger = EventTrigger(
            space: flags.space, address: request.addr, byteCount: Int(request.len),
            value: flags.contains(.dataMatch) ? request.datamatch : nil)
        if flags.contains(.remove) {
            try writes.removeEvent(trigger, identity: descriptor.identity)
        } else {
            try writes.addEvent(trigger, descriptor)
        }
    }

    private static func validate(_ request: kvm_ioeventfd, _ flags: IOEventFlags) throws(Errno) {
        guard [0, 1, 2, 4, 8].contains(request.len) else { throw .invalidArgument }
        guard !request.addr.addingReportingOverflow(UInt64(request.len)).overflow else { throw .invalidArgument }
        guard flags.isSubset(of: .all) else { throw .invalidArgument }
        if request.len == 0, flags.contains(.dataMatch) { throw .invalidArgument }
    }

    // MARK: Events that are interrupts

    /// - Throws: `EINVAL` for unknown flags, without local APICs, for a line that is resampled without IOAPIC, or a descriptor of
    ///   another kind; `EBADF`; `EBUSY` if the event is assigned already.
    func setInterruptEvent(at argument: UInt) throws(Errno) {
        var request = kvm_irqfd()
        try ClientMemory.copyIn(&request, from: argument)
        let flags = InterruptEventFlags(rawValue: request.flags)
        guard flags.isSubset(of: .all) else { throw .invalidArgument }
        if flags.contains(.remove) {
            let descriptor = try EventDescriptor(duplicating: Int32(bitPattern: request.fd))
            return interruptEvents.remove(gsi: request.gsi, identity: descriptor.identity)
        }
        guard let router, !flags.contains(.resample) || router.ioapic != nil else { throw .invalidArgument }
        let event = try EventDescriptor(duplicating: Int32(bitPattern: request.fd))
        var resample: EventDescriptor?
        if flags.contains(.resample) {
            resample = try EventDescriptor(duplicating: Int32(bitPattern: request.resamplefd))
        }
        try interruptEvents.assign(gsi: request.gsi, event: event, resample: resample, to: router)
    }

    // MARK: Writes that wait

    /// - Throws: `EINVAL` for a space that is neither ports nor memory, `ENOSPC` if there are too many zones.
    func registerCoalescedZone(at argument: UInt) throws(Errno) {
        try writes.addZone(try Self.decodeZone(at: argument))
    }

    /// - Throws: `EINVAL` for a space that is neither ports nor memory.
    func unregisterCoalescedZone(at argument: UInt) throws(Errno) {
        writes.removeZones(containing: try Self.decodeZone(at: argument))
    }

    private static func decodeZone(at argument: UInt) throws(Errno) -> CoalescedZone {
        var zone = kvm_coalesced_mmio_zone()
        try ClientMemory.copyIn(&zone, from: argument)
        guard zone.pio <= 1 else { throw .invalidArgument }
        return CoalescedZone(
            space: zone.pio == 1 ? .ports : .memory, address: zone.addr, byteCount: UInt64(zone.size))
    }
}

/// `KVM_IOEVENTFD_FLAG_…`, which are macros of an enumeration.
private struct IOEventFlags: OptionSet {
    let rawValue: UInt32

    static let dataMatch = Self(rawValue: 1 << 0)
    static let ports = Self(rawValue: 1 << 1)
    static let remove = Self(rawValue: 1 << 2)
    static let channels = Self(rawValue: 1 << 3)
    /// Has no effect: a length of 0 has.
    static let fastMMIO = Self(rawValue: 1 << 4)
    static let all: Self = [.dataMatch, .ports, .remove, .channels, .fastMMIO]

    var space: WriteSpace { contains(.ports) ? .ports : contains(.channels) ? .channels : .memory }
}

/// `KVM_IRQFD_FLAG_…`.
private struct InterruptEventFlags: OptionSet {
    let rawValue: UInt32

    static let remove = Self(rawValue: 1 << 0)
    static let resample = Self(rawValue: 1 << 1)
    static let all: Self = [.remove, .resample]
}
