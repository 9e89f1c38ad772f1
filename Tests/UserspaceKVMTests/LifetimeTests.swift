import Glibc
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

@Suite(.serialized) struct LifetimeTests {
    /// The number of the process's mappings.
    private func mappingCount() -> Int {
        guard let file = fopen("/proc/self/maps", "r") else { return 0 }
        defer { fclose(file) }
        var count = 0
        while true {
            let character = fgetc(file)
            if character == EOF { return count }
            if character == 10 { count += 1 }
        }
    }

    /// Machines, their processors and timer threads go away with their last descriptor.
    @Test func machinesEnd() throws {
        func useMachine() throws {
            let small = try SmallMachine(code: [0xE6, 0x10, 0xF4], hasIRQChip: true)
            try small.machine.createPIT2()
            _ = try small.machine.createVCPU(id: 1)
            guard case .io = try small.vcpu.run() else {
                Issue.record("no port exit")
                return
            }
        }
        try useMachine()
        let before = mappingCount()
        for _ in 0..<20 { try useMachine() }
        // Other tests run at the same time, and the allocator keeps arenas; a machine that stayed would leave dozens each.
        #expect(mappingCount() < before + 400)
    }

    /// The number of the process's descriptors that are event counters or wait for some.
    private func eventDescriptorCount() -> Int {
        guard let directory = opendir("/proc/self/fd") else { return 0 }
        defer { closedir(directory) }
        let descriptor = dirfd(directory)
        var count = 0
        while let entry = readdir(directory) {
            var target = [UInt8](repeating: 0, count: 64)
            _ = withUnsafePointer(to: &entry.pointee.d_name) { name in
                name.withMemoryRebound(to: CChar.self, capacity: 256) { name in
                    target.withUnsafeMutableBytes { bytes in
                        readlinkat(descriptor, name, bytes.baseAddress!.assumingMemoryBound(to: CChar.self), 64)
                    }
                }
            }
            if target.starts(with: "anon_inode:[event".utf8) { count += 1 }
        }
        return count
    }

    /// Descriptors of events go away with their assignments, and with the machine.
    @Test func eventDescriptorsAreClosed() throws {
        func useMachine() throws {
            let small = try SmallMachine(hasIRQChip: true)
            for index in 0..<10 {
                let (event, other) = (try TestEvent(), try TestEvent())
                let trigger = IOEvent(address: 0x10_0000 + UInt64(index) * 4, byteCount: 4)
                try small.machine.addIOEvent(trigger, descriptor: event.rawValue)
                try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20, resample: other.rawValue)
                #expect(throws: Errno.resourceBusy) {
                    try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 21, resample: other.rawValue)
                }
                #expect(throws: Errno.fileExists) {
                    try small.machine.addIOEvent(trigger, descriptor: other.rawValue)
                }
                guard index & 1 == 0 else { continue }
                try small.machine.removeIOEvent(trigger, descriptor: event.rawValue)
                try small.machine.removeInterruptEvent(descriptor: event.rawValue, gsi: 20)
            }
        }
        let before = eventDescriptorCount()
        for _ in 0..<20 { try useMachine() }
        // Other tests run at the same time; a machine that left its descriptors would leave a dozen each.
        #expect(eventDescriptorCount() < before + 100)
    }

    /// A vCPU keeps its machine, and a mapping its vCPU.
    @Test func descriptorsCloseInAnyOrder() throws {
        let backend = UserspaceKVM()
        let system = try backend.openSystem()
        let machine = KVMDescriptor(rawValue: try backend.ioctl(system, KVMRequest.createVM.rawValue, 0))
        let vcpu = KVMDescriptor(rawValue: try backend.ioctl(machine, KVMRequest.createVCPU.rawValue, 0))
        let area = try backend.mapRunArea(vcpu)
        backend.close(system)
        backend.close(machine)
        var registers = GeneralRegisters()
        try withUnsafeMutablePointer(to: &registers) { pointer in
            _ = try backend.ioctl(vcpu, KVMRequest.getRegisters.rawValue, UInt(bitPattern: pointer))
        }
        #expect(registers.rip == 0xFFF0)
        backend.close(vcpu)
        area[1] = 1
        backend.unmapRunArea(area)
    }
}
