import Testing
import Translator
import X86

/// Neighbouring accesses that a block checks together: what the guest sees is what it sees of single accesses.
@Suite struct AccessGroupTests {
    private static var code: Int { 0x8000 }
    /// A 2 MiB region whose 4 KiB pages the tests map, and the page table for it.
    private static var region: Int { 0x20_0000 }
    private static var table: Int { 0x4000 }

    private func machine(_ code: [UInt8]) throws -> BareMachine {
        let machine = try BareMachine()
        machine.enterLongMode(at: UInt64(Self.code), stack: 0x7000)
        machine.load(code + [0xF4], at: Self.code)
        machine.store(UInt64(Self.table) | 7, at: 0x3000 + 8)
        for page in 0..<512 { map(machine, page, 7) }
        catchPageFaults(machine)
        return machine
    }

    private func map(_ machine: BareMachine, _ page: Int, _ flags: UInt64) {
        machine.store(UInt64(Self.region + page << 12) | flags, at: Self.table + page * 8)
    }

    private func entry(_ machine: BareMachine, _ page: Int) -> UInt64 {
        machine.word(at: Self.table + page * 8) & 0xFFF
    }

    /// Lets page faults end in HLT, on a stack of their own: error code, RIP, CS, RFLAGS, RSP.
    private func catchPageFaults(_ machine: BareMachine) {
        machine.store(0x00AF_9B00_0000_FFFF, at: 0x5008)
        machine.store(0x0000_8B00_0000_0067 | 0x5800 << 16, at: 0x5010)
        machine.store(0x6F00, at: 0x5800 + 36)
        machine.store(0x0000_8E01_0008_9000, at: 0x6000 + 14 * 16)
        machine.store(0, at: 0x6000 + 14 * 16 + 8)
        machine.processor.system.gdtr = DescriptorTableRegister(base: 0x5000, limit: 0x1F)
        machine.processor.system.idtr = DescriptorTableRegister(base: 0x6000, limit: 0xFF)
        machine.processor.system.tr = Segment(selector: 0x10, base: 0x5800, limit: 0x67, attributes: 0x8B)
        machine.load([0xF4], at: 0x9000)
    }

    private var faultFrame: Int { 0x6F00 - 48 }

    /// Runs from the start to HLT, with RBX at `address`.
    private func run(_ machine: BareMachine, at address: Int) {
        machine.processor.state.rip = UInt64(Self.code)
        machine.processor.state[.rsp] = 0x7000
        machine.processor.state[.rbx] = UInt64(address)
        machine.processor.system.activity = .running
        #expect(machine.processor.run() == .halted)
    }

    /// mov rax,[rbx]; add rax,[rbx+8]; mov [rbx+10h],rax; mov rbp,rbx; inc rbp; mov dl,[rbp+17h]
    private static let fields: [UInt8] = [
        0x48, 0x8B, 0x03, 0x48, 0x03, 0x43, 0x08, 0x48, 0x89, 0x43, 0x10, 0x48, 0x89, 0xDD, 0x48, 0xFF, 0xC5, 0x8A,
        0x55,
        0x17
    ]

    /// Every place of the fields relative to a page boundary, the tables cold and warm.
    @Test func acrossPages() throws {
        let machine = try machine(Self.fields)
        for round in 0..<3 {
            for start in Self.region + 0xFC0...Self.region + 0x1010 {
                machine.store(UInt64(start), at: start)
                machine.store(UInt64(round) << 40, at: start + 8)
                machine.store(0, at: start + 16)
                machine.store(UInt64(start & 0x7F), at: start + 24)
                run(machine, at: start)
                #expect(machine.word(at: start + 16) == UInt64(start) + UInt64(round) << 40)
                #expect(machine.processor.state[.rdx] & 0xFF == UInt64(start & 0x7F))
            }
        }
    }

    /// The first field can be read and the last not written: the fault is the store's, what is in front of it has happened,
    /// and the page is not dirty.
    @Test func faultOfALaterMember() throws {
        let machine = try machine(Self.fields)
        for _ in 0..<2 {
            map(machine, 3, 5)
            machine.processor.flushTLB(.all)
            for _ in 0..<3 {
                machine.store(40, at: Self.region + 0x3010)
                machine.store(2, at: Self.region + 0x3018)
                machine.processor.state[.rax] = 0
                run(machine, at: Self.region + 0x3010)
                #expect(machine.word(at: faultFrame) == 3)
                #expect(machine.word(at: faultFrame + 8) == UInt64(Self.code) + 7)
                #expect(machine.processor.system.cr2 == UInt64(Self.region + 0x3020))
                #expect(machine.processor.state[.rax] == 42)
                #expect(entry(machine, 3) == 0x25)
            }
            // With the page writable and known as such.
            map(machine, 3, 7)
            machine.processor.flushTLB(.all)
            for _ in 0..<3 { run(machine, at: Self.region + 0x3010) }
            #expect(machine.word(at: Self.region + 0x3020) == 42)
            #expect(entry(machine, 3) == 0x67)
        }
    }

