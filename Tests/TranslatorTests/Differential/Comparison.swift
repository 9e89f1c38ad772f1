import Glibc

/// The results of one case on the host and in the guest.
struct Comparison {
    private let native: CaseSlot
    private let guest: CaseSlot

    /// The six arithmetic flags and DF.
    private static var comparedFlags: UInt64 { 0xCD5 }

    init(_ native: CaseSlot, _ guest: CaseSlot) {
        self.native = native
        self.guest = guest
    }

    var differs: Bool {
        let a = native.output
        let b = guest.output
        return !(0..<16).allSatisfy { isSameRegister($0) } || (a.flags ^ b.flags) & Self.comparedFlags != 0
            || !isSameFault
            || memcmp(a.vectorRegister(0), b.vectorRegister(0), native.isNarrow ? 256 : 512) != 0
            || !isSameFloatingPoint
            || memcmp(native.memory, guest.memory, TestArea.memoryByteCount) != 0
    }

    /// 32-bit code has the lower halves of eight registers.
    private func isSameRegister(_ i: Int) -> Bool {
        let difference = native.output[i] ^ guest.output[i]
        return native.isNarrow ? i >= 8 || difference & 0xFFFF_FFFF == 0 : difference == 0
    }

    private static let vectorsWithErrorCode: Set<UInt64> = [10, 11, 12, 13, 14, 17]

    private var isSameFault: Bool {
        let a = native.output
        let b = guest.output
        if a.vector == 16 && b.vector == 14 {
            // The operand's page comes first here, the pending exception when the instruction is executed again.
            return a.instructionPointer == b.instructionPointer
        }
        if a.vector == 13 && b.vector == 14 && b.faultAddress & 15 != 0 {
            // A misaligned vector operand on a page that is not there: likewise.
            return a.instructionPointer == b.instructionPointer
        }
        guard a.vector == b.vector else { return false }
        if a.vector == RegisterBlock.completed { return true }
        // One kernel may have pages where the other has none.
        let isKernels = a.faultAddress >> 63 != 0 || a.faultAddress < 1 << 21
        let ignored: UInt64 = a.vector == 14 && isKernels ? 1 : 0
        return a.instructionPointer == b.instructionPointer && (a.vector != 14 || a.faultAddress == b.faultAddress)
            && (!Self.vectorsWithErrorCode.contains(a.vector) || (a.errorCode ^ b.errorCode) & ~ignored == 0)
    }

    /// Control, status, tags, MXCSR and the registers' 80 bits; the last instruction's and operand's addresses are those
    /// of the host in translated code and are not kept.
    private var isSameFloatingPoint: Bool {
        let a = native.output.fxsave
        let b = guest.output.fxsave
        if memcmp(a, b, 5) != 0 || native.output.mxcsr != guest.output.mxcsr { return false }
        return (0..<8).allSatisfy { memcmp(a + 32 + $0 * 16, b + 32 + $0 * 16, 10) == 0 }
    }

    private static let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"
    ]

    private static func hex(_ value: UInt64) -> String { String(value, radix: 16) }

    private static func hex(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> String {
        (0..<count).reversed().map {
            String(Int(bytes.load(fromByteOffset: $0, as: UInt8.self)) + 256, radix: 16).dropFirst()
        }
        .joined()
    }

    static func describe(_ block: RegisterBlock) -> String {
        let registers = (0..<16).map { "\(names[$0])=\(hex(block[$0]))" }.joined(separator: " ")
        return "\(registers) flags=\(hex(block.flags)) mxcsr=\(hex(UInt64(block.mxcsr)))"
            + " fcw/fsw/ftw=\(hex(block.fxsave, 5))"
    }

    /// What differs, "host / guest".
    func differences() -> [String] {
        let a = native.output
        let b = guest.output
        var result: [String] = []
        func add(_ name: String, _ x: String, _ y: String) {
            if x != y { result.append("  \(name): \(x) / \(y)") }
        }
        func end(_ block: RegisterBlock) -> String {
            if block.vector == RegisterBlock.completed { return "completed" }
            return "vector \(block.vector) at \(Self.hex(block.instructionPointer))"
                + (block.vector == 14 ? " address \(Self.hex(block.faultAddress))" : "")
                + (Self.vectorsWithErrorCode.contains(block.vector) ? " code \(Self.hex(block.errorCode))" : "")
        }
        add("end", end(a), end(b))
        for i in 0..<16 where !isSameRegister(i) { add(Self.names[i], Self.hex(a[i]), Self.hex(b[i])) }
        add("flags", Self.hex(a.flags & Self.comparedFlags), Self.hex(b.flags & Self.comparedFlags))
        add("mxcsr", Self.hex(UInt64(a.mxcsr)), Self.hex(UInt64(b.mxcsr)))
        for i in 0..<(native.isNarrow ? 8 : 16) {
            add("ymm\(i)", Self.hex(a.vectorRegister(i), 32), Self.hex(b.vectorRegister(i), 32))
        }
        add("fcw/fsw/ftw", Self.hex(a.fxsave, 5), Self.hex(b.fxsave, 5))
        for i in 0..<8 {
            add("st\(i)", Self.hex(a.fxsave + 32 + i * 16, 10), Self.hex(b.fxsave + 32 + i * 16, 10))
        }
        for offset in stride(from: 0, to: TestArea.memoryByteCount, by: 8) where result.count < 24 {
            let place =
                offset < TestArea.dataPages << 12
                ? TestArea.data + UInt64(offset) : TestArea.stack + UInt64(offset - TestArea.dataPages << 12)
            add(
                "[\(Self.hex(place))]", Self.hex(native.memory.load(fromByteOffset: offset, as: UInt64.self)),
                Self.hex(guest.memory.load(fromByteOffset: offset, as: UInt64.self)))
        }
        return result
    }
}
