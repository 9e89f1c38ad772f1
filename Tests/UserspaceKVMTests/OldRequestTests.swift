import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Requests that newer ones have replaced.
@Suite struct OldRequestTests {
    private func call<T>(_ small: SmallMachine, _ request: KVMRequest, _ value: inout T) throws {
        try withUnsafeMutablePointer(to: &value) { pointer in
            _ = try small.backend.ioctl(small.machine.descriptor, request.rawValue, UInt(bitPattern: pointer))
        }
    }

    /// `KVM_GET_PIT` and `KVM_SET_PIT` carry the channels of the new requests, and leave the flags alone.
    @Test func timerState() throws {
        let small = try SmallMachine(hasIRQChip: true)
        var old = kvm_pit_state()
        #expect(throws: Errno.noSuchAddressOrDevice) { try call(small, .getPIT, &old) }
        try small.machine.createPIT2()
        var new = try small.machine.pit()
        new.flags = UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON)
        new.channels.2.count = 1000
        new.channels.2.mode = 2
        try small.machine.setPIT(new)
        try call(small, .getPIT, &old)
        #expect(old.channels.2.count == 1000)
        #expect(old.channels.2.mode == 2)
        old.channels.2.count = 2000
        try call(small, .setPIT, &old)
        new = try small.machine.pit()
        #expect(new.channels.2.count == 2000)
        #expect(new.flags == UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON))
    }

    @Test func pagesOfTheMMU() throws {
        let small = try SmallMachine()
        let machine = small.machine.descriptor
        #expect(try small.machine.checkExtension(.shadowCacheControl) == 1)
        // A MiB of memory: the least.
        #expect(try small.backend.ioctl(machine, KVMRequest.getMMUPageCount.rawValue, 0) == 64)
        #expect(throws: Errno.invalidArgument) {
            try small.backend.ioctl(machine, KVMRequest.setMMUPageCount.rawValue, 63)
        }
        _ = try small.backend.ioctl(machine, KVMRequest.setMMUPageCount.rawValue, 65)
        #expect(try small.backend.ioctl(machine, KVMRequest.getMMUPageCount.rawValue, 0) == 65)
    }

    /// Destinations of 32 bits leave no room for the low byte of the address's upper half.
    @Test(arguments: [false, true]) func extendedDestinations(isEarly: Bool) throws {
        let small = try SmallMachine()
        let machine = try small.system.createVM()
        if isEarly { try machine.enableCapability(.x2APICAPI, 1) }
        try machine.createSplitIRQChip(reservedPinCount: 24)
        let route = IRQRoutingEntry.message(gsi: 5, address: 0x1_FEE0_0000, data: 0x45)
        if !isEarly {
            try machine.setGSIRouting([route])
            try machine.enableCapability(.x2APICAPI, 1)
        }
        #expect(throws: Errno.invalidArgument) { try machine.setGSIRouting([route]) }
        #expect(throws: Errno.invalidArgument) { try machine.signalMSI(address: 0x1_FEE0_0000, data: 0x45) }
        // Destination 0x101 is a vCPU that a byte could not name.
        let vcpu = try machine.createVCPU(id: 0x101)
        #expect(try machine.signalMSI(address: 0x100_FEE0_1000, data: 0x400))
        #expect(try vcpu.events().nmi.pending == 1)
    }
}
