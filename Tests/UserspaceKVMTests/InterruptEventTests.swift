import CHost
import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage
import TestSupport
import Testing
import UserspaceKVM

/// Event descriptors whose signals are interrupts (`KVM_IRQFD`).
@Suite struct InterruptEventTests {
    /// sti ; hlt ; jmp $-1
    private static let haltLoop: [UInt8] = [0xFB, 0xF4, 0xEB, 0xFD]
    /// out 0x10,al ; iret
    private static let handler: [UInt8] = [0xE6, 0x10, 0xCF]
    /// push ax ; mov al,0x20 ; out 0x20,al ; pop ax ; out 0x10,al ; iret
    private static let handlerWithEnd: [UInt8] = [0x50, 0xB0, 0x20, 0xE6, 0x20, 0x58, 0xE6, 0x10, 0xCF]
    /// Turns the local APIC on as an x2APIC, says so, and halts: mov ecx,0x1B ; rdmsr ; or eax,0xC00 ; wrmsr ; mov ecx,0x80F ;
    /// mov eax,0x1FF ; xor edx,edx ; wrmsr ; out 0x10,al ; sti ; hlt ; jmp $-1
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

    /// Programs a pin of the IOAPIC.
    private func setPin(_ pin: Int, _ entry: UInt64, of machine: VirtualMachine) throws {
        var ioapic = try machine.irqChip(.ioapic)
        withUnsafeMutableBytes(of: &ioapic) {
            $0.storeBytes(of: entry, toByteOffset: 8 + 24 + pin * 8, as: UInt64.self)
        }
        try machine.setIRQChip(ioapic)
    }

