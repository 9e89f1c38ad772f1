import Glibc
import Testing
import Translator
import X86

/// Faults, devices and stores to code: what interrupts an instruction of translated code half-way.
@Suite struct RestartTests {
    private static var code: Int { 0x8000 }
    /// A linear page that the tests' tables do not map.
    private static var unmapped: Int { 0x60_0000 }
    /// Guest physical memory that no slot backs, mapped to itself.
    private static var device: Int { 0x2000_0000 }

    /// A machine in long mode whose code is `code`, followed by HLT. Its IDT is empty, so an exception shuts it down.
    private func machine(_ code: [UInt8], at address: Int = Self.code) throws -> BareMachine {
        let machine = try BareMachine()
        machine.enterLongMode(at: UInt64(address), stack: 0x7000)
        machine.load(code + [0xF4], at: address)
        machine.store(0, at: 0x3000 + (Self.unmapped >> 21) * 8)
        return machine
    }

    private func registers(_ machine: BareMachine) -> [UInt64] {
        GeneralRegister.allCases.map { machine.processor.state[$0] }
    }

    /// Lets page faults end in HLT at 9000H, on a stack that the test does not use.
    private func catchPageFaults(_ machine: BareMachine) {
        machine.store(0x00AF_9B00_0000_FFFF, at: 0x5008)
        machine.store(0x0000_8B00_0000_0067 | 0x5800 << 16, at: 0x5010)
        // Interrupt stack 1.
        machine.store(0x6F00, at: 0x5800 + 36)
        machine.store(0x0000_8E01_0008_9000, at: 0x6000 + 14 * 16)
        machine.store(0, at: 0x6000 + 14 * 16 + 8)
        machine.processor.system.gdtr = DescriptorTableRegister(base: 0x5000, limit: 0x1F)
        machine.processor.system.idtr = DescriptorTableRegister(base: 0x6000, limit: 0xFF)
        machine.processor.system.tr = Segment(selector: 0x10, base: 0x5800, limit: 0x67, attributes: 0x8B)
        machine.load([0xF4], at: 0x9000)
    }

    /// The frame a page fault pushed: error code, RIP, CS, RFLAGS, RSP.
    private func frame(_ machine: BareMachine) -> [UInt64] { (0..<5).map { machine.word(at: 0x6F00 - 48 + $0 * 8) } }

    // MARK: Loops, calls, links

