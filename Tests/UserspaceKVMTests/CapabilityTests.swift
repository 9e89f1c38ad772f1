import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Capabilities that change a machine or a vCPU, and small requests.
@Suite struct CapabilityTests {
    @Test func greatestVCPUID() throws {
        let system = try KVMSystem(backend: UserspaceKVM(mmu: .tested))
        let machine = try system.createVM()
        let limit = try machine.checkExtension(.maximumVCPUID)
        #expect(throws: Errno.invalidArgument) { try machine.enableCapability(.maximumVCPUID, UInt64(limit) + 1) }
        try machine.enableCapability(.maximumVCPUID, 2)
        try machine.enableCapability(.maximumVCPUID, 2)
        #expect(throws: Errno.invalidArgument) { try machine.enableCapability(.maximumVCPUID, 3) }
        #expect(throws: Errno.invalidArgument) { _ = try machine.createVCPU(id: 2) }
        _ = try machine.createVCPU(id: 1)
        let other = try system.createVM()
        _ = try other.createVCPU(id: 0)
        #expect(throws: Errno.invalidArgument) { try other.enableCapability(.maximumVCPUID, 2) }
    }

    @Test func exitsThatCanBeTurnedOff() throws {
        let small = try SmallMachine()
        let all = try small.machine.checkExtension(.x86DisableExits)
        #expect(all == Int(KVM_X86_DISABLE_EXITS_PAUSE) | 1 << 3)
        try small.machine.enableCapability(.x86DisableExits, UInt64(all))
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.x86DisableExits, 1 << 10) }
        try small.machine.enableCapability(.haltPoll, 200_000)
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.haltPoll, 1 << 32) }
    }

    @Test func shadowPageCount() throws {
        let small = try SmallMachine()
        func set(_ count: UInt) throws(Errno) -> Int32 {
            try small.backend.ioctl(small.machine.descriptor, KVMRequest.setMMUPageCount.rawValue, count)
        }
        #expect(throws: Errno.invalidArgument) { _ = try set(63) }
        #expect(try set(64) == 0)
        let count = try small.backend.ioctl(small.machine.descriptor, KVMRequest.getMMUPageCount.rawValue, 0)
        #expect(count == 64)
    }

    @Test func tripleFaultAsAnEvent() throws {
        let small = try SmallMachine(code: [0xF4])
        let flag = UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
        var events = try small.vcpu.events()
        #expect(events.flags & flag == 0)
        events.flags |= flag
        events.triple_fault.pending = 1
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setEvents(events) }
        try small.machine.enableCapability(.x86TripleFaultEvent, 1)
        try small.vcpu.setEvents(events)
        small.vcpu.immediateExit = true
        #expect(try small.vcpu.runForReason() == -1)
        small.vcpu.immediateExit = false
        let seen = try small.vcpu.events()
        #expect(seen.flags & flag != 0 && seen.triple_fault.pending == 1)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_SHUTDOWN)
        #expect(try small.vcpu.events().triple_fault.pending == 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
    }

    /// Code outside memory: the client hears of it in kernel mode, and the guest gets #UD.
    @Test func emulationFailure() throws {
        for exits in [false, true] {
            // jmp 0xFFFF:0x4010, where there is no memory.
            let small = try SmallMachine(code: [0xEA, 0x10, 0x40, 0xFF, 0xFF])
            small.setHandler(vector: 6, code: [0xE6, 0x10])
            try small.machine.enableCapability(.exitOnEmulationFailure, exits ? 1 : 0)
            #expect(try small.vcpu.runForReason() == KVM_EXIT_INTERNAL_ERROR)
            let next = try small.vcpu.runForReason()
            #expect(next == (exits ? KVM_EXIT_INTERNAL_ERROR : KVM_EXIT_IO))
        }
        let machine = try SmallMachine().machine
        #expect(throws: Errno.invalidArgument) { try machine.enableCapability(.exitOnEmulationFailure, 2) }
    }

    @Test func clockFlags() throws {
        let small = try SmallMachine()
        let flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC
        #expect(try small.system.checkExtension(.adjustClock) == Int(flags))
        let clock = try small.machine.clock()
        #expect(clock.flags == UInt32(flags))
        // A moment a minute ago: the clock has gone on since.
        var past = ClockData()
        past.clock = 1000
        past.flags = UInt32(KVM_CLOCK_REALTIME)
        past.realtime = clock.realtime - 60_000_000_000
        try small.backend.request(small.machine.descriptor, .setClock, &past)
        #expect(try small.machine.clock().clock >= 60_000_001_000)
        // One that is still to come: it has not.
        past.realtime = clock.realtime + 60_000_000_000
        try small.backend.request(small.machine.descriptor, .setClock, &past)
        #expect(try small.machine.clock().clock < 60_000_000_000)
    }

    // MARK: CPUID

    @Test func leavesFollowTheState() throws {
        let small = try SmallMachine()
        func leaf1() throws -> CPUIDEntry { try small.vcpu.cpuid().first { $0.function == 1 }! }
        #expect(try leaf1().ecx >> 27 & 1 == 0)
        var special = try small.vcpu.specialRegisters()
        special.cr4 |= 1 << 18
        try small.vcpu.setSpecialRegisters(special)
        #expect(try leaf1().ecx >> 27 & 1 == 1)
        #expect(try leaf1().edx >> 9 & 1 == 1)
        special.apic_base &= ~(1 << 11)
        try small.vcpu.setSpecialRegisters(special)
        #expect(try leaf1().edx >> 9 & 1 == 0)
    }

    @Test func leavesAreFixedOnceTheVCPUHasRun() throws {
        let small = try SmallMachine(code: [0xF4])
        _ = try small.vcpu.run()
        var entries = try small.vcpu.cpuid()
        try small.vcpu.setCPUID(entries)
        let index = entries.firstIndex { $0.function == 0x8000_0008 }!
        entries[index].eax ^= 1
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setCPUID(entries) }
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setCPUID(Array(entries.dropLast())) }
    }

    @Test func leavesWithoutIndex() throws {
        let small = try SmallMachine()
        var words: [UInt32] = [2, 0]
        words += [1, 0x600, 0, 1, 1 << 9, 0]
        words += [7, 1, 2, 3, 4, 0]
        try words.withUnsafeMutableBytes { bytes in
            let address = UInt(bitPattern: bytes.baseAddress)
            _ = try small.backend.ioctl(small.vcpu.descriptor, KVMRequest.setCPUID.rawValue, address)
        }
        let entries = try small.vcpu.cpuid()
        #expect(entries.map(\.function) == [1, 7])
        #expect(entries[1].ebx == 2 && entries[1].edx == 4 && entries.allSatisfy { $0.flags == 0 && $0.index == 0 })
    }

    // MARK: Addresses

    @Test func translation() throws {
        let small = try SmallMachine()
        func translate(_ address: UInt64) throws -> kvm_translation {
            var request = kvm_translation()
            request.linear_address = address
            try small.backend.request(small.vcpu.descriptor, .translate, &request)
            return request
        }
        #expect(try translate(0x12345).physical_address == 0x12345)
        try small.enter64BitMode()
        let mapped = try translate(0x1234)
        #expect(mapped.physical_address == 0x1234 && mapped.valid == 1 && mapped.writeable == 1 && mapped.usermode == 0)
        let missing = try translate(0x8000_0000)
        #expect(missing.valid == 0 && missing.physical_address == .max)
        // The tables as they are now.
        small.memory.storeBytes(of: 0x83, toByteOffset: 0x11010, as: UInt64.self)
        #expect(try translate(0x8000_0010).physical_address == 0x10)
    }

    // MARK: String input

    @Test func elementsOfAStringComeTogether() throws {
        // mov di,0x2FF0 ; mov cx,40 ; mov dx,0x80 ; cld ; rep insb ; hlt
        let small = try SmallMachine(code: [
            0xBF, 0xF0, 0x2F, 0xB9, 40, 0, 0xBA, 0x80, 0x00, 0xFC, 0xF3, 0x6C, 0xF4
        ])
        // Up to the end of a page, and the rest.
        var next: UInt8 = 1
        for count in [16, 24] {
            guard case .io(let access) = try small.vcpu.run() else {
                Issue.record("no port exit")
                return
            }
            #expect(access.port == 0x80 && !access.isWrite && access.byteCount == 1 && access.count == count)
            for index in 0..<count {
                access.data[index] = next
                next += 1
            }
        }
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        #expect(Array(small.memory[0x2FF0..<0x2FF0 + 40]) == Array(1...40))
        let registers = try small.vcpu.registers()
        #expect(registers.rcx == 0 && registers.rdi == 0x2FF0 + 40)
    }

    /// The count may change under the exit: what was answered is used as far as it goes.
    @Test(arguments: [(2, 1, 1), (3, 600, 600)] as [(UInt64, UInt64, UInt64)]) func countChanges(
        first: UInt64, second: UInt64, moved: UInt64
    ) throws {
        let small = try SmallMachine(code: [
            0xBF, 0x00, 0x20, 0xB9, UInt8(first), 0, 0xBA, 0x80, 0x00, 0xFC, 0xF3, 0x6C, 0xF4
        ])
        var isFirst = true
        while true {
            guard case .io(let access) = try small.vcpu.run() else { break }
            for index in 0..<access.count { access.data[index] = 0xAA }
            guard isFirst else { continue }
            isFirst = false
            var registers = try small.vcpu.registers()
            registers.rcx = second
            try small.vcpu.setRegisters(registers)
        }
        #expect(try small.vcpu.registers().rdi == 0x2000 + moved)
        #expect(small.memory[0x2000..<0x2000 + Int(moved)].allSatisfy { $0 == 0xAA })
    }

    /// Answers are not lost to a client that wants out.
    @Test func immediateExitKeepsTheElements() throws {
        let small = try SmallMachine(code: [0xBF, 0x00, 0x20, 0xB9, 50, 0, 0xBA, 0x80, 0x00, 0xFC, 0xF3, 0x6C, 0xF4])
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
        for index in 0..<access.count { access.data[index] = UInt8(index) }
        small.vcpu.immediateExit = true
        #expect(try small.vcpu.runForReason() == -1)
        #expect(Array(small.memory[0x2000..<0x2000 + 50]) == Array(0..<50))
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress + 12))
    }
}
