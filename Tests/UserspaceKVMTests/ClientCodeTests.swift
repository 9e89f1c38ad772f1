import CHost
import KVMInterface
import TestSupport
import Testing
import UserspaceKVM

/// Code that the client changes while its vCPU is outside, as loaders, debuggers and devices do: no guest store and, without
/// paging, no change of mappings tells of it.
@Suite struct ClientCodeTests {
    /// A ring of pages, each of which puts out a number of its own: fewer and more of them than the processor remembers.
    @Test(arguments: [1, 2, 4, 5, 12])
    func changedNumbersAreSeen(pageCount: Int) throws {
        let small = try SmallMachine()
        var random = SeededGenerator(seed: runSeed("changedNumbersAreSeen"))
        var numbers = [UInt8](repeating: 0, count: pageCount)
        // Not all at the same place, some over the end of a page's 64-byte piece.
        let offsets = numbers.indices.map { _ in Int.random(in: 0..<4080, using: &random) }
        func address(_ page: Int) -> Int { SmallMachine.codeAddress + page * 4096 + offsets[page] }
        for page in numbers.indices {
            let next = address((page + 1) % pageCount)
            let distance = next - (address(page) + 7)
            // mov al,0 ; out 0x10,al ; jmp next
            let code: [UInt8] = [
                0xB0, 0, 0xE6, 0x10, 0xE9, UInt8(truncatingIfNeeded: distance), UInt8(truncatingIfNeeded: distance >> 8)
            ]
            for (index, byte) in code.enumerated() { small.memory[address(page) + index] = byte }
        }
        var registers = try small.vcpu.registers()
        registers.rip = UInt64(address(0))
        try small.vcpu.setRegisters(registers)
        for step in 0..<2000 {
            // Most of the time nothing changes, as without this what is remembered would never count.
            if Int.random(in: 0..<4, using: &random) == 0 {
                let page = Int.random(in: 0..<pageCount, using: &random)
                numbers[page] = UInt8.random(in: 0...255, using: &random)
                small.memory[address(page) + 1] = numbers[page]
            }
            guard case .io(let access) = try small.vcpu.run(), access.port == 0x10 else {
                Issue.record("step \(step): \(small.vcpu.runArea.exit)")
                return
            }
            try #require(access.value == UInt32(numbers[step % pageCount]), "step \(step)")
        }
    }

