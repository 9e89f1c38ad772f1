import CHost
import Glibc
import Host
import KVMInterface
import KernelKVM
import Synchronization
import SystemPackage
import UserspaceKVM

/// The kernel's KVM of this machine, for tests that compare.
enum KernelDevice {
    /// Opens, and makes machines.
    static let isUsable: Bool = {
        guard let system = try? KVMSystem(backend: KernelKVM()) else { return false }
        return (try? system.createVM()) != nil
    }()
    /// Runs guests on the processor.
    static let isNative: Bool = {
        guard isUsable, let system = try? KVMSystem(backend: KernelKVM()),
            case .works(let speed) = AccelerationProbe.run(on: system, timeLimitNanoseconds: 2_000_000_000)
        else { return false }
        return speed.isNative
    }()
    static let notNative =
        "needs a /dev/kvm that runs guests on the processor; this one, if there is one, only emulates"
    static let missing = "needs a /dev/kvm that opens and makes machines"
}

/// A backend under test.
enum Core: CaseIterable, Sendable {
    case user, kernel

    /// Those that this machine has.
    static var available: [Core] { KernelDevice.isUsable ? [.user, .kernel] : [.user] }

    /// Those that run guests on the processor: a kernel that emulates them looks at requests only now and then.
    static var native: [Core] { KernelDevice.isNative ? [.user, .kernel] : [.user] }

    func make() -> any KVMBackend {
        switch self {
        case .user: UserspaceKVM()
        case .kernel: KernelKVM()
        }
    }
}

/// A machine of one vCPU with a MiB of memory, on any backend.
final class TestMachine {
    static let byteCount = 1 << 20
    static let codeAddress = 0x1000

    enum Mode: Sendable {
        case real
        /// As `real`; the page at 0x8000 is read-only.
        case rom
        /// 64-bit mode: 0 to 2 MiB and 1 GiB to 1 GiB + 2 MiB are mapped to where they are.
        case long
    }

    let system: KVMSystem
    let machine: VirtualMachine
    let vcpu: VCPU
    let memory: UnsafeMutableRawBufferPointer

    /// - Parameter splitPinCount: local APICs only, with that many pins of the client's IOAPIC.
    init(
        _ backend: any KVMBackend, code: [UInt8] = [], mode: Mode = .real, hasIRQChip: Bool = false,
        splitPinCount: Int? = nil
    ) throws {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.byteCount, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        for (index, byte) in code.enumerated() { memory[Self.codeAddress + index] = byte }
        self.memory = memory
        system = try KVMSystem(backend: backend)
        machine = try system.createVM()
        if hasIRQChip { try machine.createIRQChip() }
        if let splitPinCount { try machine.createSplitIRQChip(reservedPinCount: splitPinCount) }
        let slots = mode == .rom ? [0, 0x8000, 0x9000, Self.byteCount] : [0, Self.byteCount]
        for (slot, (start, end)) in zip(slots, slots.dropFirst()).enumerated() {
            try machine.setUserMemoryRegion(
                UserMemoryRegion(
                    slot: UInt32(slot), flags: slot == 1 ? MemoryRegionFlags.readOnly.rawValue : 0,
                    guest_phys_addr: UInt64(start), memory_size: UInt64(end - start),
                    userspace_addr: UInt64(UInt(bitPattern: memory.baseAddress! + start))))
        }
        vcpu = try machine.createVCPU(id: 0)
        try vcpu.setCPUID(try system.supportedCPUID())
        try enter(mode)
    }

    deinit { memory.deallocate() }

    /// Runs until the next exit; `.interrupted` if there is none for seconds.
    func run() throws -> VCPUExit {
        let vcpu = vcpu
        let hasEnded = FutexWord()
        let deadline = MonotonicClock.nanoseconds() + 5_000_000_000
        let thread = try HostThread(name: "watchdog") {
            while hasEnded.atomic.pointee.load(ordering: .acquiring) == 0 {
                if hasEnded.wait(while: 0, deadlineNanoseconds: deadline) == .timedOut { return vcpu.requestExit() }
            }
        }
        defer {
            hasEnded.atomic.pointee.store(1, ordering: .releasing)
            hasEnded.wake()
            thread.join()
        }
        return try vcpu.run()
    }

    private func enter(_ mode: Mode) throws {
        var special = try vcpu.specialRegisters()
        special.cs.selector = 0
        special.cs.base = 0
        if mode == .long {
            for (address, entry) in [
                (0x10000, 0x11003), (0x11000, 0x12003), (0x11008, 0x13003), (0x12000, 0x83), (0x13000, 0x4000_0083)
            ] {
                memory.storeBytes(of: UInt64(entry), toByteOffset: address, as: UInt64.self)
            }
            special.cs.l = 1
            special.cs.type = 11
            special.cr0 = 0x8000_0011
            special.cr3 = 0x10000
            special.cr4 = 0x20
            special.efer = 0x500
        }
        try vcpu.setSpecialRegisters(special)
        var registers = try vcpu.registers()
        registers.rip = UInt64(Self.codeAddress)
        registers.rsp = 0x7000
        registers.rflags = 2
        try vcpu.setRegisters(registers)
    }
}

/// Ends the process with SIGALRM when tests that could hang make no progress: a time limit does not end a thread.
func withWatchdog<Result>(_ body: () throws -> Result) rethrows -> Result {
    alarm(120)
    defer { alarm(0) }
    return try body()
}
