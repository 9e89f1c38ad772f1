import CHost
import Glibc
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// The two address spaces of memory slots: system management mode uses the second.
@Suite struct AddressSpaceTests {
    /// out 0x11,al ; jmp $-2
    private static let writer: [UInt8] = [0xE6, 0x11, 0xEB, 0xFC]

    private func store(_ code: [UInt8], _ memory: UnsafeMutableRawBufferPointer, at address: Int) {
        for (index, byte) in code.enumerated() { memory[address + index] = byte }
    }

    /// The same addresses hold other code and other data, again and again.
    @Test func differentMemoryAtOneAddress() throws {
        // call far 0x3000:0x8000 ; out 0x11,al ; jmp back — there: mov al,cs:[0x9000] ; retf
        // The handler at the same address: mov al,cs:[0x9000] ; out 0x30,al ; rsm
        let m = try ManagedMachine(
            code: [0x9A, 0x00, 0x80, 0x00, 0x30, 0xE6, 0x11, 0xEB, 0xF7],
            handler: [0x2E, 0xA0, 0x00, 0x90, 0xE6, 0x30, 0x0F, 0xAA])
        store([0x2E, 0xA0, 0x00, 0x90, 0xCB], m.small.memory, at: 0x3_8000)
        m.small.memory[0x3_9000] = 1
        m.managed[0x9000] = 2
        for _ in 0..<5 {
            #expect(try m.expectWrite(0x11, inManagement: false) == 1)
            try m.vcpu.systemManagementInterrupt()
            #expect(try m.expectWrite(0x30, inManagement: true) == 2)
        }
    }

    /// A device in one space may be memory in the other.
    @Test func deviceAtOneAddress() throws {
        // mov ds,0xF000 ; mov al,[0x10] ; out 0x11,al ; jmp back
        let m = try ManagedMachine(
            code: [0xB8, 0x00, 0xF0, 0x8E, 0xD8, 0xA0, 0x10, 0x00, 0xE6, 0x11, 0xEB, 0xF9],
            // mov al,[0xF0010] ; out 0x30,al ; rsm
            handler: [0x67, 0xA0, 0x10, 0x00, 0x0F, 0x00, 0xE6, 0x30, 0x0F, 0xAA])
        m.small.memory[0xF_0010] = 1
        let left = UnsafeMutableRawBufferPointer(rebasing: m.small.memory[0x4_0000..<0xF_0000])
        try m.set(slot: 2, at: 0, UnsafeMutableRawBufferPointer(start: nil, count: 0))
        try m.set(slot: 2, at: 0x4_0000, left)
        for _ in 0..<3 {
            #expect(try m.expectWrite(0x11, inManagement: false) == 1)
            try m.vcpu.systemManagementInterrupt()
            guard case .mmio(let access) = try m.vcpu.run(), access.address == 0xF_0010 else {
                Issue.record("no device: \(m.vcpu.runArea.exit)")
                return
            }
            #expect(m.isInManagement)
            access.value = 0x55
            #expect(try m.expectWrite(0x30, inManagement: true) == 0x55)
        }
    }

    /// The handler goes on in 64-bit mode, with page tables that lie in its own memory.
    @Test func pageTablesInTheSecondSpace() throws {
        let m = try ManagedMachine(code: Self.writer, handler: [0xE6, 0x30, 0x0F, 0xAA])
        // mov al,[0x34000] ; out 0x31,al ; rsm
        store([0x8A, 0x04, 0x25, 0x00, 0x40, 0x03, 0x00, 0xE6, 0x31, 0x0F, 0xAA], m.managed, at: 0x9000)
        m.managed.storeBytes(of: 0x3_2003, toByteOffset: 0x1000, as: UInt64.self)
        m.managed.storeBytes(of: 0x83, toByteOffset: 0x2000, as: UInt64.self)
        m.managed[0x4000] = 2
        for _ in 0..<3 {
            try m.vcpu.systemManagementInterrupt()
            try m.expectWrite(0x30, inManagement: true)
            try m.completeAccess()
            var special = try m.vcpu.specialRegisters()
            special.cs.base = 0
            special.cs.l = 1
            special.cs.type = 11
            special.cr0 = 0x8000_0011
            special.cr3 = 0x3_1000
            special.cr4 = 0x20
            special.efer = 0x500
            try m.vcpu.setSpecialRegisters(special)
            var registers = try m.vcpu.registers()
            registers.rip = 0x3_9000
            try m.vcpu.setRegisters(registers)
            #expect(try m.expectWrite(0x31, inManagement: true) == 2)
            try m.expectWrite(0x11, inManagement: false)
            #expect(try m.vcpu.specialRegisters().efer == 0)
        }
        #expect(m.managed.load(fromByteOffset: 0x1000, as: UInt64.self) & 0x20 != 0, "accessed")
    }

