import Glibc
import Host
import KVMInterface
import enum MMU.MMUKind
import SystemPackage
import Translator

/// How accesses of guests are translated.
public typealias MMUKind = MMU.MMUKind

/// KVM in user space: the whole interface without hardware or kernel support.
///
/// > Concurrency: as `KVMBackend`.
public final class UserspaceKVM: KVMBackend, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `mappings` is guarded by `mappingLock`; the rest does not change.

    let host = HostProcessor()
    let descriptors = DescriptorTable()
    let supportedCPUID: [CPUIDEntry]
    let mmu: MMUKind

    private let mappingLock = FutexLock()
    /// What keeps mapped run areas alive, by their address.
    private var mappings: [UInt: [DescriptorTable.VCPUReference]] = [:]

    /// - Parameter mmu: how the accesses of guests are translated.
    public init(mmu: MMUKind = .walk) {
        self.mmu = mmu
        HostFaults.install()
        ClientSignals.activate()
        ClientSignals.deferSentFaults()
        supportedCPUID = SupportedCPUID(host: host, tscKilohertz: TSCFrequency.kilohertz).entries
    }

    /// - Throws: `ENODEV` if this machine's processor lacks AVX2 or BMI2.
    public func openSystem() throws(Errno) -> KVMDescriptor {
        guard host.canTranslate else { throw .operationNotSupportedByDevice }
        return try descriptors.add(.system)
    }

    public func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        ClientSignals.enterCore()
        defer { ClientSignals.leaveCore() }
        HostFaults.admit()
        let object = try descriptors.object(descriptor)
        guard let known = KVMRequest(rawValue: request) else {
            // KVM's own answers: a machine does not know the request, the others call it invalid.
            if case .machine = object { throw .inappropriateIOCTLForDevice }
            throw .invalidArgument
        }
        switch object {
        case .system: return try handleSystem(known, argument)
        case .machine(let reference):
            return try withExtendedLifetime(reference) { () throws(Errno) in
                try handleMachine(reference, known, argument)
            }
        case .vcpu(let reference):
            return try withExtendedLifetime(reference) { () throws(Errno) in
                if known == .getStatisticsDescriptor { return try openStatistics(of: reference) }
                return try reference.vcpu.handle(known, argument)
            }
        // A file that has no requests.
        case .statistics: throw .inappropriateIOCTLForDevice
        }
    }

    public func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        guard case .vcpu(let reference) = try descriptors.object(vcpu) else { throw .operationNotSupportedByDevice }
        return keep(reference, for: reference.vcpu.runArea.bytes)
    }

    /// - Throws: `EINVAL` if the vCPU has no ring or one of another size, `ENODEV` if it is no vCPU.
    public func mapDirtyRing(
        _ vcpu: KVMDescriptor, byteCount: Int
    ) throws(Errno) -> UnsafeMutableRawBufferPointer {
        let ring = try mapDirtyRing(vcpu)
        guard ring.count == byteCount else {
            unmapRunArea(ring)
            throw .invalidArgument
        }
        return ring
    }

    /// The vCPU's whole ring, as ``mapDirtyRing(_:byteCount:)``.
    /// - Throws: `EINVAL` if the vCPU has no ring, `ENODEV` if it is no vCPU.
    public func mapDirtyRing(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        guard case .vcpu(let reference) = try descriptors.object(vcpu) else { throw .operationNotSupportedByDevice }
        guard let ring = reference.vcpu.processor.dirtyRing else { throw .invalidArgument }
        return keep(reference, for: ring.bytes)
    }

    /// Keeps the vCPU alive while a part of it is mapped.
    private func keep(
        _ reference: DescriptorTable.VCPUReference, for area: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawBufferPointer {
        mappingLock.withLock { mappings[UInt(bitPattern: area.baseAddress), default: []].append(reference) }
        return area
    }

    public func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) {
        let address = UInt(bitPattern: area.baseAddress)
        let released = mappingLock.withLock { () -> DescriptorTable.VCPUReference? in
            let last = mappings[address]?.popLast()
            if mappings[address]?.isEmpty ?? false { mappings[address] = nil }
            return last
        }
        withExtendedLifetime(released) {}
    }

    public func readStatistics(
        _ descriptor: KVMDescriptor, at offset: Int, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int {
        guard case .statistics(let file) = try descriptors.object(descriptor) else { throw .invalidArgument }
        return file.read(at: offset, into: buffer)
    }

    /// As the other `readStatistics`, into memory of a client that may not be there.
    /// - Throws: `EFAULT`, and as the other.
    public func readStatistics(
        _ descriptor: KVMDescriptor, at offset: Int, to address: UInt, byteCount: Int
    ) throws(Errno) -> Int {
        guard case .statistics(let file) = try descriptors.object(descriptor) else { throw .invalidArgument }
        HostFaults.admit()
        let part = file.part(at: offset, byteCount: byteCount)
        try ClientMemory.copyOut(Array(part), to: address)
        return part.count
    }

    /// The corresponding C request is `KVM_GET_STATS_FD` of a vCPU; it does not wait for one that runs.
    private func openStatistics(of reference: DescriptorTable.VCPUReference) throws(Errno) -> Int32 {
        let file = StatisticsFile(identifier: "kvm-\(getpid())/vcpu-\(reference.vcpu.id)") {
            reference.vcpu.statistics
        }
        return try descriptors.add(.statistics(file)).rawValue
    }

    /// The corresponding C request is `KVM_GET_STATS_FD` of a machine.
    func openStatistics(of vm: UserspaceVM) throws(Errno) -> Int32 {
        let file = StatisticsFile(identifier: "kvm-\(getpid())") { vm.statistics }
        return try descriptors.add(.statistics(file)).rawValue
    }

    public func inspect(_ machine: KVMDescriptor) -> MachineInspection? {
        guard case .machine(let reference) = try? descriptors.object(machine) else { return nil }
        return reference.vm.inspect()
    }

    public func kick(_ vcpu: KVMDescriptor) {
        guard case .vcpu(let reference) = try? descriptors.object(vcpu) else { return }
        withExtendedLifetime(reference) { reference.vcpu.requests.kick() }
    }

    /// Makes the run of `vcpu` that goes on, or else the next one, return `EINTR`.
    public func interrupt(_ vcpu: KVMDescriptor) {
        guard case .vcpu(let reference) = try? descriptors.object(vcpu) else { return }
        withExtendedLifetime(reference) { reference.vcpu.signal(.interrupt) }
    }

    /// Takes back an ``interrupt(_:)`` that has not ended a run.
    public func withdrawInterrupt(_ vcpu: KVMDescriptor) {
        guard case .vcpu(let reference) = try? descriptors.object(vcpu) else { return }
        withExtendedLifetime(reference) { _ = reference.vcpu.takeSignal(.interrupt) }
    }

    public func close(_ descriptor: KVMDescriptor) { descriptors.remove(descriptor) }
}
