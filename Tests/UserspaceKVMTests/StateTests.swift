import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// The bytes of a value, to compare structures without `==`.
private func bytes<T>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

/// Fills a structure with numbers from a seed.
private func fill<T>(_ value: inout T, seed: UInt8) {
    withUnsafeMutableBytes(of: &value) { buffer in
        for index in buffer.indices { buffer[index] = UInt8(truncatingIfNeeded: index &* 37) ^ seed }
    }
}

@Suite struct StateTests {
    @Test func generalRegisters() throws {
        let small = try SmallMachine()
        var registers = GeneralRegisters()
        fill(&registers, seed: 0x5A)
        registers.rflags = 0x246
        try small.vcpu.setRegisters(registers)
        #expect(bytes(try small.vcpu.registers()) == bytes(registers))
    }

    @Test func reservedFlagsAreFixed() throws {
        let small = try SmallMachine()
        var registers = try small.vcpu.registers()
        registers.rflags = 0
        try small.vcpu.setRegisters(registers)
        #expect(try small.vcpu.registers().rflags == 2)
    }

    @Test func specialRegistersAfterPowerUp() throws {
        let small = try SmallMachine()
        let fresh = try small.machine.createVCPU(id: 1)
        let special = try fresh.specialRegisters()
        #expect(special.cs.selector == 0xF000 && special.cs.base == 0xFFFF_0000 && special.cs.limit == 0xFFFF)
        #expect(special.cr0 == 0x6000_0010 && special.efer == 0)
        #expect(special.apic_base == 0xFEE0_0800)
        #expect(try fresh.registers().rip == 0xFFF0)
        #expect(try fresh.registers().rflags == 2)
        #expect(try small.vcpu.specialRegisters().apic_base == 0xFEE0_0900)
    }

    @Test func specialRegisters() throws {
        let small = try SmallMachine()
        var special = try small.vcpu.specialRegisters()
        special.cs = SegmentState(
            base: 0, limit: 0xFFFF_FFFF, selector: 0x10, type: 11, present: 1, dpl: 0, db: 0, s: 1, l: 1, g: 1, avl: 1,
            unusable: 0, padding: 0)
        special.ss = SegmentState(
            base: 0, limit: 0xFFFF_FFFF, selector: 0x18, type: 3, present: 1, dpl: 0, db: 1, s: 1, l: 0, g: 1, avl: 0,
            unusable: 0, padding: 0)
        special.ldt = SegmentState(
            base: 0, limit: 0xFFFF, selector: 0, type: 2, present: 0, dpl: 0, db: 0, s: 0, l: 0, g: 0, avl: 0,
            unusable: 1, padding: 0)
        special.fs.base = 0x7FFF_1234_5678
        special.gdt = DescriptorTableState(base: 0x5000, limit: 0x7F, padding: (0, 0, 0))
        special.idt = DescriptorTableState(base: 0x6000, limit: 0xFFF, padding: (0, 0, 0))
        special.cr0 = 0x8005_0033
        special.cr2 = 0xDEAD_BEEF
        special.cr3 = 0x9000
        special.cr4 = 0x6A0
        special.efer = 0xD01
        special.cr8 = 5
        try small.vcpu.setSpecialRegisters(special)
        #expect(bytes(try small.vcpu.specialRegisters()) == bytes(special))
        let second = try small.vcpu.specialRegisters2()
        #expect(bytes(second.cs) == bytes(special.cs) && second.cr3 == 0x9000 && second.efer == 0xD01)
    }

    @Test func impossibleSpecialRegistersChangeNothing() throws {
        let small = try SmallMachine()
        let before = bytes(try small.vcpu.specialRegisters())
        let changes: [(inout SpecialRegisters) -> Void] = [
            { $0.cr0 = 0x8000_0000 },
            { $0.cr0 = 0x2000_0001 },
            { $0.cr0 = 1 << 40 },
            { $0.cr4 = 1 << 40 },
            { $0.efer = 0x400 },
            { $0.cs.l = 1 },
            // VMX, which CPUID does not tell of, and EFER.SVME.
            { $0.cr4 = 1 << 13 },
            { $0.efer = 1 << 12 },
            {
                $0.cr0 = 0x8000_0011
                $0.cr4 = 0x20
                $0.efer = 0x500
                $0.cr3 = 1 << 48
            },
            {
                $0.cr0 = 0x8000_0011
                $0.efer = 0x100
            }
        ]
        for (index, change) in changes.enumerated() {
            var special = try small.vcpu.specialRegisters()
            change(&special)
            #expect(throws: Errno.invalidArgument, "change \(index)") { try small.vcpu.setSpecialRegisters(special) }
            #expect(bytes(try small.vcpu.specialRegisters()) == before, "change \(index)")
        }
    }

