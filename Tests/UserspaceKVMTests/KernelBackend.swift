import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage

/// The kernel's KVM, to compare with.
final class KernelBackend: KVMBackend {
    /// nil where there is no usable `/dev/kvm`.
    static let shared: KernelBackend? = {
        let backend = KernelBackend()
        guard let system = try? backend.openSystem() else { return nil }
        defer { backend.close(system) }
        guard let vm = try? backend.ioctl(system, KVMRequest.createVM.rawValue, 0) else { return nil }
        backend.close(KVMDescriptor(rawValue: vm))
        return backend
    }()

    func openSystem() throws(Errno) -> KVMDescriptor {
        let file = open("/dev/kvm", O_RDWR | O_CLOEXEC)
        guard file >= 0 else { throw Errno(rawValue: errno) }
        return KVMDescriptor(rawValue: file)
    }

    func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        let result = martlet_ioctl_value(descriptor.rawValue, UInt(request), argument)
        guard result >= 0 else { throw Errno(rawValue: errno) }
        return result
    }

    func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        let byteCount = 3 * 4096
        let area = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.rawValue, 0)
        guard let area, area != MAP_FAILED else { throw Errno(rawValue: errno) }
        return UnsafeMutableRawBufferPointer(start: area, count: byteCount)
    }

    func mapDirtyRing(_ vcpu: KVMDescriptor, byteCount: Int) throws(Errno) -> UnsafeMutableRawBufferPointer {
        let offset = Int(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096
        let area = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.rawValue, offset)
        guard let area, area != MAP_FAILED else { throw Errno(rawValue: errno) }
        return UnsafeMutableRawBufferPointer(start: area, count: byteCount)
    }

    func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) { munmap(area.baseAddress, area.count) }

    /// The tests that use this backend do not run guests.
    func kick(_ vcpu: KVMDescriptor) {}

    func close(_ descriptor: KVMDescriptor) { _ = Glibc.close(descriptor.rawValue) }
}
