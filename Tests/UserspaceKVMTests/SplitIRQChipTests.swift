import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Local APICs in the core, the other controllers in the client (`KVM_CAP_SPLIT_IRQCHIP`).
@Suite struct SplitIRQChipTests {
    /// sti ; hlt ; jmp $-1
    private static let haltLoop: [UInt8] = [0xFB, 0xF4, 0xEB, 0xFD]
    /// out 0x10,al ; iret
    private static let handler: [UInt8] = [0xE6, 0x10, 0xCF]
    /// Turns the local APIC on as an x2APIC, says so, and halts; see ``InterruptEventTests``.
    private static let x2APICHaltLoop: [UInt8] =
        [0x66, 0xB9, 0x1B, 0, 0, 0, 0x0F, 0x32, 0x66, 0x0D, 0x00, 0x0C, 0, 0, 0x0F, 0x30]
        + [0x66, 0xB9, 0x0F, 0x08, 0, 0, 0x66, 0xB8, 0xFF, 0x01, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30]
        + [0xE6, 0x10] + haltLoop
    /// mov ecx,0x80B ; xor eax,eax ; xor edx,edx ; wrmsr ; out 0x10,al ; iret
    private static let x2APICHandler: [UInt8] = [
        0x66, 0xB9, 0x0B, 0x08, 0, 0, 0x66, 0x31, 0xC0, 0x66, 0x31, 0xD2, 0x0F, 0x30, 0xE6, 0x10, 0xCF
    ]

    private func expectPortExit(_ small: SmallMachine, _ comment: Comment? = nil) throws {
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(access.port == 0x10, comment)
    }

    private func expectEnd(_ small: SmallMachine, of vector: UInt8) throws {
        guard case .endOfInterrupt(vector) = try small.vcpu.run() else {
            Issue.record("no end of interrupt \(vector): \(small.vcpu.runArea.exit)")
            return
        }
    }

    @Test func creation() throws {
        let small = try SmallMachine()
        #expect(try small.machine.checkExtension(.splitIRQChip) == 1)
        // There is a vCPU.
        #expect(throws: Errno.fileExists) { try small.machine.createSplitIRQChip(reservedPinCount: 24) }
        let machine = try small.system.createVM()
        #expect(throws: Errno.invalidArgument) { try machine.createSplitIRQChip(reservedPinCount: 4097) }
        try machine.createSplitIRQChip(reservedPinCount: 4096)
        #expect(throws: Errno.fileExists) { try machine.createSplitIRQChip(reservedPinCount: 24) }
        #expect(throws: Errno.fileExists) { try machine.createIRQChip() }
        #expect(throws: Errno.noSuchFileOrDirectory) { try machine.createPIT2() }
        #expect(throws: Errno.noSuchAddressOrDevice) { try machine.irqChip(.ioapic) }
        let full = try small.system.createVM()
        try full.createIRQChip()
        #expect(throws: Errno.fileExists) { try full.createSplitIRQChip(reservedPinCount: 24) }
    }

