import CHost
import Glibc
import KVMInterface
import Synchronization
import SystemPackage
import Testing
import UserspaceKVM

private func bytes<T>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

/// System management mode: how it is entered and left. Handlers write to port 0x30, other code to ports from 0x10 on.
@Suite struct SystemManagementTests {
    /// out 0x30,al ; rsm
    private static let handler: [UInt8] = [0xE6, 0x30, 0x0F, 0xAA]
    /// out 0x11,al ; jmp $-2
    private static let writer: [UInt8] = [0xE6, 0x11, 0xEB, 0xFC]
    private static let smm = UInt32(KVM_VCPUEVENT_VALID_SMM)

    @Test func capabilities() throws {
        let small = try SmallMachine()
        #expect(try small.machine.checkExtension(.x86SMM) == 1)
        #expect(try small.machine.checkExtension(.multiAddressSpace) == 2)
        #expect(try small.system.msrIndices().contains(0x9E))
    }

    // MARK: Entry and RSM

    enum Mode: CaseIterable { case real, protected, long }

    private func setMode(_ mode: Mode, _ small: SmallMachine) throws {
        switch mode {
        case .real: break
        case .protected:
            var special = try small.vcpu.specialRegisters()
            special.cr0 = 0x11
            special.cs.db = 1
            special.cs.type = 11
            special.cs.g = 1
            special.cs.limit = ~0
            special.ss.db = 1
            special.gdt.base = 0x1234_5000
            special.gdt.limit = 0x7F
            special.idt.base = 0x4321_0000
            special.idt.limit = 0xFF
            try small.vcpu.setSpecialRegisters(special)
        case .long:
            try small.enter64BitMode {
                $0.fs.base = 0x7FFF_1234_5678
                $0.gs.base = 0xFFFF_8000_0000_1000
                $0.gdt.base = 0xFFFF_FFFF_0000_1000
            }
        }
    }

