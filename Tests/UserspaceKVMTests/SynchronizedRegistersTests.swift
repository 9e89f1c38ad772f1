import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Registers in the run area.
@Suite struct SynchronizedRegistersTests {
    private static let all = UInt64(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

    /// in al,0x10 ; add bx,1 ; jmp back
    private func machine() throws -> SmallMachine {
        try SmallMachine(code: [0xE4, 0x10, 0x83, 0xC3, 0x01, 0xEB, 0xF9])
    }

    private func bytes<T>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

    @Test func setsThatDoNotExist() throws {
        let small = try machine()
        let run = small.vcpu.runArea.run
        #expect(try small.system.checkExtension(.synchronizedRegisters) == Int(Self.all))
        for bits in [0x8000_0000, 0x8000_0000 | Self.all, 8] {
            run.pointee.kvm_valid_regs = bits
            #expect(throws: Errno.invalidArgument) { _ = try small.vcpu.run() }
            run.pointee.kvm_valid_regs = 0
            run.pointee.kvm_dirty_regs = bits
            #expect(throws: Errno.invalidArgument) { _ = try small.vcpu.run() }
            run.pointee.kvm_dirty_regs = 0
        }
    }

    @Test func registersTravel() throws {
        let small = try machine()
        let run = small.vcpu.runArea.run
        func expectCopies() throws {
            #expect(bytes(run.pointee.s.regs.regs) == bytes(try small.vcpu.registers()))
            #expect(bytes(run.pointee.s.regs.sregs) == bytes(try small.vcpu.specialRegisters()))
            #expect(bytes(run.pointee.s.regs.events) == bytes(try small.vcpu.events()))
        }
        run.pointee.kvm_valid_regs = Self.all
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        try expectCopies()

        run.pointee.s.regs.regs.rbx = 0xBAD
        run.pointee.s.regs.sregs.apic_base = 1 << 11
        run.pointee.kvm_dirty_regs = UInt64(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(run.pointee.kvm_dirty_regs == 0)
        #expect(run.pointee.s.regs.regs.rbx == 0xBAE)
        #expect(run.pointee.s.regs.sregs.apic_base == 1 << 11)
        try expectCopies()

        // Not dirty: what the client left there is overwritten.
        run.pointee.s.regs.regs.rbx = 0xDEAD
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(run.pointee.s.regs.regs.rbx == 0xBAF)

        // Neither valid nor dirty: it stays, and means nothing.
        run.pointee.kvm_valid_regs = 0
        run.pointee.s.regs.regs.rbx = 0xAAAA
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(run.pointee.s.regs.regs.rbx == 0xAAAA)
        #expect(try small.vcpu.registers().rbx == 0xBB0)

        // Dirty but not valid.
        run.pointee.s.regs.regs = try small.vcpu.registers()
        run.pointee.s.regs.regs.rbx = 0xBBBB
        run.pointee.kvm_dirty_regs = Self.all
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(run.pointee.s.regs.regs.rbx == 0xBBBB)
        #expect(try small.vcpu.registers().rbx == 0xBBBC)
    }

    @Test func impossibleValues() throws {
        let small = try machine()
        let run = small.vcpu.runArea.run
        run.pointee.s.regs.sregs = try small.vcpu.specialRegisters()
        run.pointee.s.regs.sregs.cr4 = 1 << 40
        run.pointee.kvm_dirty_regs = UInt64(KVM_SYNC_X86_SREGS)
        #expect(throws: Errno.invalidArgument) { _ = try small.vcpu.run() }
    }
}