    /// A client that asks what is supported first sets CR4 on a vCPU without CPUID.
    @Test func featuresWithoutCPUID() throws {
        let fresh = try SmallMachine().machine.createVCPU(id: 1)
        var special = try fresh.specialRegisters()
        special.cr4 = 1 << 17 | 1 << 18 | 1 << 20 | 1 << 21 | 0x7FF
        try fresh.setSpecialRegisters(special)
        #expect(try fresh.specialRegisters().cr4 == special.cr4)
        special.cr4 |= 1 << 13
        #expect(throws: Errno.invalidArgument) { try fresh.setSpecialRegisters(special) }
    }

    @Test func interruptBeingDelivered() throws {
        let small = try SmallMachine()
        try small.vcpu.interrupt(vector: 0x41)
        let special = try small.vcpu.specialRegisters()
        #expect(bytes(special.interrupt_bitmap)[8] == 2)
        let events = try small.vcpu.events()
        #expect(events.interrupt.injected == 1 && events.interrupt.nr == 0x41 && events.interrupt.soft == 0)
    }

    @Test func floatingPoint() throws {
        let small = try SmallMachine()
        var state = FloatingPointState()
        fill(&state, seed: 0xC3)
        state.pad1 = 0
        state.pad2 = 0
        state.mxcsr = 0x1FA0
        try small.vcpu.setFloatingPoint(state)
        // MXCSR is not part of it.
        #expect(bytes(try small.vcpu.xsave())[24..<28].elementsEqual([0x80, 0x1F, 0, 0]))
        state.mxcsr = 0
        #expect(bytes(try small.vcpu.floatingPoint()) == bytes(state))
    }

    @Test func floatingPointAfterPowerUp() throws {
        let state = try SmallMachine().vcpu.floatingPoint()
        #expect(state.fcw == 0x37F && state.mxcsr == 0 && state.ftwx == 0)
    }

    @Test func xsaveSharesRegistersWithFloatingPoint() throws {
        let small = try SmallMachine()
        var state = FloatingPointState()
        fill(&state, seed: 0x11)
        try small.vcpu.setFloatingPoint(state)
        let image = bytes(try small.vcpu.xsave())
        #expect(image.count == 4096)
        #expect(Array(image[32..<160]) == bytes(state.fpr))
        #expect(Array(image[160..<416]) == bytes(state.xmm))
        #expect(image[512] == 7 && image[513..<576].allSatisfy { $0 == 0 })
    }

    @Test func xsave() throws {
        let small = try SmallMachine()
        var image = try small.vcpu.xsave()
        withUnsafeMutableBytes(of: &image) { buffer in
            for index in 160..<416 { buffer[index] = UInt8(truncatingIfNeeded: index) }
            for index in 576..<832 { buffer[index] = UInt8(truncatingIfNeeded: index &* 3) }
            buffer[0] = 0x7F
            buffer[1] = 0x02
        }
        try small.vcpu.setXSave(image)
        #expect(bytes(try small.vcpu.xsave()) == bytes(image))
        // Without the AVX component the upper halves are reset.
        withUnsafeMutableBytes(of: &image) { $0[512] = 3 }
        try small.vcpu.setXSave(image)
        let reset = bytes(try small.vcpu.xsave())
        #expect(reset[576..<832].allSatisfy { $0 == 0 })
        #expect(Array(reset[160..<416]) == Array(bytes(image)[160..<416]))
    }

    @Test func xsaveRefusals() throws {
        let small = try SmallMachine()
        for (offset, value) in [(513, UInt8(1)), (520, 1), (27, 1), (575, 1)] {
            var image = try small.vcpu.xsave()
            withUnsafeMutableBytes(of: &image) { $0[offset] = value }
            #expect(throws: Errno.invalidArgument, "byte \(offset)") { try small.vcpu.setXSave(image) }
        }
    }

