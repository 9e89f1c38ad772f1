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

    /// - Returns: the address, which the client unmaps.
    /// - Throws: `ENODEV` for what is no vCPU, `EPERM` for an executable mapping, `EINVAL` for a private or executable one
    ///   of a ring, or one of no or a misaligned range, `ENOMEM`.
    func perform(on file: ClientFile, _ backend: UserspaceKVM) throws(Errno) -> UnsafeMutableRawPointer {
        guard byteCount > 0, offset >= 0, offset & 4095 == 0 else { throw .invalidArgument }
        guard file.kind == .vcpu else { throw .operationNotSupportedByDevice }
        let isRing = offset + byteCount > Self.ringOffset
        guard protection & PROT_EXEC == 0 else { throw isRing ? .invalidArgument : .notPermitted }
        let memory = isRing ? try backend.mapDirtyRing(file.descriptor) : try backend.mapRunArea(file.descriptor)
        // The pages stay as long as the client maps them.
        defer { backend.unmapRunArea(memory) }
        let isShared = flags & MAP_TYPE == MAP_SHARED || flags & MAP_TYPE == MAP_SHARED_VALIDATE
        guard !isRing || isShared else { throw .invalidArgument }
        let start = isRing ? max(0, offset - Self.ringOffset) : offset
        let isFixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0
        return try MemoryMapping.alias(
            of: UnsafeMutableRawBufferPointer(rebasing: memory.dropFirst(start)), at: isFixed ? address : nil,
            byteCount: byteCount, protection: MemoryMapping.Protection(rawValue: protection))
    }
}
