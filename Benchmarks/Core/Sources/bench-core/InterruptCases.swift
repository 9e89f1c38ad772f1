import Glibc
import Host
import KVMInterface
import Synchronization
import UserspaceKVM

/// Two vCPUs that halt until the other one sends an interrupt.
enum InterruptCases {
    /// Enables the x2APIC; then, for ever: sends vector 0x45 to the vCPU in EDI, halts until an interrupt, counts at [SI]. With
    /// EBX 0 it waits first.
    private static let code: [UInt8] = [
        0x66, 0xB9, 0x1B, 0x00, 0x00, 0x00, 0x0F, 0x32, 0x66, 0x0D, 0x00, 0x0C, 0x00, 0x00, 0x0F, 0x30,
        0x66, 0xB9, 0x0F, 0x08, 0x00, 0x00, 0x66, 0xB8, 0xFF, 0x01, 0x00, 0x00, 0x66, 0x31, 0xD2, 0x0F, 0x30,
        0x66, 0x85, 0xDB, 0x74, 0x11, 0x66, 0xB9, 0x30, 0x08, 0x00, 0x00, 0x66, 0x89, 0xFA,
        0x66, 0xB8, 0x45, 0x00, 0x00, 0x00, 0x0F, 0x30, 0xFB, 0xF4, 0xFA, 0x66, 0xFF, 0x04, 0xEB, 0xE7
    ]
    /// Ends the interrupt.
    private static let handler: [UInt8] = [
        0x66, 0x51, 0x66, 0x50, 0x66, 0x52, 0x66, 0xB9, 0x0B, 0x08, 0x00, 0x00, 0x66, 0x31, 0xC0, 0x66, 0x31, 0xD2,
        0x0F, 0x30, 0x66, 0x5A, 0x66, 0x58, 0x66, 0x59, 0xCF
    ]

    static func report() {
        do {
            let rounds = try measure()
            print("\n| interrupts between two halted vCPUs | µs |\n|---|---|")
            print("| there and back | \(Measure.text(rounds)) |")
        } catch { fatalError("the vCPUs cannot be run: \(error)") }
    }

    /// The median of a hundred periods, in µs for a round.
    private static func measure() throws -> Double {
        let memory = try MemoryMapping.anonymous(byteCount: 1 << 20).release().address
        (memory + 0x1000).copyMemory(from: code, byteCount: code.count)
        (memory + 0x3000).copyMemory(from: handler, byteCount: handler.count)
        memory.storeBytes(of: 0x3000, toByteOffset: 0x45 * 4, as: UInt32.self)
        let system = try KVMSystem(backend: UserspaceKVM())
        let machine = try system.createVM()
        try machine.createIRQChip()
        try machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 1 << 20,
                userspace_addr: UInt64(UInt(bitPattern: memory))))
        var vcpus: [VCPU] = []
        var threads: [HostThread] = []
        // The one that waits comes first.
        for id: UInt64 in [1, 0] {
            let vcpu = try machine.createVCPU(id: UInt32(id))
            try vcpu.setCPUID(try system.supportedCPUID())
            var special = try vcpu.specialRegisters()
            special.cs.selector = 0
            special.cs.base = 0
            try vcpu.setSpecialRegisters(special)
            var registers = try vcpu.registers()
            registers.rip = 0x1000
            registers.rflags = 2
            registers.rsp = 0x8000 + 0x1000 * id
            registers.rbx = 1 - id
            registers.rdi = 1 - id
            registers.rsi = 0x6000 + 64 * id
            try vcpu.setRegisters(registers)
            try vcpu.setMPState(.runnable)
            vcpus.append(vcpu)
            threads.append(
                try HostThread(name: "vCPU \(id)") {
                    while case .some(let exit) = try? vcpu.run() {
                        if case .interrupted = exit { return }
                    }
                })
            usleep(20_000)
        }
        func count() -> UInt32 { memory.load(fromByteOffset: 0x6000, as: UInt32.self) }
        let periods = (0..<100).map { _ in
            let start = (count(), MonotonicClock.nanoseconds())
            usleep(5000)
            let end = (count(), MonotonicClock.nanoseconds())
            return Double(end.1 - start.1) / 1000 / Double(max(end.0 &- start.0, 1))
        }
        for vcpu in vcpus { vcpu.requestExit() }
        for thread in threads { thread.join() }
        munmap(memory, 1 << 20)
        return periods.sorted()[periods.count / 2]
    }
}
