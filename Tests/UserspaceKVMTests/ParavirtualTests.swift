import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// What KVM offers to guests that know it.
@Suite struct ParavirtualTests {
    private static let stealTime: UInt32 = 0x4B56_4D03
    private static let pollControl: UInt32 = 0x4B56_4D05
    private static let registers: [UInt32] = [0x11, 0x12, 0x4B56_4D00, 0x4B56_4D01, stealTime, pollControl]

    private func enforce(_ vcpu: VCPU) throws {
        var request = kvm_enable_cap()
        request.cap = KVMCapability.enforceParavirtualFeatures.rawValue
        request.args.0 = 1
        try vcpu.request(.enableCapability, request)
    }

    private func hypercall(_ small: SmallMachine, _ number: UInt64, _ arguments: UInt64...) throws -> Int64 {
        var registers = try small.vcpu.registers()
        registers.rip = UInt64(SmallMachine.codeAddress)
        registers.rax = number
        registers.rbx = arguments.first ?? 0
        registers.rcx = arguments.count > 1 ? arguments[1] : 0
        try small.vcpu.setRegisters(registers)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        return Int64(bitPattern: try small.vcpu.registers().rax)
    }

    /// vmcall, which is replaced where the host has another ; hlt
    private func machine() throws -> SmallMachine {
        let small = try SmallMachine(code: [0x0F, 0x01, 0xC1, 0xF4])
        try small.enter64BitMode()
        return small
    }

    @Test func featuresAreThereAnyway() throws {
        let small = try machine()
        try small.vcpu.setCPUID(try small.vcpu.cpuid().filter { $0.function != 0x4000_0001 })
        for register in Self.registers { #expect(try small.vcpu.msrs([register]).count == 1) }
        #expect(try hypercall(small, 11) == 0)
        #expect(try hypercall(small, 5) == 0)
    }

    @Test func featuresAreEnforced() throws {
        let small = try machine()
        try small.vcpu.setCPUID(try small.vcpu.cpuid().filter { $0.function != 0x4000_0001 })
        #expect(try small.system.checkExtension(.enforceParavirtualFeatures) == 1)
        try enforce(small.vcpu)
        for register in Self.registers {
            #expect(try small.vcpu.msrs([register]).isEmpty)
            #expect(try small.vcpu.setMSRs([MSREntry(register, 0)]) == 0)
        }
        for number: UInt64 in [5, 10, 11] { #expect(try hypercall(small, number) == -1000) }
        #expect(try hypercall(small, 1) == 0)
    }

    @Test func capabilitiesOfAVCPU() throws {
        let small = try SmallMachine()
        var request = kvm_enable_cap()
        request.cap = KVMCapability.exceptionPayload.rawValue
        #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.enableCapability, request) }
        request.cap = KVMCapability.enforceParavirtualFeatures.rawValue
        request.flags = 1
        #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.enableCapability, request) }
    }

    @Test func pollControl() throws {
        let small = try SmallMachine()
        #expect(try small.vcpu.msrs([Self.pollControl])[0].data == 1)
        #expect(try small.vcpu.setMSRs([MSREntry(Self.pollControl, 0), MSREntry(Self.pollControl, 2)]) == 1)
        #expect(try small.vcpu.msrs([Self.pollControl])[0].data == 0)
    }

    @Test func stolenTime() throws {
        let small = try SmallMachine(code: [0xF4, 0xF4])
        guard try small.system.checkExtension(.stealTime) == 1 else {
            print("skipped: the host does not count how long threads wait")
            return
        }
        #expect(try small.vcpu.setMSRs([MSREntry(Self.stealTime, 0x5000 | 2)]) == 0)
        #expect(try small.vcpu.setMSRs([MSREntry(Self.stealTime, 0x5000 | 1)]) == 1)
        small.memory[0x5010] = 1
        small.memory.storeBytes(of: 7, toByteOffset: 0x5008, as: UInt32.self)
        small.memory.storeBytes(of: 1000, toByteOffset: 0x5000, as: UInt64.self)
        _ = try small.vcpu.run()
        // An odd version is junk of the guest; there may be more than one record.
        let version = small.memory.load(fromByteOffset: 0x5008, as: UInt32.self)
        #expect(version >= 10 && version & 1 == 0)
        #expect(small.memory.load(fromByteOffset: 0x5000, as: UInt64.self) >= 1000)
        #expect(small.memory[0x5010] == 0)
        try small.vcpu.setMSRs([MSREntry(Self.stealTime, 0)])
        _ = try small.vcpu.run()
        #expect(small.memory.load(fromByteOffset: 0x5008, as: UInt32.self) == version)
    }

    @Test func clockPairing() throws {
        let small = try machine()
        let before = try small.machine.clock()
        #expect(try hypercall(small, 9, 0x6000, 0) == 0)
        let after = try small.machine.clock()
        let seconds = small.memory.load(fromByteOffset: 0x6000, as: UInt64.self)
        let nanoseconds = small.memory.load(fromByteOffset: 0x6008, as: UInt64.self)
        let time = seconds * 1_000_000_000 + nanoseconds
        #expect(before.realtime <= time && time <= after.realtime)
        #expect(try small.vcpu.msrs([0x10])[0].data >= small.memory.load(fromByteOffset: 0x6010, as: UInt64.self))
        #expect(try hypercall(small, 9, 0x6000, 1) == -95)
        #expect(try hypercall(small, 9, 1 << 40, 0) == -14)
    }
}