    /// Another instruction in the place of one that reaches a device, also while its access is under way.
    @Test func changedAccessesAreSeen() throws {
        // Loads and stores by several registers and a constant. All have four bytes, some by a prefix that says nothing new: the
        // one under way ends where the next instruction begins.
        struct Access {
            var code: [UInt8]
            var byteCount: Int
            var isWrite: Bool
        }
        let accesses: [Access] = [
            Access(code: [0x3E, 0xA0, 0x00, 0x10], byteCount: 1, isWrite: false),
            Access(code: [0x3E, 0xA1, 0x02, 0x10], byteCount: 2, isWrite: false),
            Access(code: [0x3E, 0xA2, 0x04, 0x10], byteCount: 1, isWrite: true),
            Access(code: [0x3E, 0xA3, 0x06, 0x10], byteCount: 2, isWrite: true),
            Access(code: [0x8A, 0x26, 0x08, 0x10], byteCount: 1, isWrite: false),
            Access(code: [0x8B, 0x1E, 0x0A, 0x10], byteCount: 2, isWrite: false),
            Access(code: [0x88, 0x26, 0x0C, 0x10], byteCount: 1, isWrite: true),
            Access(code: [0x89, 0x1E, 0x0E, 0x10], byteCount: 2, isWrite: true),
            // mov eax,[si] and mov [si],eax
            Access(code: [0x3E, 0x66, 0x8B, 0x04], byteCount: 4, isWrite: false),
            Access(code: [0x3E, 0x66, 0x89, 0x04], byteCount: 4, isWrite: true),
            // mov byte [si],0x77
            Access(code: [0x3E, 0xC6, 0x04, 0x77], byteCount: 1, isWrite: true),
            // add al,[si] is no move
            Access(code: [0x3E, 0x3E, 0x02, 0x04], byteCount: 1, isWrite: false)
        ]
        let small = try SmallMachine(code: [0x90, 0x90, 0x90, 0x90, 0xEB, 0xFA])
        var random = SeededGenerator(seed: runSeed("changedAccessesAreSeen"))
        var special = try small.vcpu.specialRegisters()
        special.ds.base = 0x10_0000
        try small.vcpu.setSpecialRegisters(special)
        var registers = try small.vcpu.registers()
        registers.rsi = 0x1010
        try small.vcpu.setRegisters(registers)
        func place(_ access: Access) {
            for (index, byte) in access.code.enumerated() { small.memory[SmallMachine.codeAddress + index] = byte }
        }
        var current = accesses[0]
        place(current)
        for step in 0..<2000 {
            guard case .mmio(let exit) = try small.vcpu.run() else {
                Issue.record("step \(step): \(small.vcpu.runArea.exit)")
                return
            }
            try #require(
                exit.isWrite == current.isWrite && exit.byteCount == current.byteCount,
                "step \(step): \(exit), not \(current.code)")
            if !exit.isWrite { exit.value = 0x0102_0304 }
            if Int.random(in: 0..<3, using: &random) == 0 {
                current = accesses.randomElement(using: &random) ?? current
                place(current)
            }
        }
    }

    /// An access of a device whose instruction begins in one page and ends in another, which the guest maps anew each time.
    @Test func instructionsOverTwoPages() throws {
        let small = try SmallMachine()
        // The first 4 MiB are where they are, but for page 2, which is 4 or 5.
        let (directory, table, place) = (0x6000, 0x7000, 0x1FFE)
        small.memory.storeBytes(of: UInt32(table | 7), toByteOffset: directory, as: UInt32.self)
        for page in 0..<1024 {
            small.memory.storeBytes(of: UInt32(page << 12 | 7), toByteOffset: table + page * 4, as: UInt32.self)
        }
        small.memory.storeBytes(of: 0x4007, toByteOffset: table + 8, as: UInt32.self)
        // mov eax,[0x100000] or [0x200000], of which two bytes are in the first page
        small.memory[place] = 0xA1
        small.memory[place + 1] = 0
        for (page, high) in [(0x4000, 0x10), (0x5000, 0x20)] as [(Int, UInt8)] {
            // xor dword [0x7008],0x1000 ; invlpg [0x2000] ; jmp back
            let code: [UInt8] = [
                0x00, high, 0x00, 0x81, 0x35, 0x08, 0x70, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x0F, 0x01, 0x3D, 0x00,
                0x20, 0x00, 0x00, 0xE9, 0xE5, 0xFF, 0xFF, 0xFF
            ]
            for (index, byte) in code.enumerated() { small.memory[page + index] = byte }
        }
        var special = try small.vcpu.specialRegisters()
        special.cs.type = 11
        (special.cs.db, special.cs.g, special.cs.limit) = (1, 1, .max)
        special.ds = special.cs
        special.ds.type = 3
        (special.cr0, special.cr3) = (0x8000_0011, UInt64(directory))
        try small.vcpu.setSpecialRegisters(special)
        var registers = try small.vcpu.registers()
        registers.rip = UInt64(place)
        try small.vcpu.setRegisters(registers)
        for step in 0..<20 {
            guard case .mmio(let exit) = try small.vcpu.run() else {
                Issue.record("step \(step): \(small.vcpu.runArea.exit)")
                return
            }
            #expect(exit.address == (step % 2 == 0 ? 0x10_0000 : 0x20_0000), "step \(step)")
        }
    }

    /// What moves from and to a device puts into registers, and into the exit.
    @Test(arguments: [false, true])
    func movesReachTheRightRegisters(isLong: Bool) throws {
        // mov al,[0x1000] ; mov ah,[0x1001] ; mov bx,[0x1002] ; mov [0x1004],ax ; mov [0x1006],bl ; out 0x10,al
        let real: [UInt8] = [
            0xA0, 0x00, 0x10, 0x8A, 0x26, 0x01, 0x10, 0x8B, 0x1E, 0x02, 0x10, 0xA3, 0x04, 0x10, 0x88, 0x1E, 0x06, 0x10,
            0xE6, 0x10
        ]
        // mov al,[rsi] ; mov ah,[rsi+1] ; mov bx,[rsi+2] ; mov [rsi+4],ax ; mov [rsi+6],bl ; mov ecx,[rsi] ; mov rdx,[rsi] ;
        // mov qword [rsi],-2 ; mov [rsi],r8b ; out 0x10,al
        let long: [UInt8] = [
            0x8A, 0x06, 0x8A, 0x66, 0x01, 0x66, 0x8B, 0x5E, 0x02, 0x66, 0x89, 0x46, 0x04, 0x88, 0x5E, 0x06, 0x8B, 0x0E,
            0x48, 0x8B, 0x16, 0x48, 0xC7, 0x06, 0xFE, 0xFF, 0xFF, 0xFF, 0x44, 0x88, 0x06, 0xE6, 0x10
        ]
        let small = try SmallMachine(code: isLong ? long : real)
        if isLong {
            try small.enter64BitMode()
        } else {
            var special = try small.vcpu.specialRegisters()
            special.ds.base = 0x10_0000
            try small.vcpu.setSpecialRegisters(special)
        }
        var registers = try small.vcpu.registers()
        registers.rsi = 0x10_1000
        (registers.rax, registers.rbx) = (0xAAAA_AAAA_AAAA_AAAA, 0xBBBB_BBBB_BBBB_BBBB)
        (registers.rcx, registers.r8) = (.max, 0x88)
        try small.vcpu.setRegisters(registers)
        var written: [UInt64] = []
        loop: while true {
            switch try small.vcpu.run() {
            case .mmio(let exit) where exit.isWrite:
                written.append(exit.value)
            case .mmio(let exit):
                exit.value = 0x8877_6655_4433_2211 >> (exit.address & 7 * 8)
            case .io: break loop
            default:
                Issue.record("\(small.vcpu.runArea.exit)")
                return
            }
        }
        let after = try small.vcpu.registers()
        #expect(after.rax == 0xAAAA_AAAA_AAAA_2211)
        #expect(after.rbx == 0xBBBB_BBBB_BBBB_4433)
        if isLong {
            #expect(after.rcx == 0x4433_2211)
            #expect(after.rdx == 0x8877_6655_4433_2211)
            #expect(written == [0x2211, 0x33, 0xFFFF_FFFF_FFFF_FFFE, 0x88])
        } else {
            #expect(written == [0x2211, 0x33])
        }
    }
}
