import Glibc
import TestSupport
import Testing
import Translator
import X86

/// Each variant of the corpus with the same input on this processor and as guest code: memory, registers and flags
/// have to agree. Code and workspace lie at the same addresses in both.
@Suite struct InstructionsNativeTests {
    private static let workspace = 0x40_0000
    private static let workspaceByteCount = 0x4000
    private static let code = 0x41_0000
    private static let slotByteCount = 512

    @Test func agreesWithTheHost() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var generator = SeededGenerator(seed: seed)
        let variants = NativeCorpus.variants
        let mappedByteCount = Self.code - Self.workspace + variants.count * Self.slotByteCount
        // MAP_FIXED_NOREPLACE: the addresses are free in an ordinary, position-independent test process.
        let native = try #require(
            mmap(
                UnsafeMutableRawPointer(bitPattern: Self.workspace), mappedByteCount,
                PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | 0x10_0000, -1, 0))
        try #require(Int(bitPattern: native) == Self.workspace)
        defer { munmap(native, mappedByteCount) }
        let machine = try BareMachine()
        for (index, variant) in variants.enumerated() {
            let frame = NativeCorpus.frame(variant.kind)
            let bytes = frame.prologue + variant.code + frame.epilogue
            try #require(bytes.count <= Self.slotByteCount)
            let address = Self.code + index * Self.slotByteCount
            machine.load(bytes, at: address)
            bytes.withUnsafeBytes {
                (native + (address - Self.workspace)).copyMemory(from: $0.baseAddress!, byteCount: bytes.count)
            }
            // mov edi, workspace; mov eax, address; call rax; hlt
            machine.load(
                [0xBF] + Self.bytes(Self.workspace) + [0xB8] + Self.bytes(address) + [0xFF, 0xD0, 0xF4],
                at: 0x8000 + index * 16)
        }
        var failures = 0
        for (index, variant) in variants.enumerated() {
            for round in 0..<16 where failures < 10 {
                let input = Self.input(variant, &generator)
                input.withUnsafeBytes {
                    native.copyMemory(from: $0.baseAddress!, byteCount: $0.count)
                    (machine.ram + Self.workspace).copyMemory(from: $0.baseAddress!, byteCount: $0.count)
                }
                typealias Function = @convention(c) (UnsafeMutableRawPointer) -> Void
                // SAFETY: a function that follows the calling convention was written there.
                let function = unsafeBitCast(
                    native + (Self.code - Self.workspace + index * Self.slotByteCount), to: Function.self)
                function(native)
                machine.processor.system.activity = .running
                machine.enterLongMode(at: UInt64(0x8000 + index * 16), stack: 0x7000)
                let result = machine.processor.run()
                let expected = Self.masked(native, variant)
                let actual = Self.masked(machine.ram + Self.workspace, variant)
                let end = UInt64(0x8000 + index * 16 + 13)
                if result == .halted && machine.processor.state.rip == end && expected == actual { continue }
                failures += 1
                let difference = zip(expected, actual).enumerated().first { $1.0 != $1.1 }?.offset ?? -1
                Issue.record(
                    """
                    \(variant.text): seed \(seed) round \(round): \(result) at \
                    \(String(machine.processor.state.rip, radix: 16)), byte \(String(difference, radix: 16)) differs: \
                    \(difference < 0 ? 0 : expected[difference]) natively, \(difference < 0 ? 0 : actual[difference])
                    """)
                break
            }
        }
    }

    private static func bytes(_ value: Int) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }

    /// A workspace for `variant`: data, and the initial registers at its end.
    private static func input(_ variant: NativeCorpus.Variant, _ generator: inout SeededGenerator) -> [UInt8] {
        var memory = [UInt8](repeating: 0, count: workspaceByteCount)
        // Sparse data let comparisons run on; dense data tell places apart.
        let isSparse = variant.kind == .string && Bool.random(using: &generator)
        let sparse = UInt8.random(in: 0...1, using: &generator)
        if isSparse {
            for i in 0..<0x3F00 { memory[i] = sparse }
            for _ in 0..<80 {
                memory[Int.random(in: 0..<0x3F00, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
        } else {
            memory.withUnsafeMutableBytes {
                for word in 0..<0x3F00 / 8 {
                    $0.storeBytes(of: generator.next(), toByteOffset: word * 8, as: UInt64.self)
                }
            }
        }
        func set(_ offset: Int, _ value: UInt64) {
            for i in 0..<8 { memory[offset + i] = UInt8(truncatingIfNeeded: value >> UInt64(i * 8)) }
        }
        func place(_ range: Range<Int>) -> UInt64 {
            UInt64(workspace + Int.random(in: range, using: &generator))
        }
        var rcx = [0, 1 << 32, generator.next(), generator.next()].randomElement(using: &generator)!
        var rax = generator.next()
        var rsi = place(0x1800..<0x1900)
        var rdi = place(0x0FC0..<0x1010)
        var flags = generator.next() & 0x8D5 | 2
        switch variant.kind {
        case .string:
            rcx = UInt64.random(in: 0..<300, using: &generator)
            rsi = place(0xF00..<0x2800)
            rdi =
                Bool.random(using: &generator)
                ? place(0xF00..<0x2800) : rsi &+ UInt64.random(in: 0..<12, using: &generator)
            if Bool.random(using: &generator) { flags |= 0x400 }
            if isSparse { rax = sparse == 0 ? 0 : 0x0101_0101_0101_0101 }
        case .bits:
            rax = UInt64(bitPattern: Int64.random(in: -10000..<10000, using: &generator))
            rdi = place(0x1800..<0x2000)
        case .vector:
            let hasDwordIndices = variant.text.contains("gatherd")
            for i in 0..<(hasDwordIndices ? 8 : 4) {
                let index = Int64.random(in: -300..<300, using: &generator)
                for byte in 0..<(hasDwordIndices ? 4 : 8) {
                    memory[0x2060 + i * (hasDwordIndices ? 4 : 8) + byte] =
                        UInt8(truncatingIfNeeded: index >> Int64(byte * 8))
                }
            }
        case .state:
            // An XSAVE header starts as zero.
            for offset in [0x0F00, 0x1000] { for i in 512..<576 { memory[offset + i] = 0 } }
        case .plain, .stack: break
        }
        set(0x3F00, rcx)
        set(0x3F08, rsi)
        set(0x3F10, rdi)
        set(0x3F18, rax)
        set(0x3F20, flags)
        return memory
    }

    /// The workspace without what may differ: undefined flags, and the host's x87 pointers and MXCSR mask.
    private static func masked(_ memory: UnsafeMutableRawPointer, _ variant: NativeCorpus.Variant) -> [UInt8] {
        var bytes = Array(UnsafeRawBufferPointer(start: memory, count: workspaceByteCount))
        func clear(_ range: Range<Int>) { for i in range { bytes[i] = 0 } }
        switch variant.kind {
        case .bits:
            // Only CF is defined.
            bytes[0x3E20] &= 1
            bytes[0x3E21] = 0
        case .state:
            let image = variant.text.contains("0x0F00]") ? 0x0F00 : 0x1000
            if variant.text.contains("xsave") {
                clear(image + 6..<image + 24)
                clear(image + 28..<image + 32)
            }
            // Environments of 32 and of 16 bits.
            for offset in [0x1000, 0x1100, 0x1200, 0x1800, 0x1900] where variant.text.contains("fn") {
                if variant.text.contains("[r8+0x\(String(offset, radix: 16))]") {
                    clear(variant.text.contains("data16") ? offset + 6..<offset + 14 : offset + 12..<offset + 26)
                }
            }
            clear(0x240C..<0x241A)
        case .string, .plain, .stack, .vector: break
        }
        return bytes
    }
}
