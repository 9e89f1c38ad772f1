import KVMInterface
import SystemPackage
import UserspaceKVM

/// The core without the batch of slot changes, which the kernel's KVM does not have either.
final class MaskedBackend: KVMBackend {
    private let core = UserspaceKVM()

    func openSystem() throws(Errno) -> KVMDescriptor { try core.openSystem() }

    func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        if request == KVMRequest.setUserMemoryRegions.rawValue { throw .inappropriateIOCTLForDevice }
        if request == KVMRequest.checkExtension.rawValue, argument == UInt(KVMCapability.memoryRegionBatch.rawValue) {
            return 0
        }
        return try core.ioctl(descriptor, request, argument)
    }

    func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        try core.mapRunArea(vcpu)
    }

    func mapDirtyRing(_ vcpu: KVMDescriptor, byteCount: Int) throws(Errno) -> UnsafeMutableRawBufferPointer {
        try core.mapDirtyRing(vcpu, byteCount: byteCount)
    }

    func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) { core.unmapRunArea(area) }

    func kick(_ vcpu: KVMDescriptor) { core.kick(vcpu) }

    func close(_ descriptor: KVMDescriptor) { core.close(descriptor) }
}