    /// Code of a slot that goes is forgotten, in either space.
    @Test func slotsChange() throws {
        let m = try ManagedMachine(code: Self.writer, handler: [0xB0, 1, 0xE6, 0x30, 0x0F, 0xAA])
        let other = UnsafeMutableRawBufferPointer.allocate(
            byteCount: ManagedMachine.ownByteCount, alignment: 4096)
        defer { other.deallocate() }
        other.initializeMemory(as: UInt8.self, repeating: 0)
        store([0xB0, 2, 0xE6, 0x30, 0x0F, 0xAA], other, at: 0x8000)
        for round in 0..<4 {
            try m.vcpu.systemManagementInterrupt()
            let value = try m.expectWrite(0x30, inManagement: true)
            #expect(value == (round % 2 == 0 ? 1 : 2), "round \(round)")
            try m.expectWrite(0x11, inManagement: false)
            try m.set(slot: 1, at: 0, UnsafeMutableRawBufferPointer(start: nil, count: 0))
            try m.set(slot: 1, at: UInt64(ManagedMachine.base), round % 2 == 0 ? other : m.managed)
        }
        try m.set(slot: 1, at: 0, UnsafeMutableRawBufferPointer(start: nil, count: 0))
    }

    // MARK: Code

    /// How the handler stores 2 behind the opcode at 0x5000.
    enum Store: CaseIterable {
        case sameAddress, otherAddress, stringAtOtherAddress

        var code: [UInt8] {
            switch self {
            // mov byte [0x5001],2
            case .sameAddress: [0xC6, 0x06, 0x01, 0x50, 2]
            // mov byte [0x200001],2
            case .otherAddress: [0x67, 0xC6, 0x05, 0x01, 0x00, 0x20, 0x00, 2]
            // mov edi,0x200001 ; mov ecx,1 ; mov al,2 ; rep stosb
            case .stringAtOtherAddress:
                [0x66, 0xBF, 1, 0, 0x20, 0, 0x66, 0xB9, 1, 0, 0, 0, 0xB0, 2, 0x67, 0xF3, 0xAA]
            }
        }
    }

    /// Shows the page at 0x5000 at 0x200000 in the second space.
    private func showCode(_ m: ManagedMachine) throws {
        try m.set(slot: 5, at: 0x20_0000, UnsafeMutableRawBufferPointer(rebasing: m.small.memory[0x5000..<0x6000]))
    }

