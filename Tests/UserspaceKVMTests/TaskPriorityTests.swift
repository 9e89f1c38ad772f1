import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Reports of accesses to the task priority, and the word that takes its place.
@Suite struct TaskPriorityTests {
    /// A machine whose local APIC lies at its address in 64-bit mode.
    private func machine(_ code: [UInt8]) throws -> SmallMachine {
        let small = try SmallMachine(code: code, hasIRQChip: true)
        small.memory.storeBytes(of: 0xC000_0083, toByteOffset: 0x11018, as: UInt64.self)
        try small.enter64BitMode()
        return small
    }

    @Test func accessesAreReported() throws {
        // mov eax,[0xFEE00080] ; mov eax,0x30 ; mov [0xFEE00080],eax ; out 0x10,al
        let small = try machine([
            0xA1, 0x80, 0, 0xE0, 0xFE, 0, 0, 0, 0, 0xB8, 0x30, 0, 0, 0, 0xA3, 0x80, 0, 0xE0, 0xFE, 0, 0, 0, 0, 0xE6,
            0x10
        ])
        #expect(try small.system.checkExtension(.taskPriorityPatching) == 1)
        var control = kvm_tpr_access_ctl()
        control.enabled = 1
        try small.vcpu.request(.setTaskPriorityReporting, control)
        for (place, isWrite) in [(0, 0), (14, 1)] as [(UInt64, UInt32)] {
            #expect(try small.vcpu.runForReason() == KVM_EXIT_TPR_ACCESS)
            let access = small.vcpu.runArea.run.pointee.tpr_access
            #expect(access.rip == UInt64(SmallMachine.codeAddress) + place && access.is_write == isWrite)
            // The instruction is complete.
            #expect(try small.vcpu.registers().rip == access.rip + 9)
        }
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(try small.vcpu.specialRegisters().cr8 == 3)
        control.flags = 1
        #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.setTaskPriorityReporting, control) }
    }

    @Test func wordAndRegisterAgree() throws {
        // mov byte [0x5000],0x40 ; out 0x10,al ; mov ecx,[0x5000] ; out 0x10,al
        let small = try machine([
            0xC6, 0x04, 0x25, 0, 0x50, 0, 0, 0x40, 0xE6, 0x10, 0x8B, 0x0C, 0x25, 0, 0x50, 0, 0, 0xE6, 0x10
        ])
        try small.vcpu.request(.setTaskPriorityWord, kvm_vapic_addr(vapic_addr: 0x5000))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(try small.vcpu.specialRegisters().cr8 == 4)
        var special = try small.vcpu.specialRegisters()
        special.cr8 = 7
        try small.vcpu.setSpecialRegisters(special)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(try small.vcpu.registers().rcx & 0xFF == 0x70)
        #expect(throws: Errno.invalidArgument) {
            try small.vcpu.request(.setTaskPriorityWord, kvm_vapic_addr(vapic_addr: 1 << 40))
        }
        #expect(throws: Errno.invalidArgument) {
            try SmallMachine().vcpu.request(.setTaskPriorityWord, kvm_vapic_addr(vapic_addr: 0x5000))
        }
    }
}
