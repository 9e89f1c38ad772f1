import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

@Suite struct MachineCheckTests {
    private static let valid: UInt64 = 1 << 63
    private static let overflow: UInt64 = 1 << 62
    private static let uncorrected: UInt64 = 1 << 61
    private static let signalled: UInt64 = 1 << 56

    private func error(_ status: UInt64, bank: UInt8 = 0, global: UInt64 = 0) -> kvm_x86_mce {
        var error = kvm_x86_mce()
        error.status = status
        error.addr = 0xADD0
        error.misc = 0x5C
        error.mcg_status = global
        error.bank = bank
        return error
    }

    private func setUp(_ small: SmallMachine, bankCount: UInt64 = 4) throws -> UInt64 {
        var supported: UInt64 = 0
        try small.backend.request(small.system.descriptor, .getMachineCheckCapabilities, &supported)
        try small.vcpu.request(.setUpMachineCheck, supported | bankCount)
        return supported
    }

    @Test func setUp() throws {
        let small = try SmallMachine()
        #expect(try small.system.checkExtension(.machineCheck) == 32)
        #expect(try small.vcpu.msrs([0x179])[0].data == 32)
        let supported = try setUp(small)
        let values = try small.vcpu.msrs([0x179, 0x17A, 0x17B, 0x400, 0x401, 0x40C, 0x40F]).map(\.data)
        #expect(values == [supported | 4, 0, .max, .max, 0, .max, 0])
        #expect(try small.vcpu.msrs([0x410]).isEmpty)
        for refused in [0, 33, 4 | 1 << 9] as [UInt64] {
            #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.setUpMachineCheck, refused) }
        }
        #expect(try small.vcpu.setMSRs([MSREntry(0x17B, 5)]) == 0)
        #expect(try small.vcpu.setMSRs([MSREntry(0x400, 5)]) == 0)
        #expect(try small.vcpu.setMSRs([MSREntry(0x400, ~(1 << 10)), MSREntry(0x401, 5)]) == 2)
    }

    @Test func correctedErrorIsRecorded() throws {
        let small = try SmallMachine()
        _ = try setUp(small)
        try small.vcpu.request(.setMachineCheck, error(Self.valid | 0x90, bank: 2))
        #expect(try small.vcpu.msrs([0x409, 0x40A, 0x40B]).map(\.data) == [Self.valid | 0x90, 0xADD0, 0x5C])
        try small.vcpu.request(.setMachineCheck, error(Self.valid | 0x91, bank: 2))
        #expect(try small.vcpu.msrs([0x409])[0].data == Self.valid | Self.overflow | 0x91)
        #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.setMachineCheck, error(Self.valid, bank: 4)) }
        #expect(throws: Errno.invalidArgument) { try small.vcpu.request(.setMachineCheck, error(1)) }
    }

    @Test func uncorrectedErrorRaisesTheException() throws {
        // hlt
        let small = try SmallMachine(code: [0xF4])
        small.setHandler(vector: 18, code: [0xE6, 0x10])
        _ = try setUp(small)
        var special = try small.vcpu.specialRegisters()
        special.cr4 |= 1 << 6
        try small.vcpu.setSpecialRegisters(special)
        let status = Self.valid | Self.uncorrected | Self.signalled
        try small.vcpu.request(.setMachineCheck, error(status, global: 5))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(try small.vcpu.msrs([0x17A, 0x401]).map(\.data) == [5, status])
        // Another one while the first is handled.
        try small.vcpu.request(.setMachineCheck, error(status, global: 5))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_SHUTDOWN)
    }

    @Test func uncorrectedErrorWithoutActionIsRecorded() throws {
        let small = try SmallMachine(code: [0xF4])
        _ = try setUp(small)
        try small.vcpu.request(.setMachineCheck, error(Self.valid | Self.uncorrected, bank: 1))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        #expect(try small.vcpu.msrs([0x405])[0].data == Self.valid | Self.uncorrected)
    }

    @Test func guestCannotWriteWhatBanksReport() throws {
        // mov ecx,0x401 ; mov eax,1 ; xor edx,edx ; wrmsr ; hlt
        let small = try SmallMachine(code: [
            0x66, 0xB9, 0x01, 0x04, 0, 0, 0x66, 0xB8, 1, 0, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30, 0xF4
        ])
        small.setHandler(vector: 13, code: [0xE6, 0x10])
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }
}