    @Test func loopWithCallsAndMemory() throws {
        // xor eax,eax; mov ecx,10; l: add eax,ecx; push rax; pop r9; call f; dec ecx; jnz l; hlt; f: mov [rcx*8+9000h],r9; ret
        let machine = try machine([
            0x31, 0xC0, 0xB9, 10, 0, 0, 0, 0x01, 0xC8, 0x50, 0x41, 0x59, 0xE8, 5, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xF2, 0xF4,
            0x4C, 0x89, 0x0C, 0xCD, 0, 0x90, 0, 0, 0xC3
        ])
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rax] == 55)
        #expect(machine.processor.state[.rsp] == 0x7000)
        for i in 1...10 { #expect(machine.word(at: 0x9000 + i * 8) == UInt64((i...10).reduce(0, +))) }
    }

    // MARK: Page faults

    /// Instructions that access [rbx], and whether they write.
    private static let accesses: [([UInt8], Bool)] = [
        ([0x48, 0x8B, 0x03], false),  // mov rax, [rbx]
        ([0x4C, 0x8B, 0x0B], false),  // mov r9, [rbx]
        ([0x48, 0x01, 0x03], true),  // add [rbx], rax
        ([0xF0, 0x4C, 0x0F, 0xB1, 0x13], true),  // lock cmpxchg [rbx], r10
        ([0xF0, 0x0F, 0xC7, 0x0B], true),  // lock cmpxchg8b [rbx]
        ([0x48, 0xD3, 0x23], true),  // shl qword [rbx], cl
        ([0xC4, 0x62, 0xB3, 0xF6, 0x13], false),  // mulx r10, r9, [rbx]
        ([0xC5, 0xFC, 0x10, 0x03], false),  // vmovups ymm0, [rbx]
        ([0xC5, 0xFC, 0x11, 0x03], true),  // vmovups [rbx], ymm0
        ([0xDD, 0x1B], true),  // fstp qword [rbx]
        ([0x66, 0x0F, 0x3A, 0x61, 0x03, 0x0C], false),  // pcmpestri xmm0, [rbx], 12
        ([0xFF, 0x33], false),  // push qword [rbx]
        ([0x8F, 0x03], true),  // pop qword [rbx]
        ([0xFF, 0x13], false),  // call [rbx]
        ([0xFF, 0x23], false),  // jmp [rbx]
        ([0xF3, 0xAA], true),  // rep stosb
        ([0xA4], true),  // movsb
        ([0x48, 0x0F, 0xAB, 0x0B], true)  // bts [rbx], rcx
    ]

    @Test(arguments: accesses.indices) func pageFaultIsPrecise(_ index: Int) throws {
        let (access, isWrite) = Self.accesses[index]
        let prologue: [UInt8] = [0x90, 0x90, 0xF9]  // stc
        for crossing in [false, true] {
            let machine = try machine(prologue + access)
            catchPageFaults(machine)
            let state = machine.processor.state
            for register in GeneralRegister.allCases where register != .rsp {
                state[register] = UInt64(register.index) << 4
            }
            // Across the start of the unmapped page: the fault's address is the page's.
            let address = UInt64(Self.unmapped - (crossing ? 1 : 0))
            state[.rbx] = address
            state[.rdi] = UInt64(Self.unmapped)
            state[.rsi] = 0x9100
            state.arithmeticFlags = RFlags.zero
            let before = registers(machine)
            let memory = machine.word(at: Self.unmapped - 8)
            #expect(machine.processor.run() == .halted)
            let frame = frame(machine)
            #expect(frame[0] == (isWrite ? 2 : 0), "error code")
            #expect(frame[1] == UInt64(Self.code + prologue.count), "RIP of the instruction itself")
            #expect(frame[3] & RFlags.arithmetic == RFlags.carry | RFlags.zero)
            #expect(frame[4] == 0x7000)
            #expect(machine.processor.system.cr2 == UInt64(Self.unmapped))
            for register in GeneralRegister.allCases where register != .rsp {
                #expect(state[register] == before[register.index], "\(register)")
            }
            #expect(machine.word(at: Self.unmapped - 8) == memory)
            // Map the page: the instruction completes when it is executed again.
            machine.store(UInt64(Self.unmapped) | 0x87, at: 0x3000 + (Self.unmapped >> 21) * 8)
            machine.store(UInt64(Self.code + prologue.count + access.count), at: Self.unmapped)
            machine.store(UInt64(Self.code + prologue.count + access.count) << 8, at: Self.unmapped - 1)
            machine.store(UInt64(Self.code + prologue.count + access.count), at: Int(address))
            machine.processor.flushTLB(.all)
            state.rip = frame[1]
            state[.rsp] = 0x7000
            machine.processor.system.activity = .running
            #expect(machine.processor.run() == .halted)
            #expect(state.rip == UInt64(Self.code + prologue.count + access.count + 1))
        }
    }

    @Test func fetchFaultHasTheTargetsAddress() throws {
        // mov eax, 600010h; jmp rax
        let machine = try machine([0xB8, 0x10, 0, 0x60, 0, 0xFF, 0xE0])
        catchPageFaults(machine)
        #expect(machine.processor.run() == .halted)
        #expect(frame(machine)[1] == UInt64(Self.unmapped + 16))
        #expect(machine.processor.system.cr2 == UInt64(Self.unmapped + 16))
    }

    // MARK: Devices

    /// Runs until HLT, answering reads with bytes counted from 1; returns what was asked.
    private func runWithClient(_ machine: BareMachine) -> [ClientRequest] {
        var requests: [ClientRequest] = []
        var next: UInt64 = 1
        while true {
            switch machine.processor.run() {
            case .needsClient(let request):
                requests.append(request)
                var answer: UInt64 = 0
                if case .mmioRead(_, let byteCount) = request {
                    for i in 0..<byteCount {
                        answer |= next << UInt64(i * 8)
                        next += 1
                    }
                }
                machine.processor.answerClientRead(answer)
            case .halted: return requests
            case let other:
                Issue.record("unexpected \(other)")
                return requests
            }
            if requests.count > 100 { return requests }
        }
    }

    @Test func vectorLoadFromDeviceIsFourReads() throws {
        let machine = try machine([0xC5, 0xFE, 0x6F, 0x03])  // vmovdqu ymm0, [rbx]
        machine.processor.state[.rbx] = UInt64(Self.device)
        let requests = runWithClient(machine)
        #expect(requests == (0..<4).map { .mmioRead(address: UInt64(Self.device + $0 * 8), byteCount: 8) })
        let value = machine.processor.state.vectorRegister(0)
        for i in 0..<32 { #expect(value.load(fromByteOffset: i, as: UInt8.self) == UInt8(i + 1)) }
    }

    @Test func vectorStoreToDeviceIsFourWrites() throws {
        let machine = try machine([0xC5, 0xFE, 0x7F, 0x03])  // vmovdqu [rbx], ymm0
        machine.processor.state[.rbx] = UInt64(Self.device)
        for i in 0..<4 {
            machine.processor.state.vectorRegister(0).storeBytes(
                of: UInt64(i + 100), toByteOffset: i * 8, as: UInt64.self)
        }
        let requests = runWithClient(machine)
        #expect(
            requests
                == (0..<4).map {
                    .mmioWrite(address: UInt64(Self.device + $0 * 8), byteCount: 8, value: UInt64($0 + 100))
                })
    }

    @Test func readModifyWriteOfDeviceReadsOnceAndWritesOnce() throws {
        // add dword [rbx], eax; setc dl
        let machine = try machine([0x01, 0x03, 0x0F, 0x92, 0xC2])
        machine.processor.state[.rbx] = UInt64(Self.device)
        machine.processor.state[.rax] = 0xFFFF_FFFF
        let requests = runWithClient(machine)
        #expect(
            requests == [
                .mmioRead(address: UInt64(Self.device), byteCount: 4),
                .mmioWrite(address: UInt64(Self.device), byteCount: 4, value: 0x0403_0200)
            ])
        #expect(machine.processor.state[.rdx] & 0xFF == 1)
    }

    @Test func exchangeWithDeviceGivesTheReadValueOnce() throws {
        let machine = try machine([0x4C, 0x87, 0x0B])  // xchg [rbx], r9
        machine.processor.state[.rbx] = UInt64(Self.device)
        machine.processor.state[.r9] = 77
        let requests = runWithClient(machine)
        #expect(
            requests == [
                .mmioRead(address: UInt64(Self.device), byteCount: 8),
                .mmioWrite(address: UInt64(Self.device), byteCount: 8, value: 77)
            ])
        #expect(machine.processor.state[.r9] == 0x0807_0605_0403_0201)
    }

    @Test func pushAndStringsReachDevices() throws {
        // push rax; with the stack in the device; mov esp, 7000h; mov ecx, 3; rep movsb
        let machine = try machine([0x50, 0xBC, 0, 0x70, 0, 0, 0xB9, 3, 0, 0, 0, 0xF3, 0xA4])
        machine.processor.state[.rax] = 5
        machine.processor.state[.rsp] = UInt64(Self.device + 0x108)
        machine.processor.state[.rsi] = UInt64(Self.device + 0x200)
        machine.processor.state[.rdi] = 0x9100
        let requests = runWithClient(machine)
        #expect(
            requests == [.mmioWrite(address: UInt64(Self.device + 0x100), byteCount: 8, value: 5)]
                + (0..<3).map { .mmioRead(address: UInt64(Self.device + 0x200 + $0), byteCount: 1) })
        #expect(machine.word(at: 0x9100) & 0xFF_FFFF == 0x03_0201)
        #expect(machine.processor.state[.rcx] == 0)
    }

    @Test func faultBehindADeviceAccessLeavesRegistersAlone() throws {
        // The first page is a device, the second not mapped.
        let machine = try machine([0x48, 0x01, 0x03])  // add [rbx], rax
        catchPageFaults(machine)
        machine.store(UInt64(Self.device) | 0x87, at: 0x3000 + (Self.unmapped >> 21 - 1) * 8)
        machine.processor.flushTLB(.all)
        machine.processor.state[.rbx] = UInt64(Self.unmapped - 4)
        #expect(runWithClient(machine) == [])
        #expect(machine.processor.system.cr2 == UInt64(Self.unmapped))
        #expect(frame(machine)[1] == UInt64(Self.code))
    }

    // MARK: Locked accesses

    @Test func lockedAccessAcrossPagesPausesTheOthers() throws {
        let machine = try machine([0xF0, 0x48, 0x01, 0x03, 0x48, 0x87, 0x03])  // lock add [rbx], rax; xchg [rbx], rax
        let address = 0xA000 - 3
        machine.store(0x00FF_FFFF, at: address)
        machine.processor.state[.rbx] = UInt64(address)
        machine.processor.state[.rax] = 1
        #expect(machine.processor.run() == .halted)
        #expect(machine.word(at: address) == 1)
        #expect(machine.processor.state[.rax] == 0x0100_0000)
        #expect(machine.pauseCount == 2)
    }

    // MARK: Self-modifying code

    @Test func storeToTheNextInstructionTakesEffect() throws {
        // mov byte [rip+1], 5 (the immediate behind); mov al, 1
        let machine = try machine([0xC6, 0x05, 0x01, 0, 0, 0, 5, 0xB0, 1])
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rax] & 0xFF == 5)
    }

    @Test func loopThatRewritesItself() throws {
        // l: add eax, 1 (patched to grow); inc byte [l+2]; dec ecx; jnz l
        let machine = try machine([
            0x83, 0xC0, 1, 0xFE, 0x05, 0xF9, 0xFF, 0xFF, 0xFF, 0xFF, 0xC9, 0x75, 0xF3
        ])
        machine.processor.state[.rcx] = 20
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rax] == UInt64((1...20).reduce(0, +)))
    }

    @Test func storeFromAnotherPageReplacesALinkedBlock() throws {
        // 8000h: call A000h; mov byte [A001h], 9; call A000h; hlt. A000h: mov al, 1; jmp +0; add bl, al; ret
        let machine = try machine([
            0xE8, 0xFB, 0x1F, 0, 0, 0xC6, 0x04, 0x25, 0x01, 0xA0, 0, 0, 9, 0xE8, 0xEE, 0x1F, 0, 0
        ])
        machine.load([0xB0, 1, 0xEB, 0, 0x00, 0xC3, 0xC3], at: 0xA000)
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rbx] == 10)
    }

    @Test func storeThroughAnotherMappingIsSeen() throws {
        // The code page is written through a second linear address.
        let machine = try machine([
            0xE8, 0xFB, 0x1F, 0, 0, 0xC6, 0x04, 0x25, 0x01, 0xA0, 0x80, 0, 7, 0xE8, 0xEE, 0x1F, 0, 0
        ])
        machine.store(0x87, at: 0x3000 + 4 * 8)  // 800000h is physical 0
        machine.load([0xB0, 1, 0x00, 0xC3, 0xC3], at: 0xA000)
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rbx] == 8)
    }

    @Test func stringStoreOverItsOwnPage() throws {
        // rep stosb over the bytes behind itself: they become NOPs.
        let machine = try machine([0xF3, 0xAA, 0x0F, 0x0B, 0x0F, 0x0B])
        machine.processor.state[.rax] = 0x90
        machine.processor.state[.rcx] = 4
        machine.processor.state[.rdi] = UInt64(Self.code + 2)
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state.rip == UInt64(Self.code + 7))
    }

    @Test func instructionAcrossPagesIsTranslatedFromBoth() throws {
        // mov rax, imm64 with two bytes in the first page; the second page is then changed.
        let start = 0x8FFE
        let machine = try machine([0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 8], at: start)
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rax] == 0x0807_0605_0403_0201)
        #expect((try? machine.processor.write(0x9000, UInt8(0xFF))) != nil)
        machine.processor.state.rip = UInt64(start)
        machine.processor.system.activity = .running
        #expect(machine.processor.run() == .halted)
        #expect(machine.processor.state[.rax] == 0x0807_0605_0403_02FF)
    }
}
