import Synchronization

/// The registers of one vCPU in a page of raw memory, at offsets that translated code addresses through GS.
///
/// The page is aliased in front of every partition of the vCPU's software TLB, so its fields are reached by the same
/// small displacement whichever partition is active. Only the thread inside `KVM_RUN` touches it, with one exception:
/// ``attention`` is stored by others.
public struct CPUState {
    public let base: UnsafeMutableRawPointer

    /// - Parameter base: page-aligned, at least ``byteCount`` bytes, zeroed, valid while the value is used.
    @inlinable public init(base: UnsafeMutableRawPointer) { self.base = base }

    @inlinable public static var byteCount: Int { 4096 }

    /// Non-zero makes translated code leave at the next block.
    @inlinable public var attention: UnsafeMutablePointer<Atomic<UInt32>> {
        (base + Self.attentionOffset).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    // Offsets in bytes.
    /// The canonical address of this page (not that of an alias).
    @inlinable public static var selfOffset: Int { 0x000 }
    /// 32 bits: ``attention``.
    @inlinable public static var attentionOffset: Int { 0x008 }
    /// The linear address (with CS base) of the page that holds the running block's first byte.
    @inlinable public static var pageBaseOffset: Int { 0x010 }
    @inlinable public static var instructionPointerOffset: Int { 0x018 }
    @inlinable public static var generalRegistersOffset: Int { 0x020 }
    /// 16 bits: OF in bit 0, SF ZF AF PF CF in bits 8–15 as `lahf` gives them.
    @inlinable public static var arithmeticFlagsOffset: Int { 0x0A0 }
    /// RFLAGS without the six arithmetic flags.
    @inlinable public static var systemFlagsOffset: Int { 0x0A8 }
    /// What is added to a jump target before it is looked up: translation mode and jump-cache generation in bits 48–63.
    @inlinable public static var modeTagOffset: Int { 0x1F8 }
    @inlinable public static var hostStackPointerOffset: Int { 0x0C8 }
    @inlinable public static var exitValueOffset: Int { 0x0D8 }
    /// Eight 64-bit temporaries of translated code.
    @inlinable public static var temporariesOffset: Int { 0x0E0 }
    /// Segment bases ES, CS, SS, DS, FS, GS.
    @inlinable public static var segmentBasesOffset: Int { 0x120 }
    /// Pointers to the routines translated code calls, see `Trampolines`.
    @inlinable public static var routinesOffset: Int { 0x150 }
    /// Host values kept while the guest's are loaded: MXCSR, x87 control word.
    @inlinable public static var hostControlOffset: Int { 0x1D0 }
    /// 32 bits: the guest's x87 state is in the host's registers.
    @inlinable public static var x87LiveOffset: Int { 0x1D8 }
    /// Constants that translated code masks flags with.
    @inlinable public static var flagMasksOffset: Int { 0xA00 }
    /// What is added to the host's time-stamp counter; what RDTSCP leaves in ECX.
    @inlinable public static var timeStampOffsetOffset: Int { 0x768 }
    @inlinable public static var timeStampAuxiliaryOffset: Int { 0x770 }
    /// Mirrors of system registers for translated code; see `SystemMirror`.
    @inlinable public static var systemMirrorOffset: Int { 0xC00 }
    /// 32 bits: an interrupt waits for IF to be set.
    @inlinable public static var interruptWindowOffset: Int { 0x760 }
    /// Host addresses of up to sixteen groups of neighbouring accesses of the running block.
    @inlinable public static var groupAddressesOffset: Int { 0x780 }
    /// Executable addresses of translated code (start, end) and of the routine faults are redirected to.
    @inlinable public static var codeRangeOffset: Int { 0x700 }
    /// The `Processor` object, unretained.
    @inlinable public static var processorOffset: Int { 0x1F0 }
    /// Fault record written by the signal handler: trap number (32 bits; −1 when empty), error code (32 bits), host pc.
    @inlinable public static var faultRecordOffset: Int { 0x1E0 }
    /// YMM0–YMM15, 32 bytes each.
    @inlinable public static var vectorRegistersOffset: Int { 0x200 }
    /// The legacy FXSAVE image (512 bytes): x87 registers and MXCSR; its XMM part is not used.
    @inlinable public static var fxsaveOffset: Int { 0x400 }
    /// The bounce buffer for accesses that need help (page-crossing, memory-mapped I/O): 256 bytes, 64-byte aligned.
    @inlinable public static var bounceOffset: Int { 0x600 }
}

extension CPUState {
    @inlinable public var rip: UInt64 {
        get { base.load(fromByteOffset: Self.instructionPointerOffset, as: UInt64.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: Self.instructionPointerOffset, as: UInt64.self) }
    }

    /// The full 64-bit value of a general-purpose register.
    @inlinable public subscript(_ register: GeneralRegister) -> UInt64 {
        get { base.load(fromByteOffset: Self.generalRegistersOffset + register.index * 8, as: UInt64.self) }
        nonmutating set {
            base.storeBytes(
                of: newValue, toByteOffset: Self.generalRegistersOffset + register.index * 8, as: UInt64.self)
        }
    }

    /// OF, SF, ZF, AF, PF and CF at their places in RFLAGS.
    @inlinable public var arithmeticFlags: UInt64 {
        get {
            let packed = UInt64(base.load(fromByteOffset: Self.arithmeticFlagsOffset, as: UInt16.self))
            return (packed >> 8) & 0xD5 | (packed & 1) << 11
        }
        nonmutating set {
            let packed = UInt16(truncatingIfNeeded: (newValue & 0xD5) << 8 | (newValue >> 11) & 1 | 0x200)
            base.storeBytes(of: packed, toByteOffset: Self.arithmeticFlagsOffset, as: UInt16.self)
        }
    }

    /// RFLAGS without the six arithmetic flags: TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID.
    @inlinable public var systemFlags: UInt64 {
        get { base.load(fromByteOffset: Self.systemFlagsOffset, as: UInt64.self) }
        nonmutating set {
            base.storeBytes(
                of: newValue & (RFlags.all & ~RFlags.arithmetic), toByteOffset: Self.systemFlagsOffset, as: UInt64.self)
        }
    }

    /// The architectural RFLAGS.
    @inlinable public var rflags: UInt64 {
        get { arithmeticFlags | systemFlags | RFlags.reserved1 }
        nonmutating set {
            arithmeticFlags = newValue
            systemFlags = newValue
        }
    }

    /// The base that translated code adds for `segment`.
    @inlinable public func segmentBase(_ segment: SegmentRegister) -> UInt64 {
        base.load(fromByteOffset: Self.segmentBasesOffset + segment.index * 8, as: UInt64.self)
    }

    @inlinable public func setSegmentBase(_ segment: SegmentRegister, _ value: UInt64) {
        base.storeBytes(of: value, toByteOffset: Self.segmentBasesOffset + segment.index * 8, as: UInt64.self)
    }

    /// The 32 bytes of YMM `index`.
    @inlinable public func vectorRegister(_ index: Int) -> UnsafeMutableRawPointer {
        base + Self.vectorRegistersOffset + (index & 15) * 32
    }

    /// The FXSAVE image with the x87 registers and MXCSR.
    @inlinable public var fxsaveArea: UnsafeMutableRawPointer { base + Self.fxsaveOffset }

    @inlinable public var mxcsr: UInt32 {
        get { fxsaveArea.load(fromByteOffset: 24, as: UInt32.self) }
        nonmutating set { fxsaveArea.storeBytes(of: newValue, toByteOffset: 24, as: UInt32.self) }
    }
}
