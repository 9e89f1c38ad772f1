import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage
import Testing

/// What event descriptors, the ring and split controllers do while a guest runs: the same on each backend.
@Suite(.serialized) struct EventTests {
    /// sti ; hlt ; jmp $-1
    private static let haltLoop: [UInt8] = [0xFB, 0xF4, 0xEB, 0xFD]
    /// Turns the local APIC on as an x2APIC: mov ecx,0x1B ; rdmsr ; or eax,0xC00 ; wrmsr ; mov ecx,0x80F ; mov eax,0x1FF ;
    /// xor edx,edx ; wrmsr. Then out 0x10,al.
    private static let x2APICStart: [UInt8] =
        [0x66, 0xB9, 0x1B, 0, 0, 0, 0x0F, 0x32, 0x66, 0x0D, 0x00, 0x0C, 0, 0, 0x0F, 0x30]
        + [0x66, 0xB9, 0x0F, 0x08, 0, 0, 0x66, 0xB8, 0xFF, 0x01, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30, 0xE6, 0x10]
    /// mov ecx,0x80B ; xor eax,eax ; xor edx,edx ; wrmsr ; out 0x11,al ; iret
    private static let x2APICHandler: [UInt8] = [
        0x66, 0xB9, 0x0B, 0x08, 0, 0, 0x66, 0x31, 0xC0, 0x66, 0x31, 0xD2, 0x0F, 0x30, 0xE6, 0x11, 0xCF
    ]

    private func setHandler(_ vectors: [Int], _ code: [UInt8], of small: TestMachine) {
        for vector in vectors { small.memory.storeBytes(of: 0x3000, toByteOffset: vector * 4, as: UInt32.self) }
        for (index, byte) in code.enumerated() { small.memory[0x3000 + index] = byte }
    }

    /// Runs to the next exit and names it.
    private func nextExit(_ small: TestMachine) throws -> String {
        switch try small.run() {
        case .io(let access): "port \(access.port)"
        case .endOfInterrupt(let vector): "end of \(vector)"
        case .irqWindowOpen: "window"
        case .mmio(let access): "memory \(access.address)"
        case .interrupted: "nothing"
        default: "\(small.vcpu.runArea.run.pointee.exit_reason)"
        }
    }

    private func expectExit(_ small: TestMachine, _ expected: String) throws {
        let exit = try nextExit(small)
        #expect(exit == expected)
    }

    private func setPin(_ pin: Int, _ entry: UInt64, of machine: VirtualMachine) throws {
        var ioapic = try machine.irqChip(.ioapic)
        withUnsafeMutableBytes(of: &ioapic) {
            $0.storeBytes(of: entry, toByteOffset: 8 + 24 + pin * 8, as: UInt64.self)
        }
        try machine.setIRQChip(ioapic)
    }

    private func take(_ event: borrowing OwnedDescriptor) -> UInt64 {
        var value: UInt64 = 0
        return read(event.rawValue, &value, 8) == 8 ? value : 0
    }

