import CHost
import SystemPackage

/// An open KVM: what the machine can do, and the way to virtual machines.
public final class KVMSystem: Sendable {
    public let backend: any KVMBackend
    public let descriptor: KVMDescriptor

    /// Opens KVM and checks that it speaks this interface.
    /// - Throws: the error of opening it; `Errno.notSupported` if its API version is not 12.
    public init(backend: any KVMBackend) throws(Errno) {
        self.backend = backend
        descriptor = try backend.openSystem()
        guard try apiVersion() == KVM_API_VERSION else { throw .notSupported }
    }

    deinit { backend.close(descriptor) }

    /// The corresponding C request is `KVM_GET_API_VERSION`.
    public func apiVersion() throws(Errno) -> Int32 { try backend.call(descriptor, .getAPIVersion) }

    /// Whether, or how far, `capability` is there; 0 if not. The corresponding C request is `KVM_CHECK_EXTENSION`.
    public func checkExtension(_ capability: KVMCapability) throws(Errno) -> Int {
        Int(try backend.call(descriptor, .checkExtension, UInt(capability.rawValue)))
    }

    /// The CPUID leaves a guest can be given. The corresponding C request is `KVM_GET_SUPPORTED_CPUID`.
    public func supportedCPUID() throws(Errno) -> [CPUIDEntry] {
        try growing { count throws(Errno) in
            try self.backend.call(
                self.descriptor, .getSupportedCPUID, headerByteCount: 8,
                elements: [CPUIDEntry](repeating: .init(), count: count)
            ).elements
        }
    }

    /// The registers that state transfer has to carry. The corresponding C request is `KVM_GET_MSR_INDEX_LIST`.
    public func msrIndices() throws(Errno) -> [UInt32] { try indexList(.getMSRIndexList) }

    /// The corresponding C request is `KVM_GET_MSR_FEATURE_INDEX_LIST`.
    public func msrFeatureIndices() throws(Errno) -> [UInt32] { try indexList(.getMSRFeatureIndexList) }

    private func indexList(_ request: KVMRequest) throws(Errno) -> [UInt32] {
        try growing { count throws(Errno) in
            try self.backend.call(
                self.descriptor, request, headerByteCount: 4, elements: [UInt32](repeating: 0, count: count)
            ).elements
        }
    }

    /// Calls `body` with larger counts until its answer fits.
    private func growing<T>(_ body: (Int) throws(Errno) -> [T]) throws(Errno) -> [T] {
        var count = 128
        while true {
            do {
                return try body(count)
            } catch Errno.argListTooLong where count < 65536 {
                count *= 2
            }
        }
    }

    /// The size of a vCPU's run area in bytes. The corresponding C request is `KVM_GET_VCPU_MMAP_SIZE`.
    public func vcpuMapSize() throws(Errno) -> Int { Int(try backend.call(descriptor, .getVCPUMapSize)) }

    /// The corresponding C request is `KVM_CREATE_VM`.
    public func createVM() throws(Errno) -> VirtualMachine {
        VirtualMachine(
            backend: backend, descriptor: KVMDescriptor(rawValue: try backend.call(descriptor, .createVM)))
    }
}
