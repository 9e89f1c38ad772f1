import CHost
import KVMInterface
import Testing
import UserspaceKVM

/// A small machine with a system management handler at 0x38000.
///
/// Its memory is shown in both address spaces. Where `own` is not nil, the 64 KiB from SMBASE on are other memory in
/// system management mode.
final class ManagedMachine {
    static let base = 0x3_0000
    static let ownByteCount = 0x1_0000

    let small: SmallMachine
    let own: UnsafeMutableRawBufferPointer?

    var vcpu: VCPU { small.vcpu }
    /// The 64 KiB from SMBASE on as the mode sees them.
    let managed: UnsafeMutableRawBufferPointer

    init(
        code: [UInt8] = [], handler: [UInt8], hasOwnMemory: Bool = true, hasIRQChip: Bool = false,
        flags: MemoryRegionFlags = []
    ) throws {
        small = try SmallMachine(code: code, hasIRQChip: hasIRQChip, flags: flags)
        let shared = UnsafeMutableRawBufferPointer(
            rebasing: small.memory[Self.base..<Self.base + Self.ownByteCount])
        if hasOwnMemory {
            let own = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.ownByteCount, alignment: 4096)
            own.initializeMemory(as: UInt8.self, repeating: 0)
            self.own = own
            managed = own
            try show(0..<Self.base, slot: 0, flags)
            try show(Self.base + Self.ownByteCount..<SmallMachine.byteCount, slot: 2, flags)
            try set(slot: 1, at: UInt64(Self.base), own, flags)
        } else {
            own = nil
            managed = shared
            try show(0..<SmallMachine.byteCount, slot: 0, flags)
        }
        setHandler(handler)
    }

    deinit { own?.deallocate() }

    private func show(_ range: Range<Int>, slot: UInt32, _ flags: MemoryRegionFlags) throws {
        try set(
            slot: slot, at: UInt64(range.lowerBound), UnsafeMutableRawBufferPointer(rebasing: small.memory[range]),
            flags)
    }

    /// Sets a slot of address space 1.
    func set(
        slot: UInt32, at address: UInt64, _ memory: UnsafeMutableRawBufferPointer, _ flags: MemoryRegionFlags = []
    ) throws {
        try small.machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 1 << 16 | slot, flags: flags.rawValue, guest_phys_addr: address,
                memory_size: UInt64(memory.count), userspace_addr: UInt64(UInt(bitPattern: memory.baseAddress))))
    }

    func setHandler(_ code: [UInt8]) {
        for (index, byte) in code.enumerated() { managed[0x8000 + index] = byte }
    }

    var isInManagement: Bool { vcpu.runArea.run.pointee.flags & UInt16(KVM_RUN_X86_SMM) != 0 }

    /// Runs to a write to a port.
    @discardableResult
    func expectWrite(
        _ port: UInt16, inManagement: Bool, _ comment: Comment? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> UInt32 {
        guard case .io(let access) = try vcpu.run(), access.isWrite else {
            Issue.record("no port exit: \(vcpu.runArea.exit)", sourceLocation: sourceLocation)
            return 0
        }
        #expect(access.port == port, comment, sourceLocation: sourceLocation)
        #expect(isInManagement == inManagement, comment, sourceLocation: sourceLocation)
        return access.value
    }

    /// Completes the access of the last exit and no more.
    func completeAccess() throws {
        vcpu.immediateExit = true
        guard case .interrupted = try vcpu.run() else {
            Issue.record("not interrupted: \(vcpu.runArea.exit)")
            return
        }
        vcpu.immediateExit = false
    }

    /// A field of the save area, by its offset from SMBASE.
    func saved<T: FixedWidthInteger>(_ offset: Int, as type: T.Type = T.self) -> T {
        managed.loadUnaligned(fromByteOffset: offset, as: T.self)
    }
}