    /// A machine that waits for vector 0x45 of its APIC, which GSI 30 sends as a message.
    private func messageMachine() throws -> SmallMachine {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x45, code: Self.handler)
        try small.enableAPIC()
        try small.machine.setGSIRouting([.message(gsi: 30, address: 0xFEE0_0000, data: 0x45)])
        return small
    }

    /// Whether a vector waits in the vCPU's APIC, which is then empty.
    private func takeRequest(_ vector: Int, of small: SmallMachine) throws -> Bool {
        var page = try small.vcpu.localAPIC()
        let isRequested = withUnsafeMutableBytes(of: &page) { bytes in
            let offset = 0x200 + vector / 32 * 16
            let word = bytes.load(fromByteOffset: offset, as: UInt32.self)
            bytes.storeBytes(of: word & ~(1 << UInt32(vector % 32)), toByteOffset: offset, as: UInt32.self)
            return word >> UInt32(vector % 32) & 1 != 0
        }
        try small.vcpu.setLocalAPIC(page)
        return isRequested
    }

    @Test func capabilities() throws {
        let machine = try SmallMachine().machine
        #expect(try machine.checkExtension(.irqEvents) == 1)
        #expect(try machine.checkExtension(.irqEventResampling) == 1)
    }

    @Test(arguments: [false, true]) func edgeThroughIOAPIC(nonBlocking: Bool) throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x45, code: Self.handler)
        try small.enableAPIC()
        try setPin(20, 0x45, of: small.machine)
        let event = try TestEvent(nonBlocking: nonBlocking)
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20)
        event.signal()
        try expectPortExit(small)
        // What was delivered was taken from the counter.
        var poll = pollfd(fd: event.rawValue, events: Int16(POLLIN), revents: 0)
        #expect(Glibc.poll(&poll, 1, 0) == 0)
    }

    @Test func messages() throws {
        let small = try messageMachine()
        let event = try TestEvent()
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30)
        event.signal()
        try expectPortExit(small)
    }

    @Test func aPendingEventIsDelivered() throws {
        let small = try messageMachine()
        let event = try TestEvent(initial: 3)
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30)
        try expectPortExit(small)
    }

    /// An event follows its line to where later routes lead.
    @Test func routesChange() throws {
        let small = try messageMachine()
        // The handler of 0x45 stays where it is; vector 0x46 has the same.
        small.setHandler(vector: 0x46, code: Self.handler)
        let event = try TestEvent()
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 31)
        try small.machine.setGSIRouting([.message(gsi: 31, address: 0xFEE0_0000, data: 0x46)])
        event.signal()
        try expectPortExit(small)
        var page = try small.vcpu.localAPIC()
        #expect(withUnsafeBytes(of: &page) { $0.load(fromByteOffset: 0x120, as: UInt32.self) } == 1 << 6)
    }

    @Test func nothingComesAfterTheRemoval() throws {
        let small = try messageMachine()
        let event = try TestEvent()
        var generator = SeededGenerator(seed: 0x1F9D)
        for round in 0..<300 {
            try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30)
            event.signal()
            if round & 1 == 0 { for _ in 0..<generator.next() % 2000 { martlet_pause() } }
            try small.machine.removeInterruptEvent(descriptor: event.rawValue, gsi: 30)
            _ = try takeRequest(0x45, of: small)
            event.signal()
            #expect(try !takeRequest(0x45, of: small), "round \(round)")
            _ = event.take()
        }
        // Not taken by anybody, so it is the client's again.
        event.signal()
        #expect(event.take() == 1)
    }

    /// Once routes are set, no event follows the old ones.
    @Test func routesChangeWhileEventsCome() throws {
        let small = try messageMachine()
        let machine = small.machine
        let event = try TestEvent()
        try machine.addInterruptEvent(descriptor: event.rawValue, gsi: 30)
        let isDone = Flag()
        try withThreads(1) { _ in
            while !isDone.isSet { event.signal() }
        } meanwhile: {
            defer { isDone.set() }
            for round in 0..<200 {
                let vectors: [UInt32] = round & 1 == 0 ? [0x46, 0x45] : [0x45, 0x46]
                try machine.setGSIRouting([.message(gsi: 30, address: 0xFEE0_0000, data: vectors[0])])
                _ = try takeRequest(Int(vectors[1]), of: small)
                #expect(try !takeRequest(Int(vectors[1]), of: small), "round \(round)")
            }
        }
    }

    @Test func resamplingThroughPIC() throws {
        let small = try SmallMachine(code: Self.haltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x25, code: Self.handlerWithEnd)
        var pic = try small.machine.irqChip(.picMaster)
        pic.chip.pic.irq_base = 0x20
        pic.chip.pic.imr = 0
        pic.chip.pic.elcr = 1 << 5
        try small.machine.setIRQChip(pic)
        let (event, resample) = (try TestEvent(), try TestEvent())
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 5, resample: resample.rawValue)
        for round in 0..<3 {
            event.signal()
            try expectPortExit(small, "round \(round)")
            #expect(resample.take() == 1, "round \(round)")
            #expect(try small.machine.irqChip(.picMaster).chip.pic.irr & 1 << 5 == 0)
        }
    }

    @Test func resamplingThroughIOAPIC() throws {
        let small = try SmallMachine(code: Self.x2APICHaltLoop, hasIRQChip: true)
        small.setHandler(vector: 0x45, code: Self.x2APICHandler)
        // Level-triggered.
        try setPin(20, 0x8045, of: small.machine)
        // Two devices share the line.
        let events = [try TestEvent(), try TestEvent()]
        let resamples = [try TestEvent(), try TestEvent()]
        for (event, resample) in zip(events, resamples) {
            try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20, resample: resample.rawValue)
        }
        try expectPortExit(small, "the APIC is on")
        events[0].signal()
        try expectPortExit(small)
        for resample in resamples { #expect(resample.take() == 1) }
        events[1].signal()
        try expectPortExit(small)
        for resample in resamples { #expect(resample.take() == 1) }
        // One is removed while it holds the line: the other keeps it.
        try small.machine.removeInterruptEvent(descriptor: events[0].rawValue, gsi: 20)
        events[1].signal()
        try expectPortExit(small)
        #expect(resamples[0].take() == 0)
        #expect(resamples[1].take() == 1)
    }

    /// The line that a removed event has raised falls.
    @Test func theLineFallsWithTheLastEvent() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let (event, resample) = (try TestEvent(), try TestEvent())
        func isHigh() throws -> Bool {
            let ioapic = try small.machine.irqChip(.ioapic)
            return ioapic.chip.ioapic.irr >> 20 & 1 != 0
        }
        try setPin(20, 0x1_8045, of: small.machine)
        try small.machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20, resample: resample.rawValue)
        event.signal()
        while try !isHigh() { sched_yield() }
        try small.machine.removeInterruptEvent(descriptor: event.rawValue, gsi: 20)
        #expect(try !isHigh())
        #expect(resample.take() == 0)
    }

    @Test func errors() throws {
        let small = try SmallMachine(hasIRQChip: true)
        let machine = small.machine
        let event = try TestEvent()
        try machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20)
        #expect(throws: Errno.resourceBusy) { try machine.addInterruptEvent(descriptor: event.rawValue, gsi: 20) }
        let copy = try event.descriptor.duplicate()
        let copyNumber = copy.rawValue
        #expect(throws: Errno.resourceBusy) { try machine.addInterruptEvent(descriptor: copyNumber, gsi: 21) }
        #expect(throws: Errno.badFileDescriptor) { try machine.addInterruptEvent(descriptor: -1, gsi: 20) }
        #expect(throws: Errno.badFileDescriptor) { try machine.removeInterruptEvent(descriptor: -1, gsi: 20) }
        let file = try OwnedDescriptor.open(path: "/dev/null")
        let fileNumber = file.rawValue
        #expect(throws: Errno.invalidArgument) { try machine.addInterruptEvent(descriptor: fileNumber, gsi: 20) }
        #expect(throws: Errno.invalidArgument) { try machine.removeInterruptEvent(descriptor: fileNumber, gsi: 20) }
        let other = try TestEvent()
        #expect(throws: Errno.badFileDescriptor) {
            try machine.addInterruptEvent(descriptor: other.rawValue, gsi: 20, resample: -1)
        }
        #expect(throws: Errno.invalidArgument) {
            try machine.addInterruptEvent(descriptor: other.rawValue, gsi: 20, resample: fileNumber)
        }
        // Nothing to remove is no error, and a line that is not there is no error.
        try machine.removeInterruptEvent(descriptor: event.rawValue, gsi: 21)
        try machine.removeInterruptEvent(descriptor: other.rawValue, gsi: 20)
        try machine.addInterruptEvent(descriptor: other.rawValue, gsi: 5000)
        try machine.removeInterruptEvent(descriptor: copyNumber, gsi: 20)
        try machine.addInterruptEvent(descriptor: event.rawValue, gsi: 21)
        var request = kvm_irqfd()
        request.flags = 1 << 2
        #expect(throws: Errno.invalidArgument) {
            try withUnsafeMutablePointer(to: &request) { pointer in
                _ = try small.backend.ioctl(
                    machine.descriptor, KVMRequest.setInterruptEvent.rawValue, UInt(bitPattern: pointer))
            }
        }
        let plain = try SmallMachine().machine
        #expect(throws: Errno.invalidArgument) { try plain.addInterruptEvent(descriptor: -1, gsi: 20) }
    }
}

private final class Flag: Sendable {
    private let value = Atomic<Bool>(false)

    var isSet: Bool { value.load(ordering: .relaxed) }
    func set() { value.store(true, ordering: .relaxed) }
}
