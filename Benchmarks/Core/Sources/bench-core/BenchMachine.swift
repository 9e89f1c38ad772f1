import Glibc
import Host
import KVMInterface
import Synchronization
import UserspaceKVM

/// A machine whose vCPUs compute in guest code, to change memory slots under.
///
/// Memory: 512 KiB of code and data at 0; what is measured lies from `targetAddress` on, which real mode can reach.
final class BenchMachine {
    static let targetAddress: UInt64 = 0x8_0000
    static let targetByteCount = 0x1_0000

    /// What the guests do for ever.
    enum Loop {
        /// They count in their own memory.
        case compute
        /// They count in the target as well.
        case touch
        /// They read the target and note the longest time between two reads, in TSC cycles, at ``gapAddress``.
        case watch

        fileprivate var code: [UInt8] {
            switch self {
            case .compute:
                // again: inc dword [si] ; jmp again
                [0x66, 0xFF, 0x04, 0xEB, 0xFB]
            case .touch:
                // mov ax, 8000h ; mov es, ax ; again: inc dword [si] ; inc dword es:[si] ; jmp again
                [0xB8, 0x00, 0x80, 0x8E, 0xC0, 0x66, 0xFF, 0x04, 0x26, 0x66, 0xFF, 0x04, 0xEB, 0xF7]
            case .watch:
                // mov ax, 8000h ; mov es, ax ; rdtsc ; mov ecx, eax
                // again: mov edx, es:[si] ; rdtsc ; mov ebx, eax ; sub eax, ecx ; mov ecx, ebx ; cmp eax, [6100h]
                // jbe again ; mov [6100h], eax ; jmp again
                [
                    0xB8, 0x00, 0x80, 0x8E, 0xC0, 0x0F, 0x31, 0x66, 0x89, 0xC1,
                    0x26, 0x66, 0x8B, 0x14, 0x0F, 0x31, 0x66, 0x89, 0xC3, 0x66, 0x29, 0xC8, 0x66, 0x89, 0xD9,
                    0x66, 0x3B, 0x06, 0x00, 0x61, 0x76, 0xEA, 0x66, 0xA3, 0x00, 0x61, 0xEB, 0xE4
                ]
            }
        }
    }

    static let gapAddress = 0x6100

    let system: KVMSystem
    let machine: VirtualMachine
    let memory: UnsafeMutableRawPointer
    private(set) var cyclesPerMicrosecond = 1.0
    private var vcpus: [VCPU] = []
    private var threads: [HostThread] = []
    private let control = Control()

    private final class Control: Sendable {
        let isOver = Atomic<Bool>(false)
        /// 1 while no guest may run.
        let isBlocked = FutexWord(0)
        /// Guests that wait for that.
        let waiting = FutexWord(0)

        func waitUntilPermitted() {
            guard isBlocked.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 else { return }
            waiting.atomic.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
            waiting.wake()
            while isBlocked.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 { isBlocked.wait(while: 1) }
            waiting.atomic.pointee.wrappingSubtract(1, ordering: .sequentiallyConsistent)
        }
    }

