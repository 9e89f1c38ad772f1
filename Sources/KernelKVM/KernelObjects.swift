import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage

/// A file of KVM that is open. It is closed when the last reference goes: those of the table, and of requests that run.
final class KernelObject: Sendable {
    private let file: OwnedDescriptor
    /// nil for what is no vCPU.
    let gate: RunGate?

    init(_ file: consuming OwnedDescriptor, isVCPU: Bool) {
        self.file = file
        gate = isVCPU ? RunGate() : nil
    }

    var descriptor: KVMDescriptor { KVMDescriptor(rawValue: file.rawValue) }

    /// One `ioctl`; its argument is a number or an address.
    func request(_ number: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        try file.request(number, value: argument)
    }

    /// Copies from the file; 0 bytes are its end.
    func read(at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
        let count = pread(file.rawValue, buffer.baseAddress, buffer.count, offset)
        guard count >= 0 else { throw Errno(rawValue: errno) }
        return count
    }

    /// Maps a part of the file, shared.
    func map(offset: Int, byteCount: Int) throws(Errno) -> UnsafeMutableRawPointer {
        let area = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file.rawValue, offset)
        guard let area, area != MAP_FAILED else { throw Errno(rawValue: errno) }
        return area
    }
}

/// The objects that clients hold descriptors of, by number.
///
/// An object leaves the table before its file is closed, so a number that the kernel gives out again is never taken for
/// the old object; and as long as a request uses an object, its number is not given out again.
/// > Concurrency: every member may be used from any thread.
final class KernelObjects: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `objects` is guarded by `lock`.

    private let lock = FutexLock()
    private var objects: [KVMDescriptor: KernelObject] = [:]

    func add(_ file: consuming OwnedDescriptor, isVCPU: Bool) -> KVMDescriptor {
        let object = KernelObject(file, isVCPU: isVCPU)
        lock.withLock { objects[object.descriptor] = object }
        return object.descriptor
    }

    /// Takes over a descriptor that a request returned; it does not survive `exec`.
    func adopt(_ number: Int32, isVCPU: Bool) throws(Errno) -> KVMDescriptor {
        let file = OwnedDescriptor(owning: number)
        guard fcntl(number, F_SETFD, FD_CLOEXEC) == 0 else { throw Errno(rawValue: errno) }
        return add(file, isVCPU: isVCPU)
    }

    /// - Throws: `EBADF`.
    func object(_ descriptor: KVMDescriptor) throws(Errno) -> KernelObject {
        lock.lock()
        defer { lock.unlock() }
        guard let object = objects[descriptor] else { throw .badFileDescriptor }
        return object
    }

    func remove(_ descriptor: KVMDescriptor) {
        // Dropped behind the lock: the end of a machine takes time.
        let object = lock.withLock { objects.removeValue(forKey: descriptor) }
        withExtendedLifetime(object) {}
    }
}
