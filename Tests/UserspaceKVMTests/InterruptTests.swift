import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Interrupts of the machine's own controllers, taken by guests in real mode. Handlers write to port 0x10.
@Suite struct InterruptTests {
    /// sti ; hlt ; jmp $-1
    private static let haltLoop: [UInt8] = [0xFB, 0xF4, 0xEB, 0xFD]
    /// out 0x10,al ; iret
    private static let handler: [UInt8] = [0xE6, 0x10, 0xCF]

    private func expectPortExit(_ small: SmallMachine, _ comment: Comment? = nil) throws {
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(access.port == 0x10, comment)
    }

    @Test func lineThroughIOAPIC() throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x45, code: Self.handler)
        try small.enableAPIC()
        var ioapic = try small.machine.irqChip(.ioapic)
        // Pin 20, which no PIC shares: vector 0x45, edge, to APIC 0.
        withUnsafeMutableBytes(of: &ioapic) { $0.storeBytes(of: 0x45, toByteOffset: 8 + 24 + 20 * 8, as: UInt64.self) }
        try small.machine.setIRQChip(ioapic)
        #expect(try small.machine.irqLineStatus(gsi: 20, level: true) == 1)
        try expectPortExit(small)
        // In service; the next edge waits for the end of interrupt, which this handler never gives.
        try small.machine.irqLine(gsi: 20, level: false)
        let special = try small.vcpu.localAPIC()
        let inService = withUnsafeBytes(of: special) { $0.load(fromByteOffset: 0x120, as: UInt32.self) }
        #expect(inService == 1 << 5)
    }

    /// Raises line 4 of a PIC whose vectors begin at 0x20.
    private func raiseLineThroughPIC(_ machine: VirtualMachine) throws {
        var pic = try machine.irqChip(.picMaster)
        pic.chip.pic.irq_base = 0x20
        pic.chip.pic.imr = 0
        try machine.setIRQChip(pic)
        try machine.irqLine(gsi: 4, level: true)
    }

    @Test func lineThroughPIC() throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x24, code: Self.handler)
        try raiseLineThroughPIC(small.machine)
        try expectPortExit(small)
        #expect(try small.machine.irqChip(.picMaster).chip.pic.isr == 1 << 4)
    }

    @Test func timerThroughPIC() throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        try small.machine.createPIT2()
        small.setHandler(vector: 0x20, code: [0x50, 0xB0, 0x20, 0xE6, 0x20, 0x58, 0xE6, 0x10, 0xCF])
        var pic = try small.machine.irqChip(.picMaster)
        pic.chip.pic.irq_base = 0x20
        pic.chip.pic.imr = 0xFE
        try small.machine.setIRQChip(pic)
        var timer = try small.machine.pit()
        timer.channels.0.mode = 2
        timer.channels.0.count = 2386
        timer.channels.0.rw_mode = 3
        timer.channels.0.gate = 1
        try small.machine.setPIT(timer)
        // Each tick writes to the port after its end of interrupt.
        for tick in 0..<5 { try expectPortExit(small, "tick \(tick)") }
    }

    @Test func routeToMessage() throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x46, code: Self.handler)
        try small.enableAPIC()
        try small.machine.setGSIRouting([.message(gsi: 30, address: 0xFEE0_0000, data: 0x46)])
        #expect(try small.machine.irqLineStatus(gsi: 30, level: true) == 1)
        #expect(try small.machine.irqLineStatus(gsi: 4, level: true) == -1)
        try expectPortExit(small)
    }

    @Test(arguments: [false, true]) func nonMaskable(hasIRQChip: Bool) throws {
        // jmp $ with interrupts off
        let small = try SmallMachine(code: [0xEB, 0xFE], hasIRQChip: hasIRQChip)
        small.setHandler(vector: 2, code: Self.handler)
        try small.vcpu.nmi()
        try expectPortExit(small)
        #expect(try small.vcpu.events().nmi.masked == 1)
    }

    /// sti ; nop ; out 0x11,al ; jmp $
    private static let portWriter: [UInt8] = [0xFB, 0x90, 0xE6, 0x11, 0xEB, 0xFE]
    /// Behind its OUT.
    private static let afterWrite = SmallMachine.codeAddress + 4

    /// Runs ``portWriter`` to its exit.
    private func runToWrite() throws -> SmallMachine {
        let small = try SmallMachine(code: Self.portWriter, hasIRQChip: true)
        guard case .io(let access) = try small.vcpu.run(), access.port == 0x11 else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return small
        }
        return small
    }

    /// A device raises its line while the client performs the access: the guest takes the interrupt at once, and the
    /// access is not made again.
    @Test func lineRaisedDuringAnExit() throws {
        let small = try runToWrite()
        small.setHandler(vector: 0x24, code: Self.handler)
        try raiseLineThroughPIC(small.machine)
        try expectPortExit(small)
        #expect(small.memory.load(fromByteOffset: 0x7FFA, as: UInt16.self) >= Self.afterWrite)
    }

    @Test func nonMaskableDuringAnExit() throws {
        let small = try runToWrite()
        small.setHandler(vector: 2, code: Self.handler)
        try small.vcpu.nmi()
        try expectPortExit(small)
        #expect(small.memory.load(fromByteOffset: 0x7FFA, as: UInt16.self) >= Self.afterWrite)
    }

    /// A run that may not enter the guest completes the access and no more.
    @Test func immediateExitCompletesTheAccess() throws {
        let small = try runToWrite()
        small.vcpu.immediateExit = true
        guard case .interrupted = try small.vcpu.run() else {
            Issue.record("not interrupted: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.registers().rip == UInt64(Self.afterWrite))
    }

    /// A processor sends itself an IPI through the page at 0xFEE00000, out of reach of real mode: x2APIC registers.
    @Test func selfIPI() throws {
        // mov ecx,0x1B ; rdmsr ; or eax,0xC00 ; wrmsr ; mov ecx,0x80F ; mov eax,0x1FF ; xor edx,edx ; wrmsr ;
        // mov ecx,0x83F ; mov eax,0x47 ; wrmsr ; sti ; jmp $
        let small = try SmallMachine(
            code: [0x66, 0xB9, 0x1B, 0, 0, 0, 0x0F, 0x32, 0x66, 0x0D, 0x00, 0x0C, 0, 0, 0x0F, 0x30]
                + [0x66, 0xB9, 0x0F, 0x08, 0, 0, 0x66, 0xB8, 0xFF, 0x01, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30]
                + [0x66, 0xB9, 0x3F, 0x08, 0, 0, 0x66, 0xB8, 0x47, 0, 0, 0, 0x0F, 0x30, 0xFB, 0xEB, 0xFE],
            hasIRQChip: true)
        small.setHandler(vector: 0x47, code: Self.handler)
        try expectPortExit(small)
        #expect(try small.vcpu.specialRegisters().apic_base & 0xC00 == 0xC00)
    }
}
