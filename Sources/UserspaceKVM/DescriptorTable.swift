import Host
import KVMInterface
import SystemPackage

/// The objects that clients hold descriptors of.
///
/// Descriptors are small numbers, the lowest that is free, as those of files. An object lives as long as a descriptor or
/// another object refers to it: a vCPU keeps its machine.
/// > Concurrency: every member may be used from any thread.
final class DescriptorTable: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `entries` is guarded by `lock`.

    enum Object: Sendable {
        case system
        case machine(MachineReference)
        case vcpu(VCPUReference)
        case statistics(StatisticsFile)
    }

    /// A machine while it has descriptors, its own or those of its vCPUs. Its threads end with the last: they refer to the
    /// machine itself now and then, and cannot be ended where they let go of it.
    final class MachineReference: Sendable {
        let vm: UserspaceVM

        init(_ vm: UserspaceVM) { self.vm = vm }

        deinit { vm.endThreads() }
    }

    /// A vCPU and what keeps it alive; one object, so that a request counts no references that vCPUs share.
    final class VCPUReference: Sendable {
        let vcpu: UserspaceVCPU
        private let machine: MachineReference

        init(_ vcpu: UserspaceVCPU, of machine: MachineReference) {
            self.vcpu = vcpu
            self.machine = machine
        }
    }

    private enum Entry {
        case free
        case reserved
        case used(Object)
    }

    /// As the kernel's default hard limit on open files.
    private static let maximumCount = 1 << 20

    private let lock = FutexLock()
    private var entries: [Entry] = []
    /// No entry below this one is free.
    private var firstFree = 0

    /// - Throws: `EMFILE`.
    func add(_ object: Object) throws(Errno) -> KVMDescriptor {
        let slot = try reserve()
        fill(slot, with: object)
        return slot
    }

    /// Takes a number for an object that is still to be made.
    /// - Throws: `EMFILE`.
    func reserve() throws(Errno) -> KVMDescriptor {
        try lock.withLock { () throws(Errno) in
            while firstFree < entries.count {
                if case .free = entries[firstFree] { break }
                firstFree += 1
            }
            guard firstFree < Self.maximumCount else { throw .tooManyOpenFiles }
            if firstFree == entries.count { entries.append(.reserved) } else { entries[firstFree] = .reserved }
            firstFree += 1
            return KVMDescriptor(rawValue: Int32(firstFree - 1))
        }
    }

    /// Gives a reserved number its object.
    func fill(_ descriptor: KVMDescriptor, with object: Object) {
        lock.withLock { entries[Int(descriptor.rawValue)] = .used(object) }
    }

    /// - Throws: `EBADF`.
    func object(_ descriptor: KVMDescriptor) throws(Errno) -> Object {
        // Every exit passes here: no closure, which would be called through generic code.
        lock.lock()
        defer { lock.unlock() }
        let index = Int(descriptor.rawValue)
        guard entries.indices.contains(index), case .used(let object) = entries[index]
        else { throw .badFileDescriptor }
        return object
    }

    /// Frees the number. The object ends after this if nothing else refers to it.
    func remove(_ descriptor: KVMDescriptor) {
        // The entry is dropped behind the lock: the end of a machine takes time, and locks.
        let old: Entry? = lock.withLock {
            let index = Int(descriptor.rawValue)
            guard entries.indices.contains(index) else { return nil }
            let old = entries[index]
            entries[index] = .free
            firstFree = min(firstFree, index)
            return old
        }
        withExtendedLifetime(old) {}
    }
}
