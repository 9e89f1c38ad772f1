import CHost
import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage

/// The kernel's KVM.
///
/// Requests go to `/dev/kvm` as they are: a number of a descriptor here is the number of the file. What is added is safety:
/// only descriptors that this backend made are used or closed, a request keeps the file that it works on open, and
/// ``kick(_:)`` reaches a thread in `KVM_RUN` and no other.
///
/// > Concurrency: as `KVMBackend`.
/// > Source: Documentation/virt/kvm/api.rst.
public final class KernelKVM: KVMBackend, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `mappings` is guarded by `mappingLock`.

    private let path: String
    private let objects = KernelObjects()
    /// The size of run areas in bytes; 0 before the system is opened.
    private let runAreaByteCount = Atomic<Int>(0)
    /// The byte counts of what is mapped, by its address.
    private var mappings: [UInt: Int] = [:]
    private let mappingLock = FutexLock()

    /// - Parameter path: the device.
    public init(path: String = "/dev/kvm") { self.path = path }

    /// - Throws: as `open`; `ENOTTY` if the file is no KVM; `EBUSY` if all real-time signals have handlers.
    public func openSystem() throws(Errno) -> KVMDescriptor {
        let file = try OwnedDescriptor.open(path: path, flags: O_RDWR)
        guard KickSignal.number != nil else { throw .resourceBusy }
        let byteCount = try file.request(KVMRequest.getVCPUMapSize.rawValue)
        // ORDERING: relaxed: it is the same number each time, and whoever maps was given a vCPU after this.
        runAreaByteCount.store(Int(byteCount), ordering: .relaxed)
        return objects.add(file, isVCPU: false)
    }

    /// - Throws: `EBADF` for a descriptor that is not this backend's; otherwise as the kernel.
    public func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        let object = try objects.object(descriptor)
        switch request {
        case KVMRequest.run.rawValue:
            guard let gate = object.gate else { break }
            return try gate.run { () throws(Errno) in try object.request(request, argument) }
        case KVMRequest.setSignalMask.rawValue where argument != 0 && object.gate != nil:
            return try SignalMask.set(on: object, argument)
        case KVMRequest.createVM.rawValue, KVMRequest.getStatisticsDescriptor.rawValue:
            return try objects.adopt(try object.request(request, argument), isVCPU: false).rawValue
        case KVMRequest.createVCPU.rawValue:
            return try objects.adopt(try object.request(request, argument), isVCPU: true).rawValue
        default: break
        }
        return try object.request(request, argument)
    }

    /// - Throws: `EBADF` for a descriptor that is not this backend's, `ENODEV` for one that is no vCPU's; otherwise as `mmap`.
    public func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        try map(vcpu, offset: 0, byteCount: runAreaByteCount.load(ordering: .relaxed))
    }

    /// - Throws: as ``mapRunArea(_:)``; `EINVAL` if the vCPU has no ring, or one of another size.
    public func mapDirtyRing(
        _ vcpu: KVMDescriptor, byteCount: Int
    ) throws(Errno) -> UnsafeMutableRawBufferPointer {
        try map(vcpu, offset: Int(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096, byteCount: byteCount)
    }

    private func map(
        _ vcpu: KVMDescriptor, offset: Int, byteCount: Int
    ) throws(Errno) -> UnsafeMutableRawBufferPointer {
        let area = try objects.object(vcpu).map(offset: offset, byteCount: byteCount)
        mappingLock.withLock { mappings[UInt(bitPattern: area)] = byteCount }
        return UnsafeMutableRawBufferPointer(start: area, count: byteCount)
    }

    /// Does nothing for memory that this backend did not map, or that was unmapped before.
    public func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) {
        let address = UInt(bitPattern: area.baseAddress)
        guard let byteCount = mappingLock.withLock({ mappings.removeValue(forKey: address) }) else { return }
        // SAFETY: `mapRunArea` mapped it, and the entry that was removed is the right to unmap it, once.
        munmap(area.baseAddress, byteCount)
    }

    /// - Throws: `EBADF` for a descriptor that is not this backend's; otherwise as `pread`.
    public func readStatistics(
        _ descriptor: KVMDescriptor, at offset: Int, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int { try objects.object(descriptor).read(at: offset, into: buffer) }

    public func kick(_ vcpu: KVMDescriptor) {
        guard let object = try? objects.object(vcpu) else { return }
        object.gate?.kick()
    }

    /// Does nothing for a descriptor that is not this backend's, or no longer. The file is closed when the last request on it
    /// has returned.
    public func close(_ descriptor: KVMDescriptor) { objects.remove(descriptor) }
}