    @Test func extendedControlRegisters() throws {
        let small = try SmallMachine()
        var registers = try small.vcpu.extendedControlRegisters()
        #expect(registers.nr_xcrs == 1 && registers.xcrs.0.value == 1)
        registers.xcrs.0.value = 7
        try small.vcpu.setExtendedControlRegisters(registers)
        #expect(try small.vcpu.extendedControlRegisters().xcrs.0.value == 7)
        for impossible: UInt64 in [0, 5, 1 << 9 | 1] {
            registers.xcrs.0.value = impossible
            #expect(throws: Errno.invalidArgument) { try small.vcpu.setExtendedControlRegisters(registers) }
        }
    }

    @Test func debugRegisters() throws {
        let small = try SmallMachine()
        var registers = try small.vcpu.debugRegisters()
        #expect(registers.dr6 == 0xFFFF_0FF0 && registers.dr7 == 0x400)
        registers.db = (1, 2, 3, 4)
        registers.dr7 = 0x405
        try small.vcpu.setDebugRegisters(registers)
        #expect(bytes(try small.vcpu.debugRegisters()) == bytes(registers))
        registers.dr7 = 1 << 32
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setDebugRegisters(registers) }
    }

    @Test func modelSpecificRegisters() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let values: [MSREntry] = [
            MSREntry(0xC000_0081, 0x0023_0010_0000_0000), MSREntry(0xC000_0082, 0xFFFF_FFFF_8100_0000),
            MSREntry(0xC000_0102, 0xFFFF_8880_0000_0000), MSREntry(0x277, 0x0007_0406_0007_0406),
            MSREntry(0x2FF, 0xC06), MSREntry(0x4B56_4D01, 0x7001), MSREntry(0x3B, 5)
        ]
        #expect(try small.vcpu.setMSRs(values) == values.count)
        let read = try small.vcpu.msrs(values.map(\.index))
        #expect(read.map(\.data) == values.map(\.data))
        #expect(try small.vcpu.msrs([0xC000_0081, 0x1234_5678, 0xC000_0082]).count == 1)
        // Not canonical.
        #expect(try small.vcpu.setMSRs([MSREntry(0xC000_0082, 1 << 60)]) == 0)
    }

    @Test func everySavedRegisterCanBeReadAndWrittenBack() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let indices = try small.system.msrIndices()
        let values = try small.vcpu.msrs(indices)
        #expect(values.count == indices.count, "stopped at \(indices[min(values.count, indices.count - 1)])")
        let written = try small.vcpu.setMSRs(values)
        #expect(written == values.count, "stopped at \(values[min(written, values.count - 1)])")
    }

    @Test func timeStampCountersStayInStep() throws {
        let small = try SmallMachine()
        let other = try small.machine.createVCPU(id: 1)
        // What a client does that restores a machine: each vCPU's counter, one after the other.
        try small.vcpu.setMSRs([MSREntry(0x10, 1 << 50)])
        try other.setMSRs([MSREntry(0x10, 1 << 50 + 12345)])
        let first = try small.vcpu.msrs([0x10])[0].data
        let second = try other.msrs([0x10])[0].data
        let third = try small.vcpu.msrs([0x10])[0].data
        #expect(first >= 1 << 50)
        #expect(first <= second && second <= third)
    }

    @Test func localAPIC() throws {
        let small = try SmallMachine(hasIRQChip: true)
        var page = try small.vcpu.localAPIC()
        func register(_ offset: Int) -> UInt32 {
            withUnsafeBytes(of: page) { $0.load(fromByteOffset: offset, as: UInt32.self) }
        }
        #expect(register(0x30) & 0xFF == 0x14 || register(0x30) & 0xFF == 0x15)
        #expect(register(0xF0) == 0xFF)
        withUnsafeMutableBytes(of: &page) {
            $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self)
            $0.storeBytes(of: 0x0001_0020, toByteOffset: 0x320, as: UInt32.self)
            $0.storeBytes(of: 0x40, toByteOffset: 0x80, as: UInt32.self)
        }
        try small.vcpu.setLocalAPIC(page)
        page = try small.vcpu.localAPIC()
        #expect(register(0xF0) == 0x1FF && register(0x320) == 0x0001_0020 && register(0x80) == 0x40)
        // The processor priority follows the task priority.
        #expect(register(0xA0) == 0x40)
        #expect(try small.vcpu.specialRegisters().cr8 == 4)
    }

    @Test func activity() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let second = try small.machine.createVCPU(id: 1)
        #expect(try small.vcpu.mpState() == .runnable)
        #expect(try second.mpState() == .uninitialized)
        for state: MPState in [.halted, .initReceived, .runnable, .uninitialized] {
            try second.setMPState(state)
            #expect(try second.mpState() == state)
        }
        try second.setMPState(.sipiReceived)
        #expect(try second.mpState() == .runnable)
    }

    @Test func events() throws {
        let small = try SmallMachine(hasIRQChip: true)
        var events = VCPUEvents()
        events.exception.injected = 1
        events.exception.nr = 13
        events.exception.has_error_code = 1
        events.exception.error_code = 0x18
        events.nmi.pending = 1
        events.nmi.masked = 1
        events.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING)
        try small.vcpu.setEvents(events)
        let read = try small.vcpu.events()
        #expect(read.exception.injected == 1 && read.exception.nr == 13 && read.exception.error_code == 0x18)
        #expect(read.nmi.pending == 1 && read.nmi.masked == 1)
        events.exception.nr = 32
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setEvents(events) }
        events.exception.nr = 13
        events.flags = 1 << 20
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setEvents(events) }
    }

    private static var pendingPageFault: VCPUEvents {
        var events = VCPUEvents()
        events.exception.pending = 1
        events.exception.nr = 14
        events.exception.has_error_code = 1
        events.exception_has_payload = 1
        events.exception_payload = 0xABCD_E000
        events.flags = UInt32(KVM_VCPUEVENT_VALID_PAYLOAD)
        return events
    }

    @Test func exceptionPayloadNeedsItsCapability() throws {
        let small = try SmallMachine()
        var events = Self.pendingPageFault
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setEvents(events) }
        try small.machine.enableCapability(.exceptionPayload, 1)
        try small.vcpu.setEvents(events)
        let pending = try small.vcpu.events()
        #expect(pending.exception.pending == 1 && pending.exception.injected == 0)
        #expect(pending.exception_has_payload == 1 && pending.exception_payload == 0xABCD_E000)
        #expect(try small.vcpu.specialRegisters().cr2 == 0)
        // Of one that is both, what is pending counts; one that is injected has no payload any more.
        events.exception.injected = 1
        try small.vcpu.setEvents(events)
        #expect(try small.vcpu.events().exception.pending == 1)
        events.exception.pending = 0
        try small.vcpu.setEvents(events)
        let injected = try small.vcpu.events()
        #expect(injected.exception.pending == 0 && injected.exception.injected == 1)
        #expect(injected.exception_has_payload == 0)
    }

    /// Without the capability a client finds the payload in CR2, and what it then writes there stays.
    @Test func exceptionPayloadWithoutItsCapability() throws {
        let small = try SmallMachine()
        try small.machine.enableCapability(.exceptionPayload, 1)
        try small.vcpu.setEvents(Self.pendingPageFault)
        try small.machine.enableCapability(.exceptionPayload, 0)
        let read = try small.vcpu.events()
        #expect(read.exception.injected == 1 && read.exception.pending == 0 && read.exception_has_payload == 0)
        var special = try small.vcpu.specialRegisters()
        #expect(special.cr2 == 0xABCD_E000)
        special.cr2 = 0x1234_5000
        try small.vcpu.setSpecialRegisters(special)
        // The page fault's handler: hlt
        small.setHandler(vector: 14, code: [0xF4])
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.registers().rip == 0x3001)
        #expect(try small.vcpu.specialRegisters().cr2 == 0x1234_5000)
    }

    /// One instruction goes before the interrupt window, whichever of registers and events is set last.
    @Test(arguments: [false, true])
    func interruptShadowIsTakenOver(beforeRegisters: Bool) throws {
        // nop ; nop ; hlt
        let small = try SmallMachine(code: [0x90, 0x90, 0xF4])
        var registers = try small.vcpu.registers()
        var events = VCPUEvents()
        events.interrupt.shadow = UInt8(KVM_X86_SHADOW_INT_STI)
        events.flags = UInt32(KVM_VCPUEVENT_VALID_SHADOW)
        if beforeRegisters { try small.vcpu.setEvents(events) }
        registers.rip += 1
        registers.rflags |= 1 << 9
        try small.vcpu.setRegisters(registers)
        if !beforeRegisters { try small.vcpu.setEvents(events) }
        #expect(try small.vcpu.events().interrupt.shadow == UInt8(KVM_X86_SHADOW_INT_STI))
        small.vcpu.runArea.run.pointee.request_interrupt_window = 1
        guard case .irqWindowOpen = try small.vcpu.run() else {
            Issue.record("no window: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.registers().rip == registers.rip + 1)
        #expect(try small.vcpu.events().interrupt.shadow == 0)
    }

    @Test func clock() throws {
        let small = try SmallMachine()
        let first = try small.machine.clock().clock
        let second = try small.machine.clock().clock
        #expect(first <= second)
        try small.machine.setClock(nanoseconds: 1 << 50)
        #expect(try small.machine.clock().clock >= 1 << 50)
    }

    @Test func interruptControllers() throws {
        let small = try SmallMachine(hasIRQChip: true)
        for chip in IRQChip.allCases {
            let state = try small.machine.irqChip(chip)
            try small.machine.setIRQChip(state)
            #expect(bytes(try small.machine.irqChip(chip)) == bytes(state), "\(chip)")
        }
        var ioapic = try small.machine.irqChip(.ioapic)
        // Entry 23: vector 0x31, masked, to APIC 1. The structure begins behind the two words of the head.
        withUnsafeMutableBytes(of: &ioapic) {
            $0.storeBytes(of: 0x0100_0000_0001_0031, toByteOffset: 8 + 24 + 23 * 8, as: UInt64.self)
        }
        try small.machine.setIRQChip(ioapic)
        #expect(bytes(try small.machine.irqChip(.ioapic)) == bytes(ioapic))
    }

    @Test func intervalTimer() throws {
        let small = try SmallMachine(hasIRQChip: true)
        try small.machine.createPIT2()
        var state = try small.machine.pit()
        state.flags = UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON)
        state.channels.2.count = 1234
        state.channels.2.mode = 3
        try small.machine.setPIT(state)
        let read = try small.machine.pit()
        #expect(read.flags == state.flags && read.channels.2.count == 1234 && read.channels.2.mode == 3)
    }

    @Test func cpuid() throws {
        let small = try SmallMachine()
        let entries = try small.system.supportedCPUID()
        // The size of the extended state follows XCR0, which has x87 alone at first.
        var seen = try small.vcpu.cpuid()
        for index in seen.indices where seen[index].function == 0xD && seen[index].index == 0 {
            #expect(seen[index].ebx == 576)
            seen[index].ebx = 832
        }
        #expect(seen.map(bytes) == entries.map(bytes))
        func leaf(_ function: UInt32, _ index: UInt32 = 0) -> CPUIDEntry? {
            entries.first { $0.function == function && $0.index == index }
        }
        // Hypervisor and x2APIC; no OSXSAVE, which follows CR4, no TSC deadline, of which a capability tells, no MONITOR, no VMX.
        #expect((leaf(1)?.ecx ?? 0) & (1 << 31 | 1 << 21) == 1 << 31 | 1 << 21)
        #expect((leaf(1)?.ecx ?? 0) & (1 << 27 | 1 << 24 | 1 << 3 | 1 << 5) == 0)
        // No AVX-512, no RTM, no MPX, no protection keys.
        #expect((leaf(7)?.ebx ?? 0) & (1 << 16 | 1 << 11 | 1 << 14) == 0)
        #expect((leaf(7)?.ecx ?? 0) & (1 << 3 | 1 << 16) == 0)
        #expect(leaf(0xD)?.eax == 7 && leaf(0xD)?.ebx == 832)
        #expect(leaf(0x4000_0000)?.ebx == 0x4B4D_564B)
        #expect(leaf(0x4000_0000)?.eax == 0x4000_0001)
        // The counter's frequency: a crystal of 1 GHz and the ratio to it.
        #expect(leaf(0x15)?.eax == 1_000_000 && leaf(0x15)?.ecx == 1_000_000_000 && leaf(0x15)?.ebx ?? 0 > 100_000)
        let functions = entries.map { UInt64($0.function) << 32 | UInt64($0.index) }
        #expect(Set(functions).count == functions.count)
    }

    @Test func tscFrequency() throws {
        let small = try SmallMachine()
        let own = try small.vcpu.tscFrequency()
        try small.vcpu.setTSCFrequency(kilohertz: own)
        #expect(throws: Errno.invalidArgument) { try small.vcpu.setTSCFrequency(kilohertz: own * 2) }
    }
}
