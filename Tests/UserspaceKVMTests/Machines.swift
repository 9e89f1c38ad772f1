import Glibc
import KVMInterface
import SystemPackage
import UserspaceKVM

extension MMUKind {
    /// What the environment's `MARTLET_MMU` says, so that all tests can run with either.
    static var tested: MMUKind { getenv("MARTLET_MMU").flatMap { MMUKind(rawValue: String(cString: $0)) } ?? .walk }
}

/// A small machine for tests: memory at 0, and one vCPU in real mode at 0x1000.
final class SmallMachine {
    static let byteCount = 1 << 20
    static let codeAddress = 0x1000

    let backend: UserspaceKVM
    let system: KVMSystem
    let machine: VirtualMachine
    let vcpu: VCPU
    let memory: UnsafeMutableRawBufferPointer

    /// - Parameter splitPinCount: local APICs only, with that many pins of the client's IOAPIC.
    init(
        code: [UInt8] = [], hasIRQChip: Bool = false, splitPinCount: Int? = nil, id: UInt32 = 0,
        flags: MemoryRegionFlags = []
    ) throws {
        Watchdog.begin()
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.byteCount, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        for (index, byte) in code.enumerated() { memory[Self.codeAddress + index] = byte }
        self.memory = memory
        backend = UserspaceKVM(mmu: .tested)
        system = try KVMSystem(backend: backend)
        machine = try system.createVM()
        if hasIRQChip { try machine.createIRQChip() }
        if let splitPinCount { try machine.createSplitIRQChip(reservedPinCount: splitPinCount) }
        try machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 0, flags: flags.rawValue, guest_phys_addr: 0, memory_size: UInt64(Self.byteCount),
                userspace_addr: UInt64(UInt(bitPattern: memory.baseAddress))))
        vcpu = try machine.createVCPU(id: id)
        try vcpu.setCPUID(try system.supportedCPUID())
        try Self.startInRealMode(vcpu)
    }

    static func startInRealMode(_ vcpu: VCPU) throws {
        var special = try vcpu.specialRegisters()
        special.cs.selector = 0
        special.cs.base = 0
        try vcpu.setSpecialRegisters(special)
        var registers = try vcpu.registers()
        registers.rip = UInt64(codeAddress)
        registers.rsp = 0x8000
        registers.rflags = 2
        try vcpu.setRegisters(registers)
    }

    /// Puts the vCPU into 64-bit mode, with the first GiB mapped to where it is by tables at 0x10000 and 0x11000.
    ///
    /// - Parameter change: further changes of the special registers.
    func enter64BitMode(_ change: (inout SpecialRegisters) -> Void = { _ in }) throws {
        memory.storeBytes(of: 0x11003, toByteOffset: 0x10000, as: UInt64.self)
        memory.storeBytes(of: 0x83, toByteOffset: 0x11000, as: UInt64.self)
        var special = try vcpu.specialRegisters()
        special.cs.l = 1
        special.cs.type = 11
        special.cr0 = 0x8000_0011
        special.cr3 = 0x10000
        special.cr4 = 0x20
        special.efer = 0x500
        change(&special)
        try vcpu.setSpecialRegisters(special)
    }

    deinit {
        Watchdog.end()
        memory.deallocate()
    }

    /// Puts code at a real-mode interrupt's handler address, 0x3000, and points the vector to it.
    func setHandler(vector: Int, code: [UInt8]) {
        memory.storeBytes(of: 0x3000, toByteOffset: vector * 4, as: UInt32.self)
        for (index, byte) in code.enumerated() { memory[0x3000 + index] = byte }
    }

    /// Enables the local APIC by software.
    func enableAPIC() throws {
        var page = try vcpu.localAPIC()
        withUnsafeMutableBytes(of: &page) { $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self) }
        try vcpu.setLocalAPIC(page)
    }
}