    @Test(arguments: Core.available) func resampling(core: Core) throws {
        let small = try TestMachine(core.make(), code: Self.x2APICStart + Self.haltLoop, hasIRQChip: true)
        setHandler([0x45], Self.x2APICHandler, of: small)
        try setPin(20, 0x8045, of: small.machine)
        let event = try OwnedDescriptor.eventCounter()
        let resample = try OwnedDescriptor.eventCounter()
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20, resample: resample.rawValue)
        try expectExit(small, "port 16")
        for _ in 0..<3 {
            EventDescriptor.signal(event.rawValue)
            try expectExit(small, "port 17")
            let count = take(resample)
            #expect(count == 1)
        }
        try small.machine.removeInterruptEvent(descriptor: event.rawValue, gsi: 20)
    }

    @Test(arguments: Core.available) func writes(core: Core) throws {
        // mov al,5 ; out 0x60,al ; out 0x60,ax ; out 0x62,al ; out 0x10,al ; hlt
        let small = try TestMachine(
            core.make(), code: [0xB8, 5, 0, 0xE6, 0x60, 0xE7, 0x60, 0xE6, 0x62, 0xE6, 0x10, 0xF4])
        let first = try OwnedDescriptor.eventCounter()
        let second = try OwnedDescriptor.eventCounter()
        let trigger = IOEvent(address: 0x60, byteCount: 1, isPort: true, value: 5)
        try small.machine.addIOEvent(trigger, descriptor: first.rawValue)
        try small.machine.addIOEvent(IOEvent(address: 0x62, byteCount: 0, isPort: true), descriptor: second.rawValue)
        try expectExit(small, "port 96")
        try expectExit(small, "port 16")
        let counts = [take(first), take(second)]
        #expect(counts == [1, 1])
    }

    @Test(arguments: Core.available) func ring(core: Core) throws {
        // mov cx,200 ; again: mov al,cl ; out 0x60,al ; loop again ; out 0x10,al ; hlt
        let small = try TestMachine(
            core.make(), code: [0xB9, 200, 0, 0x88, 0xC8, 0xE6, 0x60, 0xE2, 0xFA, 0xE6, 0x10, 0xF4])
        let page = try small.machine.checkExtension(.coalescedMMIO)
        #expect(page == 2)
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 1, isPort: true)
        var values: [UInt64] = []
        func drain() { values += small.vcpu.runArea.takeCoalescedWrites(pageOffset: page).map(\.value) }
        while case .io(let access) = try small.run(), access.port == 0x60 {
            drain()
            values.append(UInt64(access.value))
        }
        drain()
        #expect(values == (1...200).reversed().map { UInt64($0) })
    }

    @Test(arguments: Core.native) func splitEnds(core: Core) throws {
        let small = try TestMachine(core.make(), code: Self.x2APICStart + Self.haltLoop, splitPinCount: 24)
        setHandler([0x45, 0x46, 0x47], Self.x2APICHandler, of: small)
        try small.machine.setGSIRouting([
            .message(gsi: 10, address: 0xFEE0_0000, data: 0x8045), .message(gsi: 11, address: 0xFEE0_0000, data: 0x46),
            .message(gsi: 24, address: 0xFEE0_0000, data: 0x8047)
        ])
        try expectExit(small, "port 16")
        for _ in 0..<2 {
            #expect(try small.machine.irqLineStatus(gsi: 10, level: true) == 1)
            try expectExit(small, "end of 69")
            try expectExit(small, "port 17")
        }
        for gsi: UInt32 in [11, 24] {
            #expect(try small.machine.irqLineStatus(gsi: gsi, level: true) == 1)
            try expectExit(small, "port 17")
        }
    }

    @Test(arguments: Core.native) func splitWindows(core: Core) throws {
        // cli ; out 0x10,al ; sti ; nop ; out 0x12,al ; hlt ; jmp $-1
        let small = try TestMachine(
            core.make(), code: [0xFA, 0xE6, 0x10, 0xFB, 0x90, 0xE6, 0x12, 0xF4, 0xEB, 0xFD], splitPinCount: 24)
        // out 0x11,al ; iret
        setHandler([0x24], [0xE6, 0x11, 0xCF], of: small)
        let run = small.vcpu.runArea.run
        func ready() -> Bool { run.pointee.ready_for_interrupt_injection != 0 }
        try expectExit(small, "port 16")
        #expect(!ready())
        run.pointee.request_interrupt_window = 1
        try expectExit(small, "window")
        #expect(ready())
        run.pointee.request_interrupt_window = 0
        try small.vcpu.interrupt(vector: 0x24)
        #expect(throws: Errno.fileExists) { try small.vcpu.interrupt(vector: 0x24) }
        try expectExit(small, "port 17")
        #expect(!ready())
        try expectExit(small, "port 18")
        // Into the halt.
        run.pointee.request_interrupt_window = 1
        try expectExit(small, "window")
        run.pointee.request_interrupt_window = 0
        try small.vcpu.interrupt(vector: 0x24)
        try expectExit(small, "port 17")
    }
}
