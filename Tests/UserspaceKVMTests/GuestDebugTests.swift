import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// The client's debugger: breakpoints and single steps.
@Suite struct GuestDebugTests {
    private static let enable = UInt32(KVM_GUESTDBG_ENABLE)
    private static let software = enable | UInt32(KVM_GUESTDBG_USE_SW_BP)
    private static let hardware = enable | UInt32(KVM_GUESTDBG_USE_HW_BP)
    private static let step = enable | UInt32(KVM_GUESTDBG_SINGLESTEP)

    private func set(
        _ vcpu: VCPU, _ control: UInt32, address: UInt64 = 0, number: Int = 0, dr7: UInt64 = 0x400
    ) throws(Errno) {
        var debug = kvm_guest_debug()
        debug.control = control
        withUnsafeMutableBytes(of: &debug.arch.debugreg) { bytes in
            bytes.storeBytes(of: address, toByteOffset: number * 8, as: UInt64.self)
            bytes.storeBytes(of: dr7, toByteOffset: 56, as: UInt64.self)
        }
        try vcpu.request(.setGuestDebug, debug)
    }

    /// Runs, and expects an exit for the debugger.
    private func expectStop(
        _ vcpu: VCPU, exception: UInt32 = 1, at pc: Int, dr6: UInt64? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        #expect(try vcpu.runForReason() == KVM_EXIT_DEBUG, sourceLocation: sourceLocation)
        let debug = vcpu.runArea.run.pointee.debug.arch
        #expect(debug.exception == exception, sourceLocation: sourceLocation)
        #expect(debug.pc == UInt64(SmallMachine.codeAddress + pc), sourceLocation: sourceLocation)
        if let dr6 { #expect(debug.dr6 == dr6, sourceLocation: sourceLocation) }
    }

    private func skip(_ vcpu: VCPU, _ byteCount: Int) throws {
        var registers = try vcpu.registers()
        registers.rip = registers.rip &+ UInt64(bitPattern: Int64(byteCount))
        try vcpu.setRegisters(registers)
    }

    @Test func capabilities() throws {
        let small = try SmallMachine()
        #expect(try small.system.checkExtension(.setGuestDebug) == 1)
        #expect(try small.system.checkExtension(.setGuestDebug2) == 0x1F_0003)
    }

    @Test func softwareBreakpoint() throws {
        // int3 ; hlt
        let small = try SmallMachine(code: [0xCC, 0xF4])
        small.setHandler(vector: 3, code: [0xE6, 0x10])
        try set(small.vcpu, Self.software)
        try expectStop(small.vcpu, exception: 3, at: 0)
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress))
        try expectStop(small.vcpu, exception: 3, at: 0)
        // It was the guest's own.
        try set(small.vcpu, Self.software | UInt32(KVM_GUESTDBG_INJECT_BP))
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
        // The return address is behind the instruction.
        #expect(small.memory.load(fromByteOffset: 0x7FFA, as: UInt16.self) == UInt16(SmallMachine.codeAddress + 1))
    }

    /// Debuggers write INT3 over code that has run.
    @Test func breakpointInCodeThatRan() throws {
        // again: out 0x10,al ; nop ; jmp again
        let small = try SmallMachine(code: [0xE6, 0x10, 0x90, 0xEB, 0xFB])
        for _ in 0..<3 { #expect(try small.vcpu.runForReason() == KVM_EXIT_IO) }
        small.memory[SmallMachine.codeAddress + 2] = 0xCC
        try set(small.vcpu, Self.software)
        try expectStop(small.vcpu, exception: 3, at: 2)
        small.memory[SmallMachine.codeAddress + 2] = 0x90
        try set(small.vcpu, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }

    @Test func breakpointsAreTheGuestsWithoutDebugger() throws {
        let small = try SmallMachine(code: [0xCC, 0xF4])
        small.setHandler(vector: 3, code: [0xE6, 0x10])
        try set(small.vcpu, Self.software)
        try set(small.vcpu, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }

    @Test(arguments: 0..<4) func instructionBreakpoint(number: Int) throws {
        // nop ; nop ; hlt
        let small = try SmallMachine(code: [0x90, 0x90, 0xF4])
        let address = UInt64(SmallMachine.codeAddress + 1)
        try set(small.vcpu, Self.hardware, address: address, number: number, dr7: 0x400 | 2 << UInt64(2 * number))
        try expectStop(small.vcpu, at: 1, dr6: 0xFFFF_0FF0 | 1 << UInt64(number))
        try skip(small.vcpu, 1)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
        // The guest's registers know nothing of it.
        let own = try small.vcpu.debugRegisters()
        #expect(own.dr6 == 0xFFFF_0FF0 && own.dr7 == 0x400 && own.db.0 == 0)
    }

    @Test(arguments: 0..<4) func dataBreakpoint(number: Int) throws {
        // mov ax,0x1234 ; mov [0x2000],ax ; hlt
        let small = try SmallMachine(code: [0xB8, 0x34, 0x12, 0xA3, 0x00, 0x20, 0xF4])
        let control: UInt64 = 0x400 | 2 << UInt64(2 * number) | 0xD_0000 << UInt64(4 * number)
        try set(small.vcpu, Self.hardware, address: 0x2000, number: number, dr7: control)
        try expectStop(small.vcpu, at: 6, dr6: 0xFFFF_0FF0 | 1 << UInt64(number))
        #expect(small.memory.load(fromByteOffset: 0x2000, as: UInt16.self) == 0x1234)
    }

    @Test func steps() throws {
        // sti ; xor eax,eax ; cpuid ; mov ecx,0x1A0 ; rdmsr ; cli ; hlt
        let small = try SmallMachine(code: [
            0xFB, 0x66, 0x31, 0xC0, 0x0F, 0xA2, 0x66, 0xB9, 0xA0, 0x01, 0, 0, 0x0F, 0x32, 0xFA, 0xF4
        ])
        for end in [1, 4, 6, 12, 14, 15] {
            try set(small.vcpu, Self.step | UInt32(KVM_GUESTDBG_BLOCKIRQ))
            try expectStop(small.vcpu, at: end, dr6: 0xFFFF_4FF0)
            #expect(try small.vcpu.registers().rflags & 0x100 == 0)
        }
        try set(small.vcpu, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_HLT)
    }

    /// An interrupt that waits is delivered only when the debugger is done.
    @Test func stepsKeepInterruptsAway() throws {
        // sti ; nop ; nop ; nop ; hlt
        let small = try SmallMachine(code: [0xFB, 0x90, 0x90, 0x90, 0xF4], hasIRQChip: true)
        small.setHandler(vector: 2, code: [0xE6, 0x10])
        try small.vcpu.nmi()
        for end in 1...3 {
            try set(small.vcpu, Self.step | UInt32(KVM_GUESTDBG_BLOCKIRQ))
            try expectStop(small.vcpu, at: end)
        }
        try set(small.vcpu, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }

    /// The step over an instruction that the client completes ends behind it, also if the client wants out meanwhile.
    @Test(arguments: [false, true]) func stepOverAnAccess(wantsOut: Bool) throws {
        // in al,0x10 ; nop ; hlt
        let small = try SmallMachine(code: [0xE4, 0x10, 0x90, 0xF4])
        try set(small.vcpu, Self.step)
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
        access.value = 0x5A
        small.vcpu.immediateExit = wantsOut
        try expectStop(small.vcpu, at: 2, dr6: 0xFFFF_4FF0)
        #expect(try small.vcpu.registers().rax & 0xFF == 0x5A)
        small.vcpu.immediateExit = false
        try expectStop(small.vcpu, at: 3)
    }

    @Test func stepsThroughARepeatedInstruction() throws {
        // mov cx,3 ; mov di,0x2000 ; rep stosb ; hlt
        let small = try SmallMachine(code: [0xB9, 3, 0, 0xBF, 0, 0x20, 0xF3, 0xAA, 0xF4])
        try set(small.vcpu, Self.step)
        for end in [3, 6, 6, 6, 8] { try expectStop(small.vcpu, at: end) }
        try expectHalt(small.vcpu)
    }

    private func expectHalt(_ vcpu: VCPU) throws { #expect(try vcpu.runForReason() == KVM_EXIT_HLT) }

    @Test func stepsIntoHandlers() throws {
        // int 0x40
        let small = try SmallMachine(code: [0xCD, 0x40])
        small.setHandler(vector: 0x40, code: [0x90, 0xF4])
        try set(small.vcpu, Self.step)
        try expectStop(small.vcpu, at: 0x2000)
        try expectStop(small.vcpu, at: 0x2001)
    }

    @Test func accessToDebugRegisters() throws {
        // mov eax,dr0 ; hlt
        let small = try SmallMachine(code: [0x0F, 0x21, 0xC0, 0xF4])
        try set(small.vcpu, Self.hardware, dr7: 0x400 | 1 << 13)
        try expectStop(small.vcpu, at: 0, dr6: 0xFFFF_0FF0 | 1 << 13)
        try set(small.vcpu, 0)
        try expectHalt(small.vcpu)
    }

    @Test func injection() throws {
        let small = try SmallMachine(code: [0xF4])
        small.setHandler(vector: 1, code: [0xE6, 0x10])
        try set(small.vcpu, UInt32(KVM_GUESTDBG_INJECT_DB))
        #expect(throws: Errno.resourceBusy) { try set(small.vcpu, UInt32(KVM_GUESTDBG_INJECT_BP)) }
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }

    /// The guest's own single steps are the debugger's while it steps.
    @Test func trapFlagOfTheGuest() throws {
        // pushf ; or word [0x7FFE],0x100 ; popf ; nop ; nop
        let small = try SmallMachine(code: [0x9C, 0x81, 0x0E, 0xFE, 0x7F, 0x00, 0x01, 0x9D, 0x90, 0x90])
        small.setHandler(vector: 1, code: [0xE6, 0x10])
        try set(small.vcpu, Self.step)
        for end in [1, 7, 8, 9] { try expectStop(small.vcpu, at: end) }
        try set(small.vcpu, 0)
        #expect(try small.vcpu.runForReason() == KVM_EXIT_IO)
    }
}
