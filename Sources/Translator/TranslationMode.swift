import X86

/// Everything but the instruction bytes that decides how a block is translated.
///
/// Blocks are shared between address spaces and processors, so this is a part of their key.
struct TranslationMode: Hashable {
    var rawValue: UInt32 = 0

    @inline(__always) private func bits(_ shift: UInt32, _ width: UInt32) -> UInt32 {
        rawValue >> shift & (1 << width - 1)
    }
    @inline(__always) private mutating func set(_ shift: UInt32, _ width: UInt32, _ value: UInt32) {
        rawValue = rawValue & ~((1 << width - 1) << shift) | value << shift
    }

    var codeSize: Decoder.CodeSize {
        get { Decoder.CodeSize(rawValue: UInt8(bits(0, 2))) ?? .bits64 }
        set { set(0, 2, UInt32(newValue.rawValue)) }
    }
    /// SS.B, or 64-bit mode.
    var hasWideStack: Bool {
        get { bits(2, 1) != 0 }
        set { set(2, 1, newValue ? 1 : 0) }
    }
    var tlbMode: SoftTLB.Mode {
        get { SoftTLB.Mode(rawValue: UInt8(bits(3, 2))) ?? .user }
        set { set(3, 2, UInt32(newValue.rawValue)) }
    }
    /// x87 and MMX instructions may be executed (not EM, not TS).
    var allowsX87: Bool {
        get { bits(5, 1) != 0 }
        set { set(5, 1, newValue ? 1 : 0) }
    }
    var allowsSSE: Bool {
        get { bits(6, 1) != 0 }
        set { set(6, 1, newValue ? 1 : 0) }
    }
    var allowsAVX: Bool {
        get { bits(7, 1) != 0 }
        set { set(7, 1, newValue ? 1 : 0) }
    }
    /// Every instruction is a block of its own (RFLAGS.TF).
    var singleSteps: Bool {
        get { bits(8, 1) != 0 }
        set { set(8, 1, newValue ? 1 : 0) }
    }
    var isVirtual8086: Bool {
        get { bits(9, 1) != 0 }
        set { set(9, 1, newValue ? 1 : 0) }
    }
    /// Real mode decodes some instructions differently.
    var isProtected: Bool {
        get { bits(10, 1) != 0 }
        set { set(10, 1, newValue ? 1 : 0) }
    }

    /// CPL 0.
    var isSystem: Bool {
        get { bits(11, 1) != 0 }
        set { set(11, 1, newValue ? 1 : 0) }
    }

    /// RDTSC is not restricted by CR4.TSD.
    var allowsTimeStamp: Bool {
        get { bits(12, 1) != 0 }
        set { set(12, 1, newValue ? 1 : 0) }
    }

    /// RDFSBASE and RDGSBASE exist (CR4.FSGSBASE).
    var allowsBaseAccess: Bool {
        get { bits(13, 1) != 0 }
        set { set(13, 1, newValue ? 1 : 0) }
    }

    /// System management mode: the code lies in the slots of address space 1.
    var isSystemManagement: Bool {
        get { bits(14, 1) != 0 }
        set { set(14, 1, newValue ? 1 : 0) }
    }

    /// Whether the base of `segment` has to be added to addresses. Always for FS and GS.
    func hasBase(_ segment: SegmentRegister) -> Bool { bits(16 + UInt32(segment.rawValue), 1) != 0 }
    mutating func setBase(_ segment: SegmentRegister, _ value: Bool) {
        set(16 + UInt32(segment.rawValue), 1, value ? 1 : 0)
    }

    /// Translated code may follow jumps: the code segment's base is zero and offsets are not truncated to 16 bits.
    var isFlatCode: Bool { codeSize == .bits64 || codeSize == .bits32 && !hasBase(.cs) }

    /// Pushes and pops are translated: 64-bit mode, or a 32-bit stack without a base.
    var isFlatStack: Bool { codeSize == .bits64 || hasWideStack && !hasBase(.ss) }
}