    /// mov rax,[rbx]; test rax,rax; jz +4; mov [rbx+8],rax: the store that is left out does not make the page dirty.
    @Test func storeBehindASideExit() throws {
        let machine = try machine([0x48, 0x8B, 0x03, 0x48, 0x85, 0xC0, 0x74, 4, 0x48, 0x89, 0x43, 8])
        for _ in 0..<3 {
            run(machine, at: Self.region + 0x5000)
            #expect(entry(machine, 5) == 0x27)
        }
        machine.store(9, at: Self.region + 0x5000)
        for _ in 0..<3 { run(machine, at: Self.region + 0x5000) }
        #expect(machine.word(at: Self.region + 0x5008) == 9)
        #expect(entry(machine, 5) == 0x67)
    }

    /// Pushes and pops around a page boundary: mov rsp,rbx; push rbx; push 5; push rsp; push r9; pop r10; pop rdx; pop rsi;
    /// pop rdi; mov rcx,rsp; mov rsp,7000h
    @Test func stackAcrossPages() throws {
        let machine = try machine([
            0x48, 0x89, 0xDC, 0x53, 0x6A, 5, 0x54, 0x41, 0x51, 0x41, 0x5A, 0x5A, 0x5E, 0x5F, 0x48, 0x89, 0xE1, 0xBC, 0,
            0x70, 0, 0
        ])
        for _ in 0..<3 {
            for top in Self.region + 0xFF0...Self.region + 0x1030 {
                machine.processor.state[.r9] = UInt64(top) &* 3
                run(machine, at: top)
                let state = machine.processor.state
                #expect(state[.r10] == UInt64(top) &* 3 && state[.rdx] == UInt64(top - 16) && state[.rsi] == 5)
                #expect(state[.rdi] == UInt64(top) && state[.rcx] == UInt64(top))
            }
        }
    }

    /// User code calls through memory beside the return address: mov rax,[rsp+18h]; call [rsp+10h], which is a RET;
    /// mov rdx,[rbx], which faults.
    @Test func callThroughTheStack() throws {
        let machine = try machine([0x48, 0x8B, 0x44, 0x24, 0x18, 0xFF, 0x54, 0x24, 0x10, 0x48, 0x8B, 0x13])
        machine.load([0xC3], at: Self.code + 0x100)
        map(machine, 5, 0)
        let top = Self.region + 0x3800
        machine.store(UInt64(Self.code + 0x100), at: top + 0x10)
        machine.store(42, at: top + 0x18)
        for _ in 0..<4 {
            let (processor, state) = (machine.processor, machine.processor.state)
            machine.store(0, at: top - 8)
            processor.system.cs = Segment(selector: 0x1B, base: 0, limit: ~0, attributes: 0xA0FB)
            processor.system.ss = Segment(selector: 0x23, base: 0, limit: ~0, attributes: 0xC0F3)
            processor.system.cpl = 3
            processor.system.activity = .running
            state.rip = UInt64(Self.code)
            state[.rsp] = UInt64(top)
            state[.rbx] = UInt64(Self.region + 0x5000)
            processor.modeDidChange()
            #expect(processor.run() == .halted)
            #expect(processor.system.cr2 == UInt64(Self.region + 0x5000) && state[.rax] == 42)
            #expect(machine.word(at: top - 8) == UInt64(Self.code + 9))
            #expect(machine.word(at: faultFrame + 8) == UInt64(Self.code + 9))
            #expect(machine.word(at: faultFrame + 32) == UInt64(top))
        }
    }

    /// A loop over two pages, in which the block holds its body several times: xor eax,eax; mov ecx,100h; l: add rax,[rbx];
    /// mov [rbx],rax; add rbx,20h; dec ecx; jnz l
    @Test func repeatedBody() throws {
        let machine = try machine([
            0x31, 0xC0, 0xB9, 0, 1, 0, 0, 0x48, 0x03, 0x03, 0x48, 0x89, 0x03, 0x48, 0x83, 0xC3, 0x20, 0xFF, 0xC9, 0x75,
            0xF2
        ])
        for start in [0x7008, 0x7FF0, 0x7FFC] {
            for i in 0..<0x100 { machine.store(UInt64(i + 1), at: Self.region + start + i * 0x20) }
            run(machine, at: Self.region + start)
            #expect(machine.processor.state[.rax] == 0x100 * 0x101 / 2)
            for i in 0..<0x100 {
                #expect(machine.word(at: Self.region + start + i * 0x20) == UInt64((i + 1) * (i + 2) / 2))
            }
            #expect(machine.processor.state[.rbx] == UInt64(Self.region + start + 0x2000))
        }
    }

    /// A block whose store hits its own instructions: mov eax,[rip+1] (bytes of the next); mov byte [rip+4],7; mov bl,1 in
    /// which the 1 becomes 7.
    @Test func storeToOwnCode() throws {
        let machine = try machine([
            0x8B, 0x05, 1, 0, 0, 0, 0xC6, 0x05, 1, 0, 0, 0, 7, 0xB3, 1
        ])
        run(machine, at: 0)
        #expect(machine.processor.state[.rbx] == 7)
    }
}
