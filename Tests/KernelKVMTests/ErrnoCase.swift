import Host
import KVMInterface
import SystemPackage

/// One machine with and one without interrupt controllers, a vCPU in each, on one backend.
final class ErrnoFixture {
    let backend: any KVMBackend
    let system: KVMDescriptor
    let plain: KVMDescriptor
    let plainVCPU: KVMDescriptor
    let full: KVMDescriptor
    let fullVCPU: KVMDescriptor
    /// Without vCPUs.
    let empty: KVMDescriptor
    /// Closed again.
    let closedMachine: KVMDescriptor
    let closedVCPU: KVMDescriptor
    let event: OwnedDescriptor
    let other: OwnedDescriptor
    /// No event.
    let file: OwnedDescriptor
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    private let guarded: MemoryMapping
    let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 4096)

    init(_ backend: any KVMBackend) throws {
        self.backend = backend
        event = try OwnedDescriptor.eventCounter()
        other = try OwnedDescriptor.eventCounter()
        file = try OwnedDescriptor.open(path: "/dev/null")
        guarded = try MemoryMapping.anonymous(byteCount: 8192)
        system = try backend.openSystem()
        func create(_ parent: KVMDescriptor, _ request: KVMRequest, _ argument: UInt) throws -> KVMDescriptor {
            KVMDescriptor(rawValue: try backend.ioctl(parent, request.rawValue, argument))
        }
        plain = try create(system, .createVM, 0)
        plainVCPU = try create(plain, .createVCPU, 3)
        full = try create(system, .createVM, 0)
        _ = try backend.ioctl(full, KVMRequest.createIRQChip.rawValue, 0)
        fullVCPU = try create(full, .createVCPU, 0)
        empty = try create(system, .createVM, 0)
        closedMachine = try create(system, .createVM, 0)
        closedVCPU = try create(closedMachine, .createVCPU, 0)
        backend.close(closedMachine)
        backend.close(closedVCPU)
        // The second page cannot be accessed.
        try guarded.protect(4096..<8192, .none)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        for descriptor in [empty, fullVCPU, full, plainVCPU, plain, system] { backend.close(descriptor) }
        memory.deallocate()
        scratch.deallocate()
    }

    /// The first address that cannot be accessed; what lies before it can.
    var end: UnsafeMutableRawPointer { guarded.baseAddress + 4096 }

    /// The request's result where only the first bytes of its structure, which are `words`, can be accessed.
    func callAtTheEnd(_ descriptor: KVMDescriptor, _ request: KVMRequest, words: [UInt32]) -> Int32 {
        let start = end - words.count * 4
        words.withUnsafeBytes { start.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        return call(descriptor, request.rawValue, UInt(bitPattern: start))
    }

    /// The request's result or negative error number, after the words were put in the scratch buffer.
    func call(_ descriptor: KVMDescriptor, _ request: UInt32, words: [UInt32]) -> Int32 {
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
        words.withUnsafeBytes { scratch.copyMemory(from: $0) }
        return call(descriptor, request, UInt(bitPattern: scratch.baseAddress))
    }

    func call(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) -> Int32 {
        do throws(Errno) {
            return try backend.ioctl(descriptor, request, argument)
        } catch {
            return -error.rawValue
        }
    }

    func call(_ descriptor: KVMDescriptor, _ request: KVMRequest, _ argument: UInt = 0) -> Int32 {
        call(descriptor, request.rawValue, argument)
    }

    func call(_ descriptor: KVMDescriptor, _ request: KVMRequest, words: [UInt32]) -> Int32 {
        call(descriptor, request.rawValue, words: words)
    }

    /// The request's result for a structure of the ABI.
    func give<T>(_ descriptor: KVMDescriptor, _ request: KVMRequest, _ value: T) -> Int32 {
        var copy = value
        return withUnsafeMutablePointer(to: &copy) { call(descriptor, request.rawValue, UInt(bitPattern: $0)) }
    }

    /// The request's result for the structure that `get` reads, changed.
    func change<T>(
        _ descriptor: KVMDescriptor, _ get: KVMRequest, _ set: KVMRequest, _ value: T, _ change: (inout T) -> Void
    ) -> Int32 {
        var copy = value
        let result = withUnsafeMutablePointer(to: &copy) { call(descriptor, get.rawValue, UInt(bitPattern: $0)) }
        guard result >= 0 else { return result }
        change(&copy)
        return give(descriptor, set, copy)
    }

    func region(_ slot: UInt32, _ flags: UInt32, _ gpa: UInt64, _ size: UInt64, offset: Int = 0) -> [UInt32] {
        region(slot, flags, gpa, size, address: UInt64(UInt(bitPattern: memory.baseAddress! + offset)))
    }

    func region(_ slot: UInt32, _ flags: UInt32, _ gpa: UInt64, _ size: UInt64, address: UInt64) -> [UInt32] {
        [slot, flags] + [gpa, size, address].flatMap { [UInt32(truncatingIfNeeded: $0), UInt32($0 >> 32)] }
    }
}

/// One request and what KVM answers.
struct ErrnoCase {
    let name: String
    /// A result, or a negative error number.
    let expected: Int32
    /// What the kernel answers in its place, or older ones did.
    let alternative: Int32?
    let body: (ErrnoFixture) -> Int32

    init(_ name: String, _ expected: Int32, kernel: Int32? = nil, _ body: @escaping (ErrnoFixture) -> Int32) {
        self.name = name
        self.expected = expected
        alternative = kernel
        self.body = body
    }

    init(_ name: String, _ error: Errno, kernel: Int32? = nil, _ body: @escaping (ErrnoFixture) -> Int32) {
        self.init(name, -error.rawValue, kernel: kernel, body)
    }
}
