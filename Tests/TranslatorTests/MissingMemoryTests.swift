import Glibc
import TestSupport
import Testing
import Translator
import X86

/// Instructions whose memory the client takes away fail, and do the same as ever when it is back.
@Suite struct MissingMemoryTests {
    /// Code at 0x10000, and a name for it. RBX is 0x20010, RBP the page behind, RSI 0x20F80, RDI 0x40FC0, RSP 0x30800.
    struct Sample: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var code: [UInt8]

        init(_ name: String, _ code: [UInt8]) {
            testDescription = name
            self.code = code + [0xF4]
        }
    }

    static let samples = [
        Sample("mov rax, [rbx]", [0x48, 0x8B, 0x03]),
        Sample("mov [rbx], rax", [0x48, 0x89, 0x03]),
        Sample("xchg [rbx], rax", [0x48, 0x87, 0x03]),
        Sample("add [rbp-4], rax", [0x48, 0x01, 0x45, 0xFC]),
        Sample("lock add [rbp-4], rax", [0xF0, 0x48, 0x01, 0x45, 0xFC]),
        Sample("movups [rbp-8], xmm0", [0x0F, 0x11, 0x45, 0xF8]),
        Sample("cmpxchg16b [rbx]", [0x48, 0x0F, 0xC7, 0x0B]),
        Sample("push rax; pop rdx", [0x50, 0x5A]),
        Sample("push [rbx]", [0xFF, 0x33]),
        Sample("pop [rbx]", [0x8F, 0x03]),
        Sample("call", [0xE8, 0, 0, 0, 0]),
        Sample("ret to the next", [0x48, 0x8D, 0x05, 5, 0, 0, 0, 0x48, 0x89, 0x04, 0x24, 0xC3]),
        Sample("enter 8, 1", [0xC8, 8, 0, 1]),
        Sample("leave", [0xC9]),
        Sample("pushfq", [0x9C]),
        Sample("iretq", [0x6A, 0x10, 0x54, 0x9C, 0x6A, 0x08, 0x68, 0x0D, 0, 1, 0, 0x48, 0xCF]),
        Sample("rep movsb", [0xF3, 0xA4]),
        Sample("rep movsq down", [0xFD, 0xF3, 0x48, 0xA5, 0xFC]),
        Sample("movsd", [0xA5]),
        Sample("rep stosd", [0xF3, 0xAB]),
        Sample("stosw", [0x66, 0xAB]),
        Sample("lodsq", [0x48, 0xAD]),
        Sample("repne scasb", [0xF2, 0xAE]),
        Sample("repe cmpsw", [0x66, 0xF3, 0xA7]),
        Sample("fxsave [rbx]", [0x0F, 0xAE, 0x03]),
        Sample("fxrstor [rbx]", [0x0F, 0xAE, 0x0B]),
        Sample("fld1; fstp [rbx]", [0xD9, 0xE8, 0xDD, 0x1B]),
        Sample("fnstenv [rbx]", [0xD9, 0x33]),
        Sample("btc [rbx], rcx", [0x48, 0x0F, 0xBB, 0x0B]),
        Sample("lock btc [rbx], rcx", [0xF0, 0x48, 0x0F, 0xBB, 0x0B]),
        Sample("pcmpeqb xmm0, xmm0; maskmovdqu xmm0, xmm0", [0x66, 0x0F, 0x74, 0xC0, 0x66, 0x0F, 0xF7, 0xC0]),
        Sample("lidt [rbx]; sidt [rbp-4]", [0x0F, 0x01, 0x1B, 0x0F, 0x01, 0x4D, 0xFC]),
        Sample("mov ds, rdx", [0xBA, 0x10, 0, 0, 0, 0x8E, 0xDA])
    ]

    /// The top table, the lowest, descriptors, code, data, the stack, and where strings go.
    static let pages = [0x1000, 0x3000, 0x8000, 0x10000, 0x20000, 0x21000, 0x30000, 0x40000, 0x41000]

    private func makeMachine(_ sample: Sample) throws -> BareMachine {
        let machine = try BareMachine(byteCount: 2 << 20)
        machine.enterLongMode(at: 0x10000, stack: 0x30800)
        machine.processor.system.gdtr = DescriptorTableRegister(base: 0x8000, limit: 0x17)
        machine.store(0x00AF_9B00_0000_FFFF, at: 0x8008)
        machine.store(0x00CF_9200_0000_FFFF, at: 0x8010)
        machine.load(sample.code, at: 0x10000)
        for i in 0..<0x2000 where i >= 0x200 {
            machine.ram.storeBytes(of: UInt8(truncatingIfNeeded: i &* 7), toByteOffset: 0x20000 + i, as: UInt8.self)
            machine.ram.storeBytes(of: UInt8(truncatingIfNeeded: i &* 7), toByteOffset: 0x40040 + i, as: UInt8.self)
        }
        let state = machine.processor.state
        for (register, value) in [
            (GeneralRegister.rax, 0x1234_5678_9ABC_DE00), (.rbx, 0x20010), (.rcx, 0x100), (.rdx, 0), (.rsi, 0x20F80),
            (.rdi, 0x40FC0), (.rbp, 0x21000)
        ] as [(GeneralRegister, UInt64)] {
            state[register] = value
        }
        return machine
    }

    private func registers(_ machine: BareMachine) -> [UInt64] {
        let state = machine.processor.state
        return GeneralRegister.allCases.map { state[$0] } + [state.rip, state.rflags]
    }

    @Test(arguments: samples) func instructionsStartOver(sample: Sample) throws {
        let expected = try makeMachine(sample)
        try #require(expected.processor.run() == .halted)
        var failureCount = 0
        for page in Self.pages {
            for protection in [PROT_NONE, PROT_READ] {
                let machine = try makeMachine(sample)
                let before = registers(machine)
                mprotect(machine.ram + page, 4096, protection)
                var result = machine.processor.run()
                if case .hostMemory = result {
                    failureCount += 1
                    // Repeated strings keep what they have done.
                    let isRepeated = sample.code.prefix(2).contains { $0 == 0xF2 || $0 == 0xF3 }
                    if machine.processor.state.rip == 0x10000, !isRepeated {
                        #expect(registers(machine) == before, "page \(page)")
                    }
                    // A second attempt is as good as the first.
                    result = machine.processor.run()
                    guard case .hostMemory = result else {
                        Issue.record("page \(page), protection \(protection): \(result)")
                        continue
                    }
                    mprotect(machine.ram + page, 4096, PROT_READ | PROT_WRITE)
                    result = machine.processor.run()
                } else {
                    mprotect(machine.ram + page, 4096, PROT_READ | PROT_WRITE)
                }
                #expect(result == .halted, "page \(page), protection \(protection)")
                #expect(registers(machine) == registers(expected), "page \(page), protection \(protection)")
                // Accessed bits apart.
                let isSame = memcmp(machine.ram + 0x4000, expected.ram + 0x4000, machine.byteCount - 0x4000) == 0
                #expect(isSame, "page \(page), protection \(protection)")
            }
        }
        // Code and tables at least.
        #expect(failureCount >= 4)
    }

    /// Every copy and fill that ends in a missing page fails, and so does every one that begins there.
    @Test func bulkOperationsFail() {
        let base = mmap(nil, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
        defer { munmap(base, 3 * 4096) }
        mprotect(base + 4096, 4096, PROT_NONE)
        HostFaults.install()
        for size in [1, 2, 4, 8] {
            for count in [1, 2, 3, 5, 9, 33, 400] where count * size < 4096 {
                for backwards in [false, true] {
                    let first = backwards ? (count - 1) * size : 0
                    // The lowest byte of the run, the first beyond the good page if it fails.
                    for start in [4096 - count * size + 1, 4096, 2 * 4096 - 1] {
                        let missing = base + start + first
                        let present = base + 2 * 4096 + first
                        #expect(
                            !BulkMemory.fill(
                                missing, with: 0, count: count, elementByteCount: size, backwards: backwards))
                        #expect(
                            !BulkMemory.move(
                                from: missing, to: present, count: count, elementByteCount: size,
                                backwards: backwards))
                        #expect(
                            !BulkMemory.move(
                                from: present, to: missing, count: count, elementByteCount: size,
                                backwards: backwards))
                    }
                    #expect(
                        BulkMemory.fill(
                            base + 4096 - count * size + first, with: 0, count: count, elementByteCount: size,
                            backwards: backwards))
                }
            }
        }
    }
}
