import CHost
import KVMInterface
import SystemPackage
import UserspaceKVM

// Requests that the typed interface has no methods for.

extension KVMBackend {
    /// A request that takes the address of `value` and may change it.
    @discardableResult
    func request<T>(_ descriptor: KVMDescriptor, _ request: KVMRequest, _ value: inout T) throws(Errno) -> Int32 {
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
            try ioctl(descriptor, request.rawValue, UInt(bitPattern: pointer))
        }
    }
}

extension VCPU {
    @discardableResult
    func request<T>(_ request: KVMRequest, _ value: T) throws(Errno) -> Int32 {
        var value = value
        return try backend.request(descriptor, request, &value)
    }

    /// The reason of the exit that follows, or -1 for an interruption.
    func runForReason() throws -> Int32 {
        if case .interrupted = try run() { return -1 }
        return Int32(runArea.run.pointee.exit_reason)
    }

    /// `KVM_GET_DEVICE_ATTR` and its like.
    func attribute(
        _ request: KVMRequest, group: UInt32 = 0, _ attribute: UInt64, _ value: inout UInt64
    ) throws(Errno) {
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
            let argument = kvm_device_attr(
                flags: 0, group: group, attr: attribute, addr: UInt64(UInt(bitPattern: pointer)))
            try self.request(request, argument)
        }
    }
}