    @Test(arguments: Mode.allCases, [false, true]) func stateComesBack(mode: Mode, hasLongMode: Bool) throws {
        if mode == .long && !hasLongMode { return }
        let m = try ManagedMachine(code: Self.writer, handler: Self.handler)
        if !hasLongMode {
            var leaves = try m.small.system.supportedCPUID()
            for index in leaves.indices where leaves[index].function == 0x8000_0001 { leaves[index].edx &= ~(1 << 29) }
            try m.vcpu.setCPUID(leaves)
        }
        try setMode(mode, m.small)
        var registers = try m.vcpu.registers()
        registers.rax = 0x77
        registers.rdi = 0x1234_5678
        if mode == .long { registers.r15 = 0xFEDC_BA98_7654_3210 }
        registers.rflags = 0x803
        try m.vcpu.setRegisters(registers)
        let special = try m.vcpu.specialRegisters()
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x30, inManagement: true)
        try m.completeAccess()
        let inside = try m.vcpu.specialRegisters()
        #expect(inside.cs.base == 0x3_0000 && inside.cs.selector == 0x3000 && inside.cs.limit == ~0 && inside.cs.g == 1)
        #expect(inside.ds.base == 0 && inside.ds.limit == ~0 && inside.cr4 == 0 && inside.efer == 0)
        #expect(inside.cr0 & 0x8000_000D == 0 && inside.idt.limit == 0)
        #expect(try m.vcpu.registers().rip == 0x8002 && m.vcpu.registers().rflags == 2)
        #expect(try m.vcpu.events().smi.smm == 1 && m.vcpu.events().nmi.masked == 1)
        if hasLongMode {
            #expect(m.saved(0xFEFC) as UInt32 == 0x2_0064 && m.saved(0xFF78) as UInt64 == 0x1000)
            #expect(m.saved(0xFF58) as UInt64 == special.cr0 && m.saved(0xFED0) as UInt64 == special.efer)
            #expect(m.saved(0xFF80) as UInt64 == registers.r15 && m.saved(0xFE48) as UInt64 == special.fs.base)
        } else {
            #expect(m.saved(0xFEFC) as UInt32 == 0x2_0000 && m.saved(0xFFF0) as UInt32 == 0x1000)
            #expect(m.saved(0xFFFC) as UInt32 == UInt32(special.cr0) && m.saved(0xFFEC) as UInt32 == 0x1234_5678)
        }
        #expect(try m.expectWrite(0x11, inManagement: false) == 0x77)
        try m.completeAccess()
        #expect(bytes(try m.vcpu.specialRegisters()) == bytes(special))
        registers.rip += 2
        #expect(bytes(try m.vcpu.registers()) == bytes(registers))
        #expect(try m.vcpu.events().smi.smm == 0 && m.vcpu.events().nmi.masked == 0)
        #expect(try m.vcpu.msrs([0x34]).first?.data == 1)
    }

    /// Firmware moves SMBASE by its field in the save area.
    @Test(arguments: [0xFF00, 0xFEF8]) func relocation(field: Int) throws {
        // mov dword cs:[field],0x50000 ; rsm
        let m = try ManagedMachine(
            code: Self.writer,
            handler: [0x2E, 0x66, 0xC7, 0x06, UInt8(field & 0xFF), UInt8(field >> 8), 0, 0, 5, 0, 0x0F, 0xAA])
        if field == 0xFEF8 { try m.vcpu.setCPUID([]) }
        for (index, byte) in Self.handler.enumerated() { m.small.memory[0x5_8000 + index] = byte }
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x11, inManagement: false)
        #expect(try m.vcpu.msrs([0x9E]).first?.data == 0x5_0000)
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x30, inManagement: true)
        #expect(try m.vcpu.specialRegisters().cs.base == 0x5_0000)
        try m.expectWrite(0x11, inManagement: false)
    }

    @Test func baseIsForTheClientOnly() throws {
        // mov ecx,0x9E ; rdmsr
        let small = try SmallMachine(code: [0x66, 0xB9, 0x9E, 0, 0, 0, 0x0F, 0x32, 0xF4])
        small.setHandler(vector: 13, code: [0xE6, 0x10, 0xF4])
        #expect(try small.vcpu.msrs([0x9E]).first?.data == 0x3_0000)
        #expect(try small.vcpu.setMSRs([MSREntry(0x9E, 0xA_0000)]) == 1)
        guard case .io(let access) = try small.vcpu.run(), access.port == 0x10 else {
            Issue.record("no general protection: \(small.vcpu.runArea.exit)")
            return
        }
    }

    @Test func outsideTheModeRSMIsUndefined() throws {
        let small = try SmallMachine(code: [0x0F, 0xAA])
        small.setHandler(vector: 6, code: [0xE6, 0x10, 0xF4])
        guard case .io(let access) = try small.vcpu.run(), access.port == 0x10 else {
            Issue.record("no invalid opcode: \(small.vcpu.runArea.exit)")
            return
        }
    }

    @Test func badStateShutsDown() throws {
        // mov dword cs:[0xFF58],0x80000000 ; rsm: paging without protection
        let m = try ManagedMachine(
            code: Self.writer, handler: [0x2E, 0x66, 0xC7, 0x06, 0x58, 0xFF, 0, 0, 0, 0x80, 0x0F, 0xAA])
        try m.vcpu.systemManagementInterrupt()
        guard case .shutdown = try m.vcpu.run() else {
            Issue.record("no shutdown: \(m.vcpu.runArea.exit)")
            return
        }
        #expect(!m.isInManagement)
        #expect(try m.vcpu.events().smi.smm == 0)
    }

    // MARK: Where interrupts come from

    @Test func runningProcessor() throws {
        // jmp $
        let m = try ManagedMachine(code: [0xEB, 0xFE], handler: Self.handler)
        let vcpu = m.vcpu
        try withThreads(1) { _ in
            usleep(5000)
            try? vcpu.systemManagementInterrupt()
        } meanwhile: {
            try m.expectWrite(0x30, inManagement: true)
        }
        #expect(m.saved(0xFF78) as UInt64 == 0x1000)
    }

    @Test func messageAndLine() throws {
        let m = try ManagedMachine(code: Self.writer, handler: Self.handler, hasIRQChip: true)
        #expect(try m.small.machine.signalMSI(address: 0xFEE0_0000, data: 0x200))
        try m.expectWrite(0x30, inManagement: true)
        try m.expectWrite(0x11, inManagement: false)
        var ioapic = try m.small.machine.irqChip(.ioapic)
        withUnsafeMutableBytes(of: &ioapic) { $0.storeBytes(of: 0x200, toByteOffset: 8 + 24 + 20 * 8, as: UInt64.self) }
        try m.small.machine.setIRQChip(ioapic)
        try m.small.machine.irqLine(gsi: 20, level: true)
        try m.expectWrite(0x30, inManagement: true)
        try m.expectWrite(0x11, inManagement: false)
    }

    /// One that comes during an exit, or in the shadow of STI, waits until the instruction is complete.
    @Test func afterAnAccessAndAShadow() throws {
        // in al,0x12 ; sti ; out 0x13,al ; out 0x11,al
        let m = try ManagedMachine(code: [0xE4, 0x12, 0xFB, 0xE6, 0x13, 0xE6, 0x11], handler: Self.handler)
        guard case .io(let access) = try m.vcpu.run(), access.port == 0x12 else {
            Issue.record("no port exit")
            return
        }
        access.value = 0x5A
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x30, inManagement: true)
        #expect(m.saved(0xFF78) as UInt64 == 0x1002 && m.saved(0xFFF8) as UInt8 == 0x5A)
        #expect(try m.expectWrite(0x13, inManagement: false) == 0x5A)
        var events = try m.vcpu.events()
        events.flags = UInt32(KVM_VCPUEVENT_VALID_SHADOW)
        events.interrupt.shadow = UInt8(KVM_X86_SHADOW_INT_STI)
        try m.completeAccess()
        try m.vcpu.setEvents(events)
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x11, inManagement: false, "the instruction behind STI")
        try m.expectWrite(0x30, inManagement: true)
        #expect(m.saved(0xFF78) as UInt64 == 0x1007)
    }

    /// Blocked in the mode, the next one is taken right behind RSM; so are NMIs.
    @Test func secondInterruptWaits() throws {
        let m = try ManagedMachine(code: Self.writer, handler: Self.handler)
        m.small.setHandler(vector: 2, code: [0xE6, 0x12, 0xCF])
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x30, inManagement: true)
        try m.vcpu.systemManagementInterrupt()
        try m.vcpu.nmi()
        #expect(try m.vcpu.events().smi.pending == 1)
        try m.expectWrite(0x30, inManagement: true)
        #expect(m.saved(0xFF78) as UInt64 == 0x1000)
        try m.expectWrite(0x12, inManagement: false)
        #expect(try m.vcpu.events().smi.pending == 0)
    }

    // MARK: HLT

    /// RSM leads back into HLT, unless the handler says otherwise.
    @Test(arguments: [false, true]) func halted(isEnded: Bool) throws {
        // out 0x30,al ; mov byte cs:[0xFEC9],0 ; rsm
        let handler: [UInt8] =
            isEnded ? [0xE6, 0x30, 0x2E, 0xC6, 0x06, 0xC9, 0xFE, 0, 0x0F, 0xAA] : Self.handler
        let m = try ManagedMachine(code: [0xF4] + Self.writer, handler: handler, hasIRQChip: true)
        let vcpu = m.vcpu
        try withThreads(1) { _ in
            usleep(20_000)
            try? vcpu.systemManagementInterrupt()
        } meanwhile: {
            try m.expectWrite(0x30, inManagement: true)
        }
        if isEnded {
            try m.expectWrite(0x11, inManagement: false)
            return
        }
        try withThreads(1) { _ in
            usleep(20_000)
            vcpu.requestExit()
        } meanwhile: {
            guard case .interrupted = try vcpu.run() else {
                Issue.record("not halted: \(vcpu.runArea.exit)")
                return
            }
        }
        #expect(try vcpu.mpState() == .halted)
        #expect(try vcpu.registers().rip == 0x1001)
    }

    // MARK: INIT

    @Test func initializationWaits() throws {
        // out 0x30,al ; out 0x31,al ; rsm
        let m = try ManagedMachine(
            code: Self.writer, handler: [0xE6, 0x30, 0xE6, 0x31, 0x0F, 0xAA], hasIRQChip: true)
        try m.vcpu.setMSRs([MSREntry(0x9E, 0x3_0000)])
        try m.vcpu.systemManagementInterrupt()
        try m.expectWrite(0x30, inManagement: true)
        #expect(try m.small.machine.signalMSI(address: 0xFEE0_0000, data: 0x500))
        #expect(try m.vcpu.mpState() == .runnable)
        #expect(try m.vcpu.events().smi.latched_init == 1)
        try m.expectWrite(0x31, inManagement: true)
        guard case .internalError = try m.vcpu.run() else {
            Issue.record("no start over: \(m.vcpu.runArea.exit)")
            return
        }
        #expect(try m.vcpu.registers().rip == 0xFFF0 && m.vcpu.events().smi.latched_init == 0)
        #expect(try m.vcpu.msrs([0x9E]).first?.data == 0x3_0000)
    }

    // MARK: Events

    @Test func eventsRoundTrip() throws {
        let m = try ManagedMachine(code: Self.writer, handler: Self.handler, hasIRQChip: true)
        var events = try m.vcpu.events()
        #expect(events.flags & Self.smm != 0)
        events.flags = Self.smm
        events.smi.smm = 1
        events.smi.smm_inside_nmi = 1
        events.smi.pending = 1
        events.smi.latched_init = 1
        events.nmi.masked = 1
        try m.vcpu.setEvents(events)
        let read = try m.vcpu.events()
        #expect(bytes(read.smi) == bytes(events.smi))
        // Without the flag nothing of it changes.
        events.flags = 0
        events.smi = .init()
        try m.vcpu.setEvents(events)
        #expect(bytes(try m.vcpu.events().smi) == bytes(read.smi))
        events.flags = Self.smm
        try m.vcpu.setEvents(events)
        #expect(bytes(try m.vcpu.events().smi) == [0, 0, 0, 0])
        // A pending one is taken, and NMIs are blocked behind it as before it.
        events.smi.pending = 1
        try m.vcpu.setEvents(events)
        try m.expectWrite(0x30, inManagement: true)
        #expect(try m.vcpu.events().smi.smm_inside_nmi == 1)
        try m.expectWrite(0x11, inManagement: false)
        #expect(try m.vcpu.events().nmi.masked == 1)
    }

    @Test func notWhileWaitingForStartup() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let vcpu = try small.machine.createVCPU(id: 1)
        try vcpu.setMPState(.initReceived)
        var events = try vcpu.events()
        events.flags = Self.smm
        events.smi.pending = 1
        #expect(throws: Errno.invalidArgument) { try vcpu.setEvents(events) }
        events.smi.pending = 0
        events.smi.smm = 1
        #expect(throws: Errno.invalidArgument) { try vcpu.setEvents(events) }
        // The other way round.
        try vcpu.setMPState(.runnable)
        try vcpu.setEvents(events)
        #expect(throws: Errno.invalidArgument) { try vcpu.setMPState(.initReceived) }
    }

    // MARK: Storms

    /// A 64-bit guest, whose code changes itself, computes while interrupts come all the time.
    @Test func storm() throws {
        let rounds: UInt32 = 20000
        let count = withUnsafeBytes(of: rounds) { Array($0) }
        // inc dword [0x39000] ; rsm
        let m = try ManagedMachine(
            code: [0xB9] + count + [0x31, 0xDB]  // mov ecx,rounds ; xor ebx,ebx
                + [0x88, 0x0C, 0x25, 0x01, 0x50, 0, 0]  // again: mov [0x5001],cl
                + [0xE8, 0xED, 0x3F, 0, 0]  // call 0x5000
                + [0x0F, 0xB6, 0xC0, 0x01, 0xC3]  // movzx eax,al ; add ebx,eax
                + [0x48, 0x8D, 0x04, 0x19]  // lea rax,[rcx+rbx]
                + [0x50, 0x58]  // push rax ; pop rax
                + [0xFF, 0xC9, 0x75, 0xE5]  // dec ecx ; jnz again
                + [0x89, 0xD8, 0xE7, 0x11, 0xEB, 0xFE],  // mov eax,ebx ; out 0x11,eax
            handler: [0x66, 0x67, 0xFF, 0x05, 0x00, 0x90, 0x03, 0x00, 0x0F, 0xAA])
        for (index, byte) in ([0xB0, 0, 0xC3] as [UInt8]).enumerated() { m.small.memory[0x5000 + index] = byte }
        try m.small.enter64BitMode()
        let vcpu = m.vcpu
        let isDone = Atomic<Bool>(false)
        try withThreads(1) { _ in
            while !isDone.load(ordering: .relaxed) {
                try? vcpu.systemManagementInterrupt()
                usleep(200)
            }
        } meanwhile: {
            defer { isDone.store(true, ordering: .relaxed) }
            let sum = try m.expectWrite(0x11, inManagement: false)
            #expect(sum == (1...rounds).reduce(0) { $0 &+ $1 & 0xFF })
        }
        // The last one may still wait.
        let handled = try vcpu.msrs([0x34]).first?.data
        #expect(m.managed.load(fromByteOffset: 0x9000, as: UInt32.self) == handled.map { UInt32($0) })
        #expect(handled ?? 0 > 10)
    }

    // MARK: Moving

    /// A 64-bit guest interrupts itself by its x2APIC; at each exit all of it moves to a new machine.
    @Test func movesBetweenMachines() throws {
        let smram = UnsafeMutableRawBufferPointer.allocate(byteCount: 0x1_0000, alignment: 4096)
        defer { smram.deallocate() }
        smram.initializeMemory(as: UInt8.self, repeating: 0)
        // mov al,0xFE ; in al,0xE ; rsm
        for (index, byte) in ([0xB0, 0xFE, 0xE4, 0x0E, 0x0F, 0xAA] as [UInt8]).enumerated() {
            smram[0x8000 + index] = byte
        }
        let small = try SmallMachine(
            code: [0xB0, 1, 0xE4, 0x0E]
                // mov ecx,0x1B ; rdmsr ; or eax,0xC00 ; wrmsr
                + [0xB9, 0x1B, 0, 0, 0, 0x0F, 0x32, 0x0D, 0, 0x0C, 0, 0, 0x0F, 0x30]
                + [0xB0, 2, 0xE4, 0x0E]
                // mov ecx,0x830 ; xor edx,edx ; mov eax,0x44200 ; wrmsr
                + [0xB9, 0x30, 8, 0, 0, 0x31, 0xD2, 0xB8, 0, 0x42, 4, 0, 0x0F, 0x30]
                + [0xB0, 4, 0xE4, 0x0E, 0xB0, 0xFF, 0xE4, 0x0E],
            hasIRQChip: true)
        let region = UserMemoryRegion(
            slot: 1 << 16 | 1, flags: 0, guest_phys_addr: 0x100_0000, memory_size: 0x1_0000,
            userspace_addr: UInt64(UInt(bitPattern: smram.baseAddress)))
        try small.machine.setUserMemoryRegion(region)
        try small.enter64BitMode()
        try small.vcpu.setMSRs([MSREntry(0x9E, 0x100_0000)])
        var (machine, vcpu) = (small.machine, small.vcpu)
        var stages: [UInt64] = []
        while stages.last != 0xFF, stages.count < 10 {
            guard case .io(let access) = try vcpu.run(), access.port == 0x0E else {
                Issue.record("no port exit after \(stages): \(vcpu.runArea.exit)")
                return
            }
            access.value = 0
            stages.append(try vcpu.registers().rax & 0xFF)
            vcpu.immediateExit = true
            guard case .interrupted = try vcpu.run() else { continue }
            let next = try small.system.createVM()
            try next.createIRQChip()
            try next.setUserMemoryRegion(
                UserMemoryRegion(
                    slot: 0, flags: 0, guest_phys_addr: 0, memory_size: UInt64(SmallMachine.byteCount),
                    userspace_addr: UInt64(UInt(bitPattern: small.memory.baseAddress))))
            try next.setUserMemoryRegion(region)
            let copy = try next.createVCPU(id: 0)
            try copy.setCPUID(try small.system.supportedCPUID())
            try copy.setSpecialRegisters(try vcpu.specialRegisters())
            try copy.setMSRs(try vcpu.msrs(try small.system.msrIndices()))
            try copy.setLocalAPIC(try vcpu.localAPIC())
            try copy.setEvents(try vcpu.events())
            try copy.setMPState(try vcpu.mpState())
            try copy.setDebugRegisters(try vcpu.debugRegisters())
            try copy.setRegisters(try vcpu.registers())
            (machine, vcpu) = (next, copy)
        }
        #expect(stages == [1, 2, 0xFE, 4, 0xFF])
        withExtendedLifetime(machine) {}
    }
}
