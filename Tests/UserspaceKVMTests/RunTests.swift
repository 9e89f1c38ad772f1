import CHost
import Host
import KVMInterface
import Synchronization
import SystemPackage
import Testing
import UserspaceKVM

/// Small guests in real mode.
@Suite struct RunTests {
    @Test func portOutputAndHalt() throws {
        // mov al,'A' ; out 0x10,al ; hlt
        let small = try SmallMachine(code: [0xB0, 0x41, 0xE6, 0x10, 0xF4])
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
        #expect(access.port == 0x10 && access.isWrite && access.byteCount == 1 && access.value == 0x41)
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt")
            return
        }
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress + 5))
    }

    /// A vCPU that is made to wait in the middle of an access returns where the client wants it, and completes the access later.
    @Test(arguments: [MPState.halted, .uninitialized, .initReceived])
    func waitsWithinAnAccess(state: MPState) throws {
        // in al,0x10 ; out 0x11,al
        let small = try SmallMachine(code: [0xE4, 0x10, 0xE6, 0x11], hasIRQChip: true)
        guard case .io(let access) = try small.vcpu.run(), !access.isWrite else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return
        }
        access.value = 0x5A
        try small.vcpu.setMPState(state)
        small.vcpu.immediateExit = true
        for _ in 0..<3 {
            guard case .interrupted = try small.vcpu.run() else {
                Issue.record("no return: \(small.vcpu.runArea.exit)")
                return
            }
        }
        small.vcpu.immediateExit = false
        try small.vcpu.setMPState(.runnable)
        guard case .io(let output) = try small.vcpu.run() else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(output.port == 0x11 && output.value == 0x5A)
    }

    @Test func portInputTakesTheAnswer() throws {
        // mov dx,0x3F8 ; in al,dx ; mov [0x2000],al ; hlt
        let small = try SmallMachine(code: [0xBA, 0xF8, 0x03, 0xEC, 0xA2, 0x00, 0x20, 0xF4])
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
        #expect(access.port == 0x3F8 && !access.isWrite)
        access.value = 0x5A
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt")
            return
        }
        #expect(small.memory[0x2000] == 0x5A)
    }

    @Test func mmio() throws {
        // mov ax,0xA000 ; mov ds,ax ; mov [0x10],ax — at 0xA0010 there is memory; ES 0xFFFF + 0x4000 has none.
        // mov ax,0xFFFF ; mov es,ax ; mov es:[0x4010],ax ; mov bx,es:[0x4020] ; hlt
        let small = try SmallMachine(code: [
            0xB8, 0xFF, 0xFF, 0x8E, 0xC0, 0x26, 0xA3, 0x10, 0x40, 0x26, 0x8B, 0x1E, 0x20, 0x40, 0xF4
        ])
        guard case .mmio(let write) = try small.vcpu.run() else {
            Issue.record("no MMIO exit")
            return
        }
        #expect(write.address == 0x10_4000 && write.isWrite && write.byteCount == 2 && write.value == 0xFFFF)
        guard case .mmio(let read) = try small.vcpu.run() else {
            Issue.record("no MMIO exit")
            return
        }
        #expect(read.address == 0x10_4010 && !read.isWrite && read.byteCount == 2)
        read.value = 0x1234
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt")
            return
        }
        #expect(try small.vcpu.registers().rbx & 0xFFFF == 0x1234)
    }

    @Test func immediateExit() throws {
        let small = try SmallMachine(code: [0xF4])
        small.vcpu.immediateExit = true
        guard case .interrupted = try small.vcpu.run() else {
            Issue.record("ran")
            return
        }
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress))
        small.vcpu.immediateExit = false
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt")
            return
        }
    }

    /// The answer to an exit is taken over even if the client wants out at once.
    @Test func immediateExitCompletesTheAccess() throws {
        // in al,0x10 ; hlt
        let small = try SmallMachine(code: [0xE4, 0x10, 0xF4])
        guard case .io(let access) = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
        access.value = 0x77
        small.vcpu.immediateExit = true
        guard case .interrupted = try small.vcpu.run() else {
            Issue.record("ran on")
            return
        }
        #expect(try small.vcpu.registers().rip == UInt64(SmallMachine.codeAddress + 2))
        // The run area goes on telling of the exit that was completed.
        #expect(small.vcpu.runArea.run.pointee.exit_reason == UInt32(KVM_EXIT_IO))
        small.vcpu.immediateExit = false
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt")
            return
        }
        #expect(try small.vcpu.registers().rax & 0xFF == 0x77)
    }

    @Test func requestExitEndsALoop() throws {
        // jmp $
        let small = try SmallMachine(code: [0xEB, 0xFE])
        let vcpu = small.vcpu
        let isRunning = Atomic<Bool>(false)
        try withThreads(1) { _ in
            while !isRunning.load(ordering: .acquiring) {}
            vcpu.requestExit()
        } meanwhile: {
            isRunning.store(true, ordering: .releasing)
            guard case .interrupted = try vcpu.run() else {
                Issue.record("no interruption")
                return
            }
        }
    }

    @Test func requestExitEndsAHalt() throws {
        let small = try SmallMachine(code: [0xF4], hasIRQChip: true)
        let vcpu = small.vcpu
        try withThreads(1) { _ in
            vcpu.requestExit()
        } meanwhile: {
            guard case .interrupted = try vcpu.run() else {
                Issue.record("no interruption")
                return
            }
        }
    }

    @Test func clientInjectsAtTheWindow() throws {
        // sti ; nop ; jmp $ — handler at 0x3000: hlt
        let small = try SmallMachine(code: [0xFB, 0x90, 0xEB, 0xFE])
        small.memory.storeBytes(of: 0x3000, toByteOffset: 0x20 * 4, as: UInt32.self)
        small.memory[0x3000] = 0xF4
        small.vcpu.runArea.run.pointee.request_interrupt_window = 1
        guard case .irqWindowOpen = try small.vcpu.run() else {
            Issue.record("no window: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(small.vcpu.runArea.run.pointee.ready_for_interrupt_injection == 1)
        #expect(small.vcpu.runArea.run.pointee.if_flag == 1)
        small.vcpu.runArea.run.pointee.request_interrupt_window = 0
        try small.vcpu.interrupt(vector: 0x20)
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.registers().rip == 0x3001)
    }

    /// HLT inside the core ends with an interrupt that another thread raises.
    @Test func messageWakesAHaltedProcessor() throws {
        // sti ; hlt ; jmp $ — handler at 0x3000: out 0x10,al
        let small = try SmallMachine(code: [0xFB, 0xF4, 0xEB, 0xFE], hasIRQChip: true)
        small.memory.storeBytes(of: 0x3000, toByteOffset: 0x50 * 4, as: UInt32.self)
        small.memory[0x3000] = 0xE6
        small.memory[0x3001] = 0x10
        var page = try small.vcpu.localAPIC()
        withUnsafeMutableBytes(of: &page) { $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self) }
        try small.vcpu.setLocalAPIC(page)
        let machine = small.machine
        let vcpu = small.vcpu
        try withThreads(1) { _ in
            let taken = try? machine.signalMSI(address: 0xFEE0_0000, data: 0x50)
            if taken != true { Issue.record("nobody took the message") }
        } meanwhile: {
            guard case .io(let access) = try vcpu.run() else {
                Issue.record("no port exit")
                return
            }
            #expect(access.port == 0x10)
        }
    }

    /// The APIC timer wakes a halted processor.
    @Test func timerWakesAHaltedProcessor() throws {
        // sti ; hlt ; jmp $ — handler at 0x3000: out 0x10,al
        let small = try SmallMachine(code: [0xFB, 0xF4, 0xEB, 0xFE], hasIRQChip: true)
        small.memory.storeBytes(of: 0x3000, toByteOffset: 0x60 * 4, as: UInt32.self)
        small.memory[0x3000] = 0xE6
        small.memory[0x3001] = 0x10
        try Self.armTimer(small.vcpu)
        guard case .io = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
    }

    /// It interrupts one that runs, through the timer thread.
    @Test func timerInterruptsALoop() throws {
        // sti ; jmp $ — handler at 0x3000: out 0x10,al
        let small = try SmallMachine(code: [0xFB, 0xEB, 0xFE], hasIRQChip: true)
        small.memory.storeBytes(of: 0x3000, toByteOffset: 0x60 * 4, as: UInt32.self)
        small.memory[0x3000] = 0xE6
        small.memory[0x3001] = 0x10
        try Self.armTimer(small.vcpu)
        guard case .io = try small.vcpu.run() else {
            Issue.record("no port exit")
            return
        }
    }

    /// One shot of the APIC timer in 5 ms, vector 0x60.
    private static func armTimer(_ vcpu: VCPU) throws {
        var page = try vcpu.localAPIC()
        withUnsafeMutableBytes(of: &page) {
            $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self)
            $0.storeBytes(of: 0x60, toByteOffset: 0x320, as: UInt32.self)
            $0.storeBytes(of: 0xB, toByteOffset: 0x3E0, as: UInt32.self)
            $0.storeBytes(of: 5_000_000, toByteOffset: 0x380, as: UInt32.self)
            $0.storeBytes(of: 5_000_000, toByteOffset: 0x390, as: UInt32.self)
        }
        try vcpu.setLocalAPIC(page)
    }

    /// INIT and SIPI start a second processor, which writes to memory the first one looks at.
    @Test func secondProcessorStarts() throws {
        // The first: mov byte [0x2000],1 is the second's at 0x4000; this one: cmp byte [0x2000],1 ; jne $-7 ; out 0x10,al
        let small = try SmallMachine(
            code: [0x80, 0x3E, 0x00, 0x20, 0x01, 0x75, 0xF9, 0xE6, 0x10], hasIRQChip: true)
        let second = try small.machine.createVCPU(id: 1)
        try second.setCPUID(try small.system.supportedCPUID())
        // mov byte [0x2000],1 ; hlt
        for (index, byte) in [0xC6, 0x06, 0x00, 0x20, 0x01, 0xF4].enumerated() {
            small.memory[0x4000 + index] = UInt8(byte)
        }
        let machine = small.machine
        let vcpu = small.vcpu
        try withThreads(1) { _ in
            // Runs until the test's end asks for it.
            if case .interrupted? = try? second.run() { return }
            Issue.record("the second processor ended: \(second.runArea.exit)")
        } meanwhile: {
            defer { second.requestExit() }
            // INIT, then SIPI with vector 4, as messages to APIC 1.
            try machine.signalMSI(address: 0xFEE0_1000, data: 0x500)
            try machine.signalMSI(address: 0xFEE0_1000, data: 0x604)
            guard case .io = try vcpu.run() else {
                Issue.record("no port exit")
                return
            }
        }
        #expect(small.memory[0x2000] == 1)
    }

    @Test func tripleFault() throws {
        // lidt [0x2000] (limit 0) ; int3
        let small = try SmallMachine(code: [0x0F, 0x01, 0x1E, 0x00, 0x20, 0xCC])
        guard case .shutdown = try small.vcpu.run() else {
            Issue.record("no shutdown: \(small.vcpu.runArea.exit)")
            return
        }
    }

    /// Code where there is no memory cannot be executed.
    @Test func codeOutsideMemory() throws {
        // jmp 0xFFFF:0x4010, which is 0x10_4000
        let small = try SmallMachine(code: [0xEA, 0x10, 0x40, 0xFF, 0xFF])
        guard case .internalError(let suberror, _) = try small.vcpu.run() else {
            Issue.record("no internal error: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(suberror == UInt32(KVM_INTERNAL_ERROR_EMULATION))
        #expect(try small.vcpu.registers().rip == 0x4010)
    }

    /// Page tables where there is no memory map nothing: here not even the handler of the page fault.
    @Test(
        arguments: [
            // 32-bit paging, PAE, 4 levels
            (cr4: 0, efer: 0), (cr4: 0x20, efer: 0), (cr4: 0x20, efer: 0x500)
        ] as [(cr4: UInt64, efer: UInt64)])
    func pageTablesOutsideMemory(cr4: UInt64, efer: UInt64) throws {
        let small = try SmallMachine(code: [0xF4])
        var special = try small.vcpu.specialRegisters()
        special.cr0 = 0x8000_0011
        special.cr3 = 0x8000_0000
        special.cr4 = cr4
        special.efer = efer
        try small.vcpu.setSpecialRegisters(special)
        guard case .shutdown = try small.vcpu.run() else {
            Issue.record("no shutdown: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.specialRegisters().cr2 != 0)
    }

    /// An entry with an address beyond the width that CPUID tells has a reserved bit.
    @Test(arguments: [(40, true), (48, false)] as [(UInt32, Bool)])
    func addressWidth(bits: UInt32, faults: Bool) throws {
        // mov al,[0x40000000] ; hlt
        let small = try SmallMachine(code: [0x8A, 0x04, 0x25, 0, 0, 0, 0x40, 0xF4])
        var leaves = try small.system.supportedCPUID()
        let index = try #require(leaves.firstIndex { $0.function == 0x8000_0008 })
        leaves[index].eax = leaves[index].eax & ~0xFF | bits
        try small.vcpu.setCPUID(leaves)
        // The second GiB lies at 1 << 45.
        small.memory.storeBytes(of: 1 << 45 | 0x83, toByteOffset: 0x11008, as: UInt64.self)
        try small.enter64BitMode()
        let exit = try small.vcpu.run()
        switch (exit, faults) {
        case (.shutdown, true): #expect(try small.vcpu.specialRegisters().cr2 == 0x4000_0000)
        case (.mmio(let access), false): #expect(access.address == 1 << 45)
        default: Issue.record("\(exit)")
        }
    }

    /// What a guest finds at an address follows the slots, also where it is known to be a device's.
    @Test func aKnownDeviceBecomesMemoryAndADeviceAgain() throws {
        // mov al,[0x40000000] ; out 0x10,al ; jmp to the start
        let small = try SmallMachine(code: [0x8A, 0x04, 0x25, 0, 0, 0, 0x40, 0xE6, 0x10, 0xEB, 0xF5])
        small.memory.storeBytes(of: 1 << 30 | 0x83, toByteOffset: 0x11008, as: UInt64.self)
        try small.enter64BitMode()
        let extra = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { extra.deallocate() }
        extra.initializeMemory(as: UInt8.self, repeating: 0x77)
        func setSlot(_ byteCount: UInt64) throws {
            try small.machine.setUserMemoryRegion(
                UserMemoryRegion(
                    slot: 1, flags: 0, guest_phys_addr: 1 << 30, memory_size: byteCount,
                    userspace_addr: UInt64(UInt(bitPattern: extra.baseAddress))))
        }
        func hits(_ name: String) throws -> UInt64 {
            try #require(small.machine.inspect()?.vcpus.first?.statistics[name])
        }
        /// The byte that the guest reads next, and whether the client was asked for it.
        func next(_ answer: UInt64) throws -> (value: UInt64, isAsked: Bool) {
            var isAsked = false
            while true {
                switch try small.vcpu.run() {
                case .mmio(let access):
                    #expect(access.address == 1 << 30 && !access.isWrite && access.byteCount == 1)
                    access.value = answer
                    isAsked = true
                case .io(let access): return (UInt64(access.value), isAsked)
                case let exit:
                    Issue.record("\(exit)")
                    throw Errno.invalidArgument
                }
            }
        }
        for round in 0..<3 as Range<UInt64> {
            let before = try hits("shadow_device_hits")
            for i in 0..<10 as Range<UInt64> { #expect(try next(0x10 + i) == (0x10 + i, true)) }
            #expect(try hits("shadow_device_hits") > before)
            try setSlot(4096)
            for _ in 0..<3 { #expect(try next(round) == (0x77, false)) }
            try setSlot(0)
        }
        #expect(try next(0x42) == (0x42, true))
    }

    /// In 64-bit mode the bases of CS, DS, ES and SS that a client sets do not count.
    @Test func flatSegmentsOf64BitMode() throws {
        // mov al,[0x2000] ; hlt
        let small = try SmallMachine(code: [0x8A, 0x04, 0x25, 0x00, 0x20, 0, 0, 0xF4])
        small.memory[0x2000] = 0x5A
        try small.enter64BitMode { special in
            special.cs.base = 0x7000
            special.ds.base = 0x3000
        }
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(try small.vcpu.registers().rax & 0xFF == 0x5A)
    }

    /// Slots that are deleted while a guest uses them are gone when the call returns.
    @Test func slotsChangeUnderARunningGuest() throws {
        // inc word [0x2000] ; mov ax,0xFFFF ; mov es,ax ; mov ax,es:[0x4010] ; jmp start
        let small = try SmallMachine(code: [
            0xFF, 0x06, 0x00, 0x20, 0xB8, 0xFF, 0xFF, 0x8E, 0xC0, 0x26, 0xA1, 0x10, 0x40, 0xEB, 0xF1
        ])
        let extra = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { extra.deallocate() }
        extra.initializeMemory(as: UInt8.self, repeating: 0)
        let address = UInt64(UInt(bitPattern: extra.baseAddress))
        let vcpu = small.vcpu
        let machine = small.machine
        func region(_ size: UInt64) -> UserMemoryRegion {
            UserMemoryRegion(slot: 1, flags: 0, guest_phys_addr: 0x10_4000, memory_size: size, userspace_addr: address)
        }
        try withThreads(1) { _ in
            while true {
                guard let exit = try? vcpu.run() else {
                    Issue.record("an error")
                    return
                }
                switch exit {
                case .mmio(let access): access.value = 0
                case .interrupted: return
                default:
                    Issue.record("\(exit)")
                    return
                }
            }
        } meanwhile: {
            defer { vcpu.requestExit() }
            for _ in 0..<30 {
                try machine.setUserMemoryRegion(region(4096))
                try machine.setUserMemoryRegion(region(0))
            }
        }
    }
}
