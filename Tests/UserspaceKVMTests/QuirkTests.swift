import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Behaviour of KVM that clients can turn off.
@Suite struct QuirkTests {
    private static let fixedMonitorBit = UInt64(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)
    private static let patchedHypercalls: UInt64 = 1 << 5
    private static let toleratedMonitor: UInt64 = 1 << 6

    private static let isAMD = martlet_cpuid(0, 0).ebx == 0x6874_7541
    /// VMCALL and VMMCALL.
    private static let native: [UInt8] = isAMD ? [0x0F, 0x01, 0xD9] : [0x0F, 0x01, 0xC1]
    private static let other: [UInt8] = isAMD ? [0x0F, 0x01, 0xC1] : [0x0F, 0x01, 0xD9]

    @Test func whatCanBeTurnedOff() throws {
        let small = try SmallMachine()
        #expect(try small.system.checkExtension(.disableQuirks) == 1)
        #expect(try small.system.checkExtension(.disableQuirks2) == 0x7F)
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.disableQuirks2, 1 << 7) }
        try small.machine.enableCapability(.disableQuirks, 1 << 7)
    }

    // MARK: MONITOR and MWAIT

    /// Whether the instructions raise #UD.
    private func monitorFaults(disabled: UInt64, miscEnable: UInt64?) throws -> Bool {
        // monitor ; mwait ; hlt
        let small = try SmallMachine(code: [0x0F, 0x01, 0xC8, 0x0F, 0x01, 0xC9, 0xF4])
        small.setHandler(vector: 6, code: [0xE6, 0x10])
        try small.machine.enableCapability(.disableQuirks2, disabled)
        if let miscEnable { #expect(try small.vcpu.setMSRs([MSREntry(0x1A0, miscEnable)]) == 1) }
        return try small.vcpu.runForReason() == KVM_EXIT_IO
    }

    @Test func monitor() throws {
        let (tolerated, bit) = (Self.toleratedMonitor, Self.fixedMonitorBit)
        #expect(try !monitorFaults(disabled: 0, miscEnable: nil))
        #expect(try monitorFaults(disabled: tolerated, miscEnable: nil))
        #expect(try !monitorFaults(disabled: bit, miscEnable: 0))
        #expect(try !monitorFaults(disabled: bit, miscEnable: 1 << 18))
        #expect(try monitorFaults(disabled: tolerated | bit, miscEnable: 0))
        #expect(try !monitorFaults(disabled: tolerated | bit, miscEnable: 1 << 18))
    }

    @Test func monitorBitFollowsTheRegister() throws {
        let small = try SmallMachine()
        try small.machine.enableCapability(.disableQuirks2, Self.fixedMonitorBit)
        func bit() throws -> UInt32 { try small.vcpu.cpuid().first { $0.function == 1 }!.ecx >> 3 & 1 }
        #expect(try bit() == 0)
        try small.vcpu.setMSRs([MSREntry(0x1A0, 1 << 18 | 1)])
        #expect(try bit() == 1)
        // Without SSE3 in CPUID it cannot be changed.
        try small.vcpu.setCPUID([CPUIDEntry(function: 1)])
        #expect(try small.vcpu.setMSRs([MSREntry(0x1A0, 1)]) == 0)
    }

    // MARK: Hypercalls

    @Test func hypercallOfAnotherVendorIsReplaced() throws {
        let small = try SmallMachine(code: Self.other + [0xF4])
        try small.enter64BitMode()
        var registers = try small.vcpu.registers()
        // Yield.
        registers.rax = 11
        try small.vcpu.setRegisters(registers)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        #expect(try small.vcpu.registers().rax == 0)
        #expect(Array(small.memory[SmallMachine.codeAddress..<SmallMachine.codeAddress + 3]) == Self.native)
    }

    @Test func hypercallOfAnotherVendorIsInvalid() throws {
        let small = try SmallMachine(code: Self.other + [0xF4])
        try small.enter64BitMode()
        try small.machine.enableCapability(.disableQuirks2, Self.patchedHypercalls)
        // There is no handler.
        #expect(try small.vcpu.runForReason() == KVM_EXIT_SHUTDOWN)
        #expect(Array(small.memory[SmallMachine.codeAddress..<SmallMachine.codeAddress + 3]) == Self.other)
    }

    // MARK: Devices

    @Test func port7EIsCompleteAtTheExit() throws {
        // out 0x7E,al ; hlt
        for (disabled, length) in [(0, 2), (8, 0)] as [(UInt64, UInt64)] {
            let small = try SmallMachine(code: [0xE6, 0x7E, 0xF4])
            try small.machine.enableCapability(.disableQuirks2, disabled)
            #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
            #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress) + length)
            #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        }
    }

    /// In x2APIC mode the page of the local APIC reads as ones, or belongs to the client.
    @Test func pageOfTheLocalAPIC() throws {
        for (disabled, exit) in [(0, KVM_EXIT_IO), (4, KVM_EXIT_MMIO)] as [(UInt64, Int32)] {
            // mov eax,[0xFEE00030] ; out 0x10,al
            let small = try SmallMachine(code: [0xA1, 0x30, 0, 0xE0, 0xFE, 0, 0, 0, 0, 0xE6, 0x10], hasIRQChip: true)
            small.memory.storeBytes(of: 0xC000_0083, toByteOffset: 0x11018, as: UInt64.self)
            try small.enter64BitMode { $0.apic_base |= 1 << 10 }
            try small.machine.enableCapability(.disableQuirks2, disabled)
            #expect(try small.vcpu.runForReason() == exit)
            if exit == KVM_EXIT_IO { #expect(try small.vcpu.registers().rax == 0xFFFF_FFFF) }
        }
    }

    @Test func lineOfThe8259() throws {
        for (disabled, entry) in [(0, 0x700), (1, 0x1_0000)] as [(UInt64, UInt32)] {
            let small = try SmallMachine(hasIRQChip: true, id: 1)
            try small.machine.enableCapability(.disableQuirks2, disabled)
            let boot = try small.machine.createVCPU(id: 0)
            let page = try boot.localAPIC()
            #expect(withUnsafeBytes(of: page) { $0.load(fromByteOffset: 0x350, as: UInt32.self) } == entry)
        }
    }
}