    /// Translated code is changed through the other space.
    @Test(arguments: Store.allCases) func handlerChangesCode(by way: Store) throws {
        // call 0x5000 ; out 0x11,al ; jmp back — there: mov al,1 ; ret
        let m = try ManagedMachine(
            code: [0xE8, 0xFD, 0x3F, 0xE6, 0x11, 0xEB, 0xF9], handler: way.code + [0x0F, 0xAA])
        try showCode(m)
        store([0xB0, 1, 0xC3], m.small.memory, at: 0x5000)
        #expect(try m.expectWrite(0x11, inManagement: false) == 1)
        #expect(try m.expectWrite(0x11, inManagement: false) == 1)
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x11, inManagement: false) == 2)
        // The page is data for the handler now, and code again.
        m.small.memory[0x5001] = 2
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x11, inManagement: false) == 2)
    }

    @Test func codeChangesHandler() throws {
        // mov ds,0x3000 ; out 0x11,al ; mov byte [0x8001],2 ; out 0x12,al ; jmp $
        let m = try ManagedMachine(
            code: [0xB8, 0x00, 0x30, 0x8E, 0xD8, 0xE6, 0x11, 0xC6, 0x06, 0x01, 0x80, 2, 0xE6, 0x12, 0xEB, 0xFE],
            handler: [0xB0, 1, 0xE6, 0x30, 0x0F, 0xAA], hasOwnMemory: false)
        try m.expectWrite(0x11, inManagement: false)
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x30, inManagement: true) == 1)
        try m.expectWrite(0x12, inManagement: false)
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x30, inManagement: true) == 2)
    }

    /// The save area lies in a page with code of the other space, which its bytes replace.
    @Test func savedStateReplacesCode() throws {
        // call far 0x3000:0xFFF8 ; out 0x11,al ; jmp back — there: mov al,1 ; retf. RAX is saved over it: mov al,2 ; retf
        let m = try ManagedMachine(
            code: [0x9A, 0xF8, 0xFF, 0x00, 0x30, 0xE6, 0x11, 0xEB, 0xF7], handler: [0x0F, 0xAA], hasOwnMemory: false)
        store([0xB0, 1, 0xCB], m.small.memory, at: 0x3_FFF8)
        #expect(try m.expectWrite(0x11, inManagement: false) == 1)
        try m.completeAccess()
        var registers = try m.vcpu.registers()
        registers.rax = 0x00CB_02B0
        try m.vcpu.setRegisters(registers)
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x11, inManagement: false) == 2)
    }

    /// The handler changes a table of the guest's that has been steady for long.
    @Test func handlerChangesTables() throws {
        let page: [UInt8] = [0x8A, 0x04, 0x25, 0, 0, 0, 0x40]  // mov al,[0x40000000]
        let m = try ManagedMachine(
            code: [0xB9, 100, 0, 0, 0, 0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8]  // mov ecx,100 ; again: reload cr3
                + page + [0xFF, 0xC9, 0x75, 0xEF]  // dec ecx ; jnz again
                + page + [0xE6, 0x11, 0xEB, 0xF5],  // read: … ; out 0x11,al ; jmp read
            // mov dword [0x12000],0x16003 ; rsm
            handler: [0x67, 0x66, 0xC7, 0x05, 0, 0x20, 1, 0, 3, 0x60, 1, 0, 0x0F, 0xAA])
        try m.small.enter64BitMode()
        for (address, entry) in [(0x1_1008, 0x1_2003), (0x1_2000, 0x1_3003), (0x1_3000, 0x1_4003), (0x1_6000, 0x1_5003)]
        {
            m.small.memory.storeBytes(of: UInt64(entry), toByteOffset: address, as: UInt64.self)
        }
        m.small.memory[0x1_4000] = 1
        m.small.memory[0x1_5000] = 2
        #expect(try m.expectWrite(0x11, inManagement: false) == 1)
        #expect(try m.expectWrite(0x11, inManagement: false) == 1)
        if MMUKind.tested == .shadow {
            let pages = m.small.backend.inspect(m.small.machine.descriptor)?.shadowPages ?? []
            #expect(pages.contains { $0.isTracked && $0.frame == 0x12 })
        }
        try m.vcpu.systemManagementInterrupt()
        #expect(try m.expectWrite(0x11, inManagement: false) == 2)
    }

    /// A vCPU in the mode changes code that another executes, at another address.
    @Test func processorsInBothSpaces() throws {
        let m = try ManagedMachine(
            code: [0xB9, 0x2C, 0x01]  // mov cx,300
                + [0xFE, 0x06, 0x00, 0x60]  // again: inc byte [0x6000]
                + [0xA0, 0x00, 0x60, 0x3A, 0x06, 0x01, 0x60, 0x75, 0xF7]  // until [0x6000] = [0x6001]
                + [0xE8, 0xED, 0x3F]  // call 0x5000
                + [0x3A, 0x06, 0x00, 0x60, 0x75, 0x05]  // cmp al,[0x6000] ; jne
                + [0x49, 0x75, 0xE7, 0xE6, 0x11, 0xE6, 0x12],  // dec cx ; jnz again ; out 0x11,al ; out 0x12,al
            handler: [0xA0, 0x00, 0x60, 0x3A, 0x06, 0x01, 0x60, 0x74, 0xF7]  // until [0x6000] ≠ [0x6001]
                + [0x67, 0xA2, 0x01, 0x00, 0x20, 0x00]  // mov [0x200001],al
                + [0xA2, 0x01, 0x60, 0xEB, 0xEC],  // mov [0x6001],al ; jmp
            hasIRQChip: true)
        try showCode(m)
        store([0xB0, 1, 0xC3], m.small.memory, at: 0x5000)
        let other = try m.small.machine.createVCPU(id: 1)
        try other.setCPUID(try m.small.system.supportedCPUID())
        try SmallMachine.startInRealMode(other)
        try other.setMPState(.runnable)
        try other.systemManagementInterrupt()
        try withThreads(1) { _ in
            _ = try? other.run()
        } meanwhile: {
            defer { other.requestExit() }
            try m.expectWrite(0x11, inManagement: false, "stale code was executed")
        }
        #expect(try other.events().smi.smm == 1)
    }

    // MARK: Dirty logs

    /// Each space has its own slots, and so its own logs.
    @Test func dirtyLogs() throws {
        // mov [0x2000],al ; out 0x11,al ; jmp back
        let m = try ManagedMachine(
            code: [0xA2, 0x00, 0x20, 0xE6, 0x11, 0xEB, 0xF9],
            // mov [0x5000],al ; rsm
            handler: [0xA2, 0x00, 0x50, 0x0F, 0xAA], hasOwnMemory: false, flags: .logDirtyPages)
        let pageCount = SmallMachine.byteCount / 4096
        for _ in 0..<3 {
            try m.vcpu.systemManagementInterrupt()
            try m.expectWrite(0x11, inManagement: false)
            #expect(try m.small.machine.dirtyLog(slot: 0, pageCount: pageCount) == [1 << 2, 0, 0, 0])
            #expect(try m.small.machine.dirtyLog(slot: 1 << 16, pageCount: pageCount) == [1 << 63 | 1 << 5, 0, 0, 0])
        }
        try m.expectWrite(0x11, inManagement: false)
        #expect(try m.small.machine.dirtyLog(slot: 1 << 16, pageCount: pageCount) == [0, 0, 0, 0])
        #expect(throws: Errno.invalidArgument) { try m.small.machine.dirtyLog(slot: 2 << 16, pageCount: pageCount) }
    }
}
