import Glibc
import TestSupport

/// The registers that a test compares, in raw memory that may be shared with another process.
struct RegisterBlock {
    let base: UnsafeMutableRawPointer

    static var byteCount: Int { 0x500 }
    static var flagsOffset: Int { 0x80 }
    static var vectorOffset: Int { 0x88 }
    static var instructionPointerOffset: Int { 0x90 }
    static var errorCodeOffset: Int { 0x98 }
    static var faultAddressOffset: Int { 0xA0 }
    static var entryOffset: Int { 0xA8 }
    static var vectorRegistersOffset: Int { 0x100 }
    static var fxsaveOffset: Int { 0x300 }

    /// What ``vector`` holds when the sequence reached its end.
    static var completed: UInt64 { 0xFFFF }
    /// What ``vector`` holds while a sequence runs.
    static var unfinished: UInt64 { 0xFFFE }

    subscript(_ register: Int) -> UInt64 {
        get { base.load(fromByteOffset: register * 8, as: UInt64.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: register * 8, as: UInt64.self) }
    }

    private func word(_ offset: Int) -> UInt64 { base.load(fromByteOffset: offset, as: UInt64.self) }
    private func setWord(_ offset: Int, _ value: UInt64) {
        base.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }

    var flags: UInt64 {
        get { word(Self.flagsOffset) }
        nonmutating set { setWord(Self.flagsOffset, newValue) }
    }
    /// The exception that ended the sequence, or ``completed``.
    var vector: UInt64 {
        get { word(Self.vectorOffset) }
        nonmutating set { setWord(Self.vectorOffset, newValue) }
    }
    var instructionPointer: UInt64 {
        get { word(Self.instructionPointerOffset) }
        nonmutating set { setWord(Self.instructionPointerOffset, newValue) }
    }
    var errorCode: UInt64 {
        get { word(Self.errorCodeOffset) }
        nonmutating set { setWord(Self.errorCodeOffset, newValue) }
    }
    var faultAddress: UInt64 {
        get { word(Self.faultAddressOffset) }
        nonmutating set { setWord(Self.faultAddressOffset, newValue) }
    }
    /// Where the sequence starts.
    var entry: UInt64 {
        get { word(Self.entryOffset) }
        nonmutating set { setWord(Self.entryOffset, newValue) }
    }
    func vectorRegister(_ index: Int) -> UnsafeMutableRawPointer { base + Self.vectorRegistersOffset + index * 32 }
    var fxsave: UnsafeMutableRawPointer { base + Self.fxsaveOffset }
    var mxcsr: UInt32 {
        get { fxsave.load(fromByteOffset: 24, as: UInt32.self) }
        nonmutating set { fxsave.storeBytes(of: newValue, toByteOffset: 24, as: UInt32.self) }
    }
}

/// One test in raw memory: code, registers before and after, memory after.
struct CaseSlot {
    let base: UnsafeMutableRawPointer

    static var byteCount: Int { 0x1000 + TestArea.memoryByteCount }
    static var maximumCodeByteCount: Int { 0x400 }

    var input: RegisterBlock { RegisterBlock(base: base) }
    var output: RegisterBlock { RegisterBlock(base: base + 0x500) }
    /// Offset of the code in its area, its byte count, and which image of memory it starts with.
    var codeOffset: Int {
        get { base.load(fromByteOffset: 0xA00, as: Int.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: 0xA00, as: Int.self) }
    }
    var codeByteCount: Int {
        get { base.load(fromByteOffset: 0xA08, as: Int.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: 0xA08, as: Int.self) }
    }
    var image: Int {
        get { base.load(fromByteOffset: 0xA10, as: Int.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: 0xA10, as: Int.self) }
    }
    /// Whether the code is 32-bit code.
    var isNarrow: Bool {
        get { base.load(fromByteOffset: 0xA18, as: Int.self) != 0 }
        nonmutating set { base.storeBytes(of: newValue ? 1 : 0, toByteOffset: 0xA18, as: Int.self) }
    }
    var code: UnsafeMutableRawPointer { base + 0xB00 }
    /// The data and stack pages after the run.
    var memory: UnsafeMutableRawPointer { base + 0x1000 }
}

/// The contents of data and stack that tests start from.
struct MemoryImages {
    let base: UnsafeMutableRawPointer
    static var count: Int { 16 }

    init(seed: UInt64) {
        let byteCount = Self.count * TestArea.memoryByteCount
        base = .allocate(byteCount: byteCount, alignment: 4096)
        var random = SeededGenerator(seed: seed)
        for i in 0..<byteCount / 8 {
            let image = i * 8 / TestArea.memoryByteCount
            // Some images repeat values, so that comparisons find equals.
            let value = image % 4 == 3 ? UInt64(random.below(4)) &* 0x0101_0101_0101_0101 : random.operand()
            base.storeBytes(of: value, toByteOffset: i * 8, as: UInt64.self)
        }
    }

    subscript(_ index: Int) -> UnsafeRawPointer { UnsafeRawPointer(base + index * TestArea.memoryByteCount) }
}
