import Glibc
import Host
import KVMInterface
import SystemPackage
import UserspaceKVM

/// An `mmap` of a vCPU: its run area from offset 0 on, its dirty ring from page 64 on.
///
/// > Source: Documentation/virt/kvm/api.rst, sections 4.5 and 8.29.
struct VCPUMapping {
    let address: UnsafeMutableRawPointer?
    let byteCount: Int
    let protection: Int32
    let flags: Int32
    let offset: Int

    /// Where the dirty ring lies in the file. The corresponding C constant is `KVM_DIRTY_LOG_PAGE_OFFSET`.
    private static let ringOffset = 64 * 4096

    /// - Returns: the address, which the client unmaps. What is neither run area nor ring faults.
    /// - Throws: `ENODEV` for what is no vCPU, `EPERM` for an executable mapping, `EINVAL` for a private or executable one
    ///   of a ring, or one of no or a misaligned range, `EOVERFLOW`, `EEXIST` where `MAP_FIXED_NOREPLACE` says so, `ENOMEM`.
    func perform(on file: ClientFile, _ backend: UserspaceKVM) throws(Errno) -> UnsafeMutableRawPointer {
        guard byteCount > 0, offset >= 0, offset & 4095 == 0 else { throw .invalidArgument }
        let (end, isTooFar) = offset.addingReportingOverflow(byteCount)
        guard !isTooFar else { throw .overflow }
        guard file.kind == .vcpu else { throw .operationNotSupportedByDevice }
        // Only a ring that there is lies in the file.
        let ring = end > Self.ringOffset ? try? backend.mapDirtyRing(file.descriptor) : nil
        // The pages stay as long as the client maps them.
        defer { if let ring { backend.unmapRunArea(ring) } }
        let isExecutable = protection & PROT_EXEC != 0
        let isShared = flags & MAP_TYPE == MAP_SHARED || flags & MAP_TYPE == MAP_SHARED_VALIDATE
        if let ring, offset < Self.ringOffset + ring.count, isExecutable || !isShared { throw .invalidArgument }
        guard !isExecutable else { throw .notPermitted }
        let area = try backend.mapRunArea(file.descriptor)
        defer { backend.unmapRunArea(area) }
        let protection = MemoryMapping.Protection(rawValue: protection)
        let mapped = try MemoryMapping.alias(
            of: UnsafeMutableRawBufferPointer(rebasing: area.dropFirst(offset)),
            boundary: Limits.coalescedRingOffset - offset, at: placement, byteCount: byteCount, protection: protection)
        guard let ring else { return mapped }
        let ringStart = max(0, Self.ringOffset - offset)
        do {
            _ = try MemoryMapping.alias(
                of: UnsafeMutableRawBufferPointer(rebasing: ring.dropFirst(max(0, offset - Self.ringOffset))),
                at: .replacing(mapped + ringStart), byteCount: byteCount - ringStart, protection: protection)
        } catch {
            munmap(mapped, byteCount)
            throw error
        }
        return mapped
    }

    private var placement: MemoryMapping.Placement {
        guard let address else { return .anywhere }
        if flags & MAP_FIXED != 0 { return .replacing(address) }
        return flags & MAP_FIXED_NOREPLACE != 0 ? .free(address) : .anywhere
    }
}
