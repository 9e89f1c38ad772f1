import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Model-specific registers that the client answers for, filters, or chooses.
@Suite struct ModelSpecificRegisterTests {
    /// `mov ecx,index ; rdmsr`, in 16-bit code.
    private func read(_ index: UInt32) -> [UInt8] { [0x66, 0xB9] + bytes(index) + [0x0F, 0x32] }

    /// `mov ecx,index ; mov eax,value ; xor edx,edx ; wrmsr`, in 16-bit code.
    private func write(_ index: UInt32, _ value: UInt32) -> [UInt8] {
        [0x66, 0xB9] + bytes(index) + [0x66, 0xB8] + bytes(value) + [0x66, 0x31, 0xD2, 0x0F, 0x30]
    }

    private func bytes(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }

    private static let reasons = UInt64(
        KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)

    /// Installs a filter with one range.
    private func setFilter(
        _ small: SmallMachine, _ base: UInt32, bits: [UInt64], count: UInt32, flags: Int32, deniesOthers: Bool = false
    ) throws(Errno) {
        try bits.withUnsafeBufferPointer { (bits) throws(Errno) in
            var filter = kvm_msr_filter()
            filter.flags = deniesOthers ? UInt32(KVM_MSR_FILTER_DEFAULT_DENY) : 0
            filter.ranges.0.flags = UInt32(flags)
            filter.ranges.0.base = base
            filter.ranges.0.nmsrs = count
            filter.ranges.0.bitmap = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(bits.baseAddress!))
                .assumingMemoryBound(to: UInt8.self)
            try small.backend.request(small.machine.descriptor, .setMSRFilter, &filter)
        }
    }

    // MARK: Exits

    @Test func clientAnswersForUnknownRegisters() throws {
        let small = try SmallMachine(code: read(0xDEAD_BEEF) + write(0xDEAD_BEEF, 0x1234) + [0xF4])
        #expect(try small.system.checkExtension(.x86UserSpaceMSR) == 1)
        try small.machine.enableCapability(.x86UserSpaceMSR, UInt64(KVM_MSR_EXIT_REASON_UNKNOWN))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_X86_RDMSR)
        let msr = { small.vcpu.runArea.run.pointee.msr }
        #expect(msr().index == 0xDEAD_BEEF && msr().reason == UInt32(KVM_MSR_EXIT_REASON_UNKNOWN))
        #expect(msr().error == 0)
        small.vcpu.runArea.run.pointee.msr.data = 0x1122_3344_5566_7788
        #expect(try small.vcpu.runForReason() == KVM_EXIT_X86_WRMSR)
        #expect(msr().index == 0xDEAD_BEEF && msr().data == 0x1234)
        #expect(try small.vcpu.registers().rax == 0x1234)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
    }

    @Test func answerReachesTheRegisters() throws {
        let small = try SmallMachine(code: read(0xDEAD_BEEF) + [0xF4])
        try small.machine.enableCapability(.x86UserSpaceMSR, Self.reasons)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_X86_RDMSR)
        small.vcpu.runArea.run.pointee.msr.data = 0x1122_3344_5566_7788
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        let registers = try small.vcpu.registers()
        #expect(registers.rax == 0x5566_7788 && registers.rdx == 0x1122_3344)
    }

    @Test func errorRaisesGeneralProtection() throws {
        for code in [read(0xDEAD_BEEF), write(0xDEAD_BEEF, 1)] {
            let small = try SmallMachine(code: code + [0xF4])
            // mov bl,7 ; hlt
            small.setHandler(vector: 13, code: [0xB3, 7, 0xF4])
            try small.machine.enableCapability(.x86UserSpaceMSR, Self.reasons)
            _ = try small.vcpu.runForReason()
            small.vcpu.runArea.run.pointee.msr.error = 1
            #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
            #expect(try small.vcpu.registers().rbx & 0xFF == 7)
        }
    }

    /// A refused answer is not lost if the client wants out at once.
    @Test func immediateExitCompletesTheAccess() throws {
        let small = try SmallMachine(code: read(0xDEAD_BEEF) + [0xF4])
        try small.machine.enableCapability(.x86UserSpaceMSR, Self.reasons)
        _ = try small.vcpu.runForReason()
        small.vcpu.runArea.run.pointee.msr.data = 77
        small.vcpu.immediateExit = true
        #expect(try small.vcpu.runForReason() == -1)
        #expect(try small.vcpu.registers().rax == 77)
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress + 8))
    }

    @Test func invalidValuesHaveTheirOwnReason() throws {
        // The page attributes take no type 3; the flush command cannot be read.
        for (code, exit) in [(write(0x277, 3), KVM_EXIT_X86_WRMSR), (read(0x10B), KVM_EXIT_X86_RDMSR)] {
            let small = try SmallMachine(code: code + [0xF4])
            try small.machine.enableCapability(.x86UserSpaceMSR, UInt64(KVM_MSR_EXIT_REASON_INVAL))
            #expect(try small.vcpu.runForReason() == exit)
            #expect(small.vcpu.runArea.run.pointee.msr.reason == UInt32(KVM_MSR_EXIT_REASON_INVAL))
        }
    }

    @Test func reasonsThatAreNotAskedForRaiseGeneralProtection() throws {
        let small = try SmallMachine(code: read(0xDEAD_BEEF) + [0xF4])
        small.setHandler(vector: 13, code: [0xB3, 7, 0xF4])
        try small.machine.enableCapability(.x86UserSpaceMSR, UInt64(KVM_MSR_EXIT_REASON_INVAL))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        #expect(try small.vcpu.registers().rbx & 0xFF == 7)
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.x86UserSpaceMSR, 8) }
    }

    // MARK: Filter

    @Test func filterDeniesWhatItsBitsDeny() throws {
        // SYSCALL's target mode is in the range; the next register is allowed.
        let small = try SmallMachine(code: read(0xC000_0081) + write(0xC000_0081, 5) + read(0xC000_0082) + [0xF4])
        #expect(try small.system.checkExtension(.x86MSRFilter) == 1)
        try small.machine.enableCapability(.x86UserSpaceMSR, UInt64(KVM_MSR_EXIT_REASON_FILTER))
        try setFilter(small, 0xC000_0080, bits: [0b101], count: 3, flags: KVM_MSR_FILTER_READ)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_X86_RDMSR)
        #expect(small.vcpu.runArea.run.pointee.msr.index == 0xC000_0081)
        #expect(small.vcpu.runArea.run.pointee.msr.reason == UInt32(KVM_MSR_EXIT_REASON_FILTER))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        // The client's own access passes.
        #expect(try small.vcpu.msrs([0xC000_0081])[0].data == 5)
    }

    @Test func filterDeniesAllOthers() throws {
        let small = try SmallMachine(code: read(0xC000_0082) + [0xF4], hasIRQChip: true)
        small.setHandler(vector: 13, code: [0xE6, 0x10])
        try setFilter(
            small, 0xC000_0080, bits: [~0], count: 2, flags: KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            deniesOthers: true)
        // Nobody asked to be told: #GP, whose handler writes to a port.
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }

    @Test func filterIsReplaced() throws {
        let small = try SmallMachine(code: read(0xC000_0081) + [0xF4])
        try small.machine.enableCapability(.x86UserSpaceMSR, UInt64(KVM_MSR_EXIT_REASON_FILTER))
        try setFilter(small, 0xC000_0081, bits: [0], count: 1, flags: KVM_MSR_FILTER_READ)
        var none = kvm_msr_filter()
        try small.backend.request(small.machine.descriptor, .setMSRFilter, &none)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
    }

    @Test func filtersThatAreRefused() throws {
        let small = try SmallMachine()
        var filter = kvm_msr_filter()
        filter.flags = UInt32(KVM_MSR_FILTER_DEFAULT_DENY)
        #expect(throws: Errno.invalidArgument) {
            try small.backend.request(small.machine.descriptor, .setMSRFilter, &filter)
        }
        filter.flags = 2
        #expect(throws: Errno.invalidArgument) {
            try small.backend.request(small.machine.descriptor, .setMSRFilter, &filter)
        }
        #expect(throws: Errno.invalidArgument) { try setFilter(small, 0, bits: [0], count: 1, flags: 0) }
        #expect(throws: Errno.invalidArgument) { try setFilter(small, 0, bits: [0], count: 1, flags: 4) }
        #expect(throws: Errno.invalidArgument) {
            try setFilter(small, 0, bits: [0], count: 0x600 * 8 + 1, flags: KVM_MSR_FILTER_READ)
        }
        filter.flags = 0
        filter.ranges.3.nmsrs = 1
        filter.ranges.3.flags = UInt32(KVM_MSR_FILTER_READ)
        #expect(throws: Errno.badAddress) {
            try small.backend.request(small.machine.descriptor, .setMSRFilter, &filter)
        }
    }

    // MARK: State transfer

    @Test(arguments: [false, true], [false, true]) func everySavedRegisterTakesItsValue(
        hasIRQChip: Bool, hasCPUID: Bool
    ) throws {
        let small = try SmallMachine(hasIRQChip: hasIRQChip)
        if !hasCPUID { try small.vcpu.setCPUID([]) }
        for index in try small.system.msrIndices() {
            let entries = try small.vcpu.msrs([index])
            #expect(entries.count == 1, "read of \(String(index, radix: 16))")
            #expect(try small.vcpu.setMSRs(entries) == entries.count, "write of \(String(index, radix: 16))")
        }
    }

    /// The client of a machine without local APICs transfers it all the same.
    @Test func deadlineWithoutAPICReadsAsOff() throws {
        let small = try SmallMachine(hasIRQChip: false)
        #expect(try small.vcpu.setMSRs([MSREntry(0x6E0, 5)]) == 1)
        #expect(try small.vcpu.msrs([0x6E0]).map(\.data) == [0])
    }

    @Test func everyFeatureRegisterCanBeRead() throws {
        let small = try SmallMachine()
        for index in try small.system.msrFeatureIndices() {
            let words = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: 3)
            defer { words.deallocate() }
            words.initialize(repeating: 0)
            words[0] = 1
            words[1] = UInt64(index)
            let address = UInt(bitPattern: words.baseAddress)
            let count = try small.backend.ioctl(small.system.descriptor, KVMRequest.getMSRs.rawValue, address)
            #expect(count == 1, "\(String(index, radix: 16))")
        }
    }

    // MARK: Platform information

    @Test func platformInformationIsShownOrNot() throws {
        let small = try SmallMachine(code: read(0xCE) + [0xF4] + read(0xCE) + [0xF4])
        small.setHandler(vector: 13, code: [0xE6, 0x10])
        let value = try small.vcpu.msrs([0xCE])[0].data
        #expect(try small.vcpu.setMSRs([MSREntry(0xCE, value | 0xFF00)]) == 1)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        #expect(try small.vcpu.registers().rax == value | 0xFF00)
        try small.machine.enableCapability(.msrPlatformInfo, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        #expect(try small.vcpu.msrs([0xCE])[0].data == value | 0xFF00)
    }

    @Test func cpuidFaultsInUserMode() throws {
        let small = try SmallMachine()
        // Only with the platform's consent, which cannot be taken back meanwhile.
        #expect(try small.vcpu.setMSRs([MSREntry(0x140, 1), MSREntry(0xCE, 0)]) == 1)
        #expect(try small.vcpu.setMSRs([MSREntry(0x140, 2)]) == 0)
        #expect(try small.vcpu.setMSRs([MSREntry(0x140, 0), MSREntry(0xCE, 0), MSREntry(0x140, 1)]) == 2)
    }

    // MARK: Time-stamp counter

    @Test func writesOfTheCounterAndItsAdjustment() throws {
        let unit: UInt64 = 1 << 30
        let (step, hostStep) = (4 * unit, 64 * unit)
        // wrmsr of TSC, then twice of TSC_ADJUST: the value's upper half comes from EDX.
        let guestWrite = { (index: UInt8, high: UInt8) -> [UInt8] in
            [0x66, 0xB9, index, 0, 0, 0, 0x66, 0x31, 0xC0, 0x66, 0xBA, high, 0, 0, 0, 0x0F, 0x30, 0xF4]
        }
        let small = try SmallMachine(
            code: guestWrite(0x10, 1) + guestWrite(0x3B, 2) + guestWrite(0x3B, 3) + guestWrite(0x10, 4))
        func expect(tsc: UInt64, adjust: UInt64, _ comment: Comment) throws {
            let values = try small.vcpu.msrs([0x10, 0x3B]).map { ($0.data &+ unit / 2) & ~(unit - 1) }
            #expect(values[0] == tsc && values[1] == adjust, comment)
        }
        try expect(tsc: 0, adjust: 0, "at power-up")
        _ = try small.vcpu.run()
        try expect(tsc: step, adjust: step, "guest's write of the counter")
        _ = try small.vcpu.run()
        try expect(tsc: 2 * step, adjust: 2 * step, "guest's write of the adjustment")
        try small.vcpu.setMSRs([MSREntry(0x10, hostStep + 2 * step)])
        try expect(tsc: hostStep + 2 * step, adjust: 2 * step, "client's write of the counter")
        try small.vcpu.setMSRs([MSREntry(0x3B, 123_456 * unit)])
        try expect(tsc: hostStep + 2 * step, adjust: 123_456 * unit, "client's write of the adjustment")
        try small.vcpu.setMSRs([MSREntry(0x3B, 2 * step)])
        _ = try small.vcpu.run()
        try expect(tsc: hostStep + 3 * step, adjust: 3 * step, "guest's write keeps the client's offset")
        _ = try small.vcpu.run()
        try expect(tsc: 4 * step, adjust: 4 * step &- hostStep, "guest's write of the counter takes it in")
    }

    @Test(arguments: [0, 180_000_000_000, UInt64(bitPattern: -180_000_000_000)]) func offset(offset: UInt64) throws {
        // rdtsc ; hlt
        let small = try SmallMachine(code: [0x0F, 0x31, 0xF4])
        #expect(try small.system.checkExtension(.vcpuAttributes) == 1)
        var value = offset
        try small.vcpu.attribute(.hasDeviceAttribute, UInt64(KVM_VCPU_TSC_OFFSET), &value)
        try small.vcpu.attribute(.setDeviceAttribute, UInt64(KVM_VCPU_TSC_OFFSET), &value)
        let start = martlet_rdtsc() &+ offset
        _ = try small.vcpu.run()
        let end = martlet_rdtsc() &+ offset
        let registers = try small.vcpu.registers()
        let seen = registers.rdx << 32 | registers.rax
        #expect(seen &- start <= end &- start)
        value = 1
        try small.vcpu.attribute(.getDeviceAttribute, UInt64(KVM_VCPU_TSC_OFFSET), &value)
        #expect(value == offset)
        #expect(throws: Errno.noSuchAddressOrDevice) { try small.vcpu.attribute(.getDeviceAttribute, 1, &value) }
        #expect(throws: Errno.noSuchAddressOrDevice) {
            try small.vcpu.attribute(.setDeviceAttribute, group: 1, 0, &value)
        }
    }

    @Test func extendedStateComponents() throws {
        let small = try SmallMachine()
        #expect(try small.system.checkExtension(.systemAttributes) == 1)
        var value: UInt64 = 0
        try withUnsafeMutablePointer(to: &value) { pointer in
            var attribute = kvm_device_attr()
            attribute.attr = UInt64(KVM_X86_XCOMP_GUEST_SUPP)
            attribute.addr = UInt64(UInt(bitPattern: pointer))
            try small.backend.request(small.system.descriptor, .hasDeviceAttribute, &attribute)
            try small.backend.request(small.system.descriptor, .getDeviceAttribute, &attribute)
            attribute.group = 1
            #expect(throws: Errno.noSuchAddressOrDevice) {
                try small.backend.request(small.system.descriptor, .getDeviceAttribute, &attribute)
            }
        }
        #expect(value == 7)
    }
}