    @Test func routes() throws {
        let small = try SmallMachine(code: Self.haltLoop, splitPinCount: 24)
        small.setHandler(vector: 0x45, code: Self.handler)
        try small.enableAPIC()
        // No routes at first, and none to chips.
        #expect(try small.machine.irqLineStatus(gsi: 4, level: true) == -1)
        #expect(throws: Errno.invalidArgument) {
            try small.machine.setGSIRouting([.irqChip(gsi: 4, chip: .ioapic, pin: 4)])
        }
        try small.machine.setGSIRouting([.message(gsi: 4, address: 0xFEE0_0000, data: 0x45)])
        #expect(try small.machine.irqLineStatus(gsi: 4, level: true) == 1)
        try expectPortExit(small)
    }

    @Test func eventsAreMessages() throws {
        let small = try SmallMachine(code: Self.haltLoop, splitPinCount: 24)
        small.setHandler(vector: 0x45, code: Self.handler)
        try small.enableAPIC()
        try small.machine.setGSIRouting([.message(gsi: 30, address: 0xFEE0_0000, data: 0x45)])
        let (event, resample) = (try TestEvent(), try TestEvent())
        // There is no IOAPIC whose line could fall.
        #expect(throws: Errno.invalidArgument) {
            try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30, resample: resample.rawValue)
        }
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30)
        event.signal()
        try expectPortExit(small)
    }

    /// The client's IOAPIC hears of the ends of level-triggered interrupts of its pins, and of no others.
    @Test func endsOfInterrupts() throws {
        let small = try SmallMachine(code: Self.x2APICHaltLoop, splitPinCount: 24)
        for vector in [0x45, 0x46, 0x47] { small.setHandler(vector: vector, code: Self.x2APICHandler) }
        try small.machine.setGSIRouting([
            .message(gsi: 10, address: 0xFEE0_0000, data: 0x8045), .message(gsi: 11, address: 0xFEE0_0000, data: 0x46),
            .message(gsi: 24, address: 0xFEE0_0000, data: 0x8047)
        ])
        try expectPortExit(small, "the APIC is on")
        for round in 0..<2 {
            #expect(try small.machine.irqLineStatus(gsi: 10, level: true) == 1)
            try expectEnd(small, of: 0x45)
            try expectPortExit(small, "round \(round)")
        }
        for gsi: UInt32 in [11, 24] {
            #expect(try small.machine.irqLineStatus(gsi: gsi, level: true) == 1)
            try expectPortExit(small, "GSI \(gsi)")
        }
    }

    /// The client's PIC: one vector at a time, taken when the processor can.
    @Test func externalInterrupts() throws {
        let small = try SmallMachine(code: Self.haltLoop, splitPinCount: 24)
        small.setHandler(vector: 0x24, code: Self.handler)
        try small.vcpu.interrupt(vector: 0x24)
        #expect(throws: Errno.fileExists) { try small.vcpu.interrupt(vector: 0x25) }
        try expectPortExit(small)
        // Taken, but the handler runs with interrupts off.
        #expect(small.vcpu.runArea.run.pointee.ready_for_interrupt_injection == 0)
        try small.vcpu.interrupt(vector: 0x24)
        try expectPortExit(small)
    }

    @Test func windowForExternalInterrupts() throws {
        // cli ; out 0x10,al ; sti ; nop ; jmp $
        let small = try SmallMachine(code: [0xFA, 0xE6, 0x10, 0xFB, 0x90, 0xEB, 0xFE], splitPinCount: 24)
        small.setHandler(vector: 0x24, code: Self.handler)
        try expectPortExit(small)
        #expect(small.vcpu.runArea.run.pointee.ready_for_interrupt_injection == 0)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 1
        try expectWindow(small)
        try small.vcpu.interrupt(vector: 0x24)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 0
        try expectPortExit(small)
    }

    /// A processor that halts with interrupts on tells so before it sleeps, and a vector wakes it.
    @Test func windowInAHalt() throws {
        let small = try SmallMachine(code: Self.haltLoop, splitPinCount: 24)
        small.setHandler(vector: 0x24, code: Self.handler)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 1
        try expectWindow(small)
        #expect(try small.vcpu.mpState() == .halted)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 0
        try small.vcpu.interrupt(vector: 0x24)
        try expectPortExit(small)
    }

    private func expectWindow(_ small: SmallMachine) throws {
        guard case .irqWindowOpen = try small.vcpu.run() else {
            Issue.record("no window: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(small.vcpu.runArea.run.pointee.ready_for_interrupt_injection == 1)
    }

    /// With LINT0 masked the 8259 reaches nobody: the vector waits, and there is no window.
    @Test func maskedLINT0() throws {
        let small = try SmallMachine(code: [0xFB, 0x90, 0xE6, 0x10, 0xEB, 0xFE], splitPinCount: 24)
        try small.enableAPIC()
        var page = try small.vcpu.localAPIC()
        withUnsafeMutableBytes(of: &page) { $0.storeBytes(of: 0x1_0700, toByteOffset: 0x350, as: UInt32.self) }
        try small.vcpu.setLocalAPIC(page)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 1
        try small.vcpu.interrupt(vector: 0x24)
        try expectPortExit(small)
        #expect(small.vcpu.runArea.run.pointee.ready_for_interrupt_injection == 0)
        #expect(throws: Errno.fileExists) { try small.vcpu.interrupt(vector: 0x24) }
    }
}