    /// Starts `count` vCPUs; returns when all of them count.
    init(guests count: Int, _ loop: Loop) {
        do {
            memory = UnsafeMutableRawPointer(try MemoryMapping.anonymous(byteCount: 1 << 20).release().address)
            memory.initializeMemory(as: UInt8.self, repeating: 0, count: 1 << 20)
            (memory + 0x1000).copyMemory(from: loop.code, byteCount: loop.code.count)
            system = try KVMSystem(backend: UserspaceKVM())
            machine = try system.createVM()
            try set(0, at: 0, byteCount: 0x8_0000)
            try set(1, at: Self.targetAddress, byteCount: Self.targetByteCount)
            for id in 0..<count {
                let vcpu = try machine.createVCPU(id: UInt32(id))
                try vcpu.setCPUID(try system.supportedCPUID())
                var special = try vcpu.specialRegisters()
                special.cs.selector = 0
                special.cs.base = 0
                try vcpu.setSpecialRegisters(special)
                var registers = try vcpu.registers()
                registers.rip = 0x1000
                registers.rflags = 2
                registers.rsi = UInt64(0x6000 + 64 * id)
                try vcpu.setRegisters(registers)
                cyclesPerMicrosecond = Double(try vcpu.tscFrequency()) / 1000
                vcpus.append(vcpu)
                threads.append(
                    try HostThread(name: "guest \(id)") { [control] in
                        // What is deleted while it is touched becomes a device for a while.
                        do {
                            while !control.isOver.load(ordering: .relaxed) {
                                control.waitUntilPermitted()
                                if case .interrupted = try vcpu.run() { vcpu.immediateExit = false }
                            }
                        } catch { fatalError("a guest ends: \(error)") }
                    })
            }
        } catch { fatalError("the guests cannot be started: \(error)") }
        for id in 0..<count where loop != .watch {
            while memory.load(fromByteOffset: 0x6000 + 64 * id, as: UInt32.self) == 0 { usleep(100) }
        }
        usleep(2000)
    }

    /// Runs `body` while no guest is inside `KVM_RUN`: what a client without the batch does.
    func withGuestsOut(_ body: () throws -> Void) rethrows {
        control.isBlocked.atomic.pointee.store(1, ordering: .sequentiallyConsistent)
        for vcpu in vcpus { vcpu.requestExit() }
        while true {
            let count = control.waiting.atomic.pointee.load(ordering: .sequentiallyConsistent)
            if count == vcpus.count { break }
            control.waiting.wait(while: count)
        }
        try body()
        control.isBlocked.atomic.pointee.store(0, ordering: .sequentiallyConsistent)
        control.isBlocked.wake()
    }

    /// Waits until a guest computes: one that has just woken this thread may have lost its processor to it.
    func waitForProgress() {
        func sum() -> UInt64 {
            (0..<vcpus.count).reduce(0) { $0 &+ UInt64(memory.load(fromByteOffset: 0x6000 + 64 * $1, as: UInt32.self)) }
        }
        let before = sum()
        repeat { usleep(50) } while sum() == before && !vcpus.isEmpty
    }

    /// Makes sure that all guests compute.
    func checkProgress() {
        let before = (0..<vcpus.count).map { memory.load(fromByteOffset: 0x6000 + 64 * $0, as: UInt32.self) }
        usleep(100_000)
        for (id, old) in before.enumerated() {
            let new = memory.load(fromByteOffset: 0x6000 + 64 * id, as: UInt32.self)
            if new == old { fatalError("guest \(id) stands still after \(vcpus[id].runArea.exit)") }
        }
    }

    func stop() {
        control.isOver.store(true, ordering: .relaxed)
        for vcpu in vcpus { vcpu.requestExit() }
        for thread in threads { thread.join() }
        munmap(memory, 1 << 20)
    }

    func region(_ slot: UInt32, at address: UInt64, byteCount: Int, flags: UInt32 = 0) -> UserMemoryRegion {
        UserMemoryRegion(
            slot: slot, flags: flags, guest_phys_addr: address, memory_size: UInt64(byteCount),
            userspace_addr: UInt64(UInt(bitPattern: memory)) + address)
    }

    func set(_ slot: UInt32, at address: UInt64, byteCount: Int, flags: UInt32 = 0) throws {
        try machine.setUserMemoryRegion(region(slot, at: address, byteCount: byteCount, flags: flags))
    }

    /// Adds slots of one page each, far away, until there are `count`.
    func fill(to count: Int) {
        do {
            for index in 2..<max(count, 2) {
                try machine.setUserMemoryRegion(
                    UserMemoryRegion(
                        slot: UInt32(index), flags: 0, guest_phys_addr: 1 << 32 + UInt64(index) << 13,
                        memory_size: 4096, userspace_addr: UInt64(UInt(bitPattern: memory))))
            }
        } catch { fatalError("the slots cannot be made: \(error)") }
    }
}
