import SystemPackage

/// Names an object of a backend: the system, a virtual machine or a virtual CPU.
///
/// What the number means is the backend's affair: a file descriptor for the kernel, a table index for the core in user
/// space.
public struct KVMDescriptor: RawRepresentable, Hashable, Sendable {
    public let rawValue: Int32
    @inlinable public init(rawValue: Int32) { self.rawValue = rawValue }
}

/// The KVM interface as its system calls.
///
/// The arguments and the memory they point to are KVM's ABI to the bit, so a client in another language can be passed
/// straight through. Swift code uses ``KVMSystem``, ``VirtualMachine`` and ``VCPU`` instead.
/// > Concurrency: every method may be called from any thread.
public protocol KVMBackend: AnyObject, Sendable {
    /// `open("/dev/kvm")`.
    func openSystem() throws(Errno) -> KVMDescriptor

    /// `ioctl(descriptor, request, argument)`. Its result is not negative; a descriptor for requests that create one.
    /// - Parameter argument: a number, or the address of the request's structure.
    func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32

    /// `mmap` of a vCPU: the `kvm_run` structure and the pages behind it. Valid until the vCPU's last descriptor is closed
    /// and ``unmapRunArea(_:)`` was called.
    func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer

    /// `mmap` of a vCPU's dirty ring, which has `byteCount` bytes, at `KVM_DIRTY_LOG_PAGE_OFFSET`. Valid as long as what
    /// ``mapRunArea(_:)`` returned.
    func mapDirtyRing(_ vcpu: KVMDescriptor, byteCount: Int) throws(Errno) -> UnsafeMutableRawBufferPointer

    /// `munmap` of what ``mapRunArea(_:)`` or ``mapDirtyRing(_:byteCount:)`` returned.
    func unmapRunArea(_ area: UnsafeMutableRawBufferPointer)

    /// Makes a thread that is inside `KVM_RUN` of `vcpu` look at `immediate_exit`; nothing happens if there is none.
    ///
    /// KVM has no such call: its clients send a signal, and so does a backend over the kernel.
    func kick(_ vcpu: KVMDescriptor)

    /// `pread` of what `KVM_GET_STATS_FD` returned: copies from the statistics as they are now.
    ///
    /// - Returns: how many bytes there were; 0 behind the end.
    func readStatistics(
        _ descriptor: KVMDescriptor, at offset: Int, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int

    /// What the machine's core looks like from inside; nil if the backend does not tell.
    func inspect(_ machine: KVMDescriptor) -> MachineInspection?

    /// `close`. The object lives on while others refer to it, as a virtual CPU refers to its machine.
    func close(_ descriptor: KVMDescriptor)
}

extension KVMBackend {
    /// A backend without dirty rings: as `mmap` where there is none.
    public func mapDirtyRing(
        _ vcpu: KVMDescriptor, byteCount: Int
    ) throws(Errno) -> UnsafeMutableRawBufferPointer { throw .invalidArgument }

    /// A backend without statistics.
    public func readStatistics(
        _ descriptor: KVMDescriptor, at offset: Int, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int { throw .badFileDescriptor }

    public func inspect(_ machine: KVMDescriptor) -> MachineInspection? { nil }
}

// The types below are the ABI's C structures: trivial, though Swift cannot see it of those with unions.
extension KVMBackend {
    /// A request whose argument is a number.
    @discardableResult
    func call(_ descriptor: KVMDescriptor, _ request: KVMRequest, _ argument: UInt = 0) throws(Errno) -> Int32 {
        try ioctl(descriptor, request.rawValue, argument)
    }

    /// A request that takes the address of `value` and may change it.
    @discardableResult
    func call<T>(
        _ descriptor: KVMDescriptor, _ request: KVMRequest, with value: inout T
    ) throws(Errno) -> Int32 {
        try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) -> Int32 in
            try ioctl(descriptor, request.rawValue, UInt(bitPattern: pointer))
        }
    }

    /// A request that reads `value`.
    @discardableResult
    func call<T>(
        _ descriptor: KVMDescriptor, _ request: KVMRequest, from value: T
    ) throws(Errno) -> Int32 {
        var copy = value
        return try call(descriptor, request, with: &copy)
    }

    /// A request whose argument is a count followed by that many elements.
    ///
    /// - Parameters:
    ///   - headerByteCount: the offset of the first element.
    ///   - elements: what the request is given.
    /// - Returns: the call's result, and the elements that are then in place: the backend may have lowered the count.
    @discardableResult
    func call<T>(
        _ descriptor: KVMDescriptor, _ request: KVMRequest, headerByteCount: Int, elements: [T]
    ) throws(Errno) -> (result: Int32, elements: [T]) {
        let byteCount = headerByteCount + elements.count * MemoryLayout<T>.stride
        let storage = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
        defer { storage.deallocate() }
        storage.initializeMemory(as: UInt8.self, repeating: 0)
        storage.storeBytes(of: UInt32(elements.count), as: UInt32.self)
        elements.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(rebasing: storage[headerByteCount...]).copyMemory(from: bytes)
        }
        let result = try ioctl(descriptor, request.rawValue, UInt(bitPattern: storage.baseAddress!))
        let count = min(Int(storage.load(as: UInt32.self)), elements.count)
        let answer = (0..<count).map { index in
            storage.load(fromByteOffset: headerByteCount + index * MemoryLayout<T>.stride, as: T.self)
        }
        return (result, answer)
    }
}
