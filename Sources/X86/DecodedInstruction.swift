import CZydis

/// One guest instruction in the form the translator and the instruction implementations use.
///
/// A trivial value of fixed size: it can be cached in arrays and copied without reference counting.
public struct DecodedInstruction: Sendable {
    public var mnemonic: ZydisMnemonic = ZYDIS_MNEMONIC_INVALID
    public var category: ZydisInstructionCategory = ZYDIS_CATEGORY_INVALID
    public var isaSet: ZydisISASet = ZYDIS_ISA_SET_INVALID
    public var attributes: UInt64 = 0
    /// The length in bytes, 1…15.
    public var length: UInt8 = 0
    public var opcodeMap: UInt8 = 0
    public var opcode: UInt8 = 0
    public var encoding: Encoding = .legacy
    /// Effective operand size in bits: 8, 16, 32, 64.
    public var operandWidth: UInt8 = 0
    /// Effective address size in bits: 16, 32, 64.
    public var addressWidth: UInt8 = 0
    /// Stack width in bits: 16, 32, 64.
    public var stackWidth: UInt8 = 0
    /// Whether the opcode takes F2, F3 or 66 as a part of itself: that byte, or 0.
    public var mandatoryPrefix: UInt8 = 0
    public var hasModRM = false
    /// ModRM fields without the REX or VEX extension bits.
    public var modrmMod: UInt8 = 0
    public var modrmReg: UInt8 = 0
    public var modrmRM: UInt8 = 0
    public var rexW = false
    public var hasREX = false
    /// VEX fields; `vexV` is the register number (not inverted).
    public var vexL: UInt8 = 0
    public var vexPP: UInt8 = 0
    public var vexV: UInt8 = 0
    /// Count and place of the immediate bytes in the instruction (both immediates of ENTER count as one run).
    public var immediateByteCount: UInt8 = 0
    public var immediateOffset: UInt8 = 0
    public var operandCount: UInt8 = 0
    public var visibleOperandCount: UInt8 = 0
    public var operands: (Operand, Operand, Operand, Operand, Operand, Operand) = (
        Operand(), Operand(), Operand(), Operand(), Operand(), Operand()
    )
    /// The instruction's bytes, zero-padded.
    public var bytes: (UInt64, UInt64) = (0, 0)

    public init() {}

    public enum Encoding: UInt8, Sendable { case legacy, vex, other }

    /// An explicit or implicit operand, packed: translation copies many of them.
    public struct Operand: Sendable {
        public var kind: Kind = .none
        /// Where the instruction names it.
        public var place: Place = .implied
        private var properties = Properties()
        private var segment: SegmentRegister = .ds
        /// The size in bits.
        public var size: UInt16 = 0
        /// A register, or the selector of a far pointer.
        private var name: UInt16 = 0
        private var base: UInt8 = MemoryOperand.none
        private var index: UInt8 = MemoryOperand.none
        private var scale: UInt8 = 0
        /// A displacement, an immediate, or the offset of a far pointer.
        private var value: UInt64 = 0

        public init() {}

        public enum Kind: UInt8, Sendable { case none, register, memory, pointer, immediate }

        /// The field of the encoding that holds an operand.
        public enum Place: UInt8, Sendable { case implied, modrmReg, modrmRM, opcode, vexV, immediate }

        private struct Properties: OptionSet {
            var rawValue: UInt8 = 0
            static var hidden: Self { Self(rawValue: 1) }
            static var read: Self { Self(rawValue: 2) }
            static var written: Self { Self(rawValue: 4) }
            static var relative: Self { Self(rawValue: 8) }
            static var addressOnly: Self { Self(rawValue: 16) }

            subscript(_ property: Self) -> Bool {
                get { contains(property) }
                set { if newValue { formUnion(property) } else { subtract(property) } }
            }
        }

        /// Hidden operands are implied by the opcode and not written in assembly.
        public var isHidden: Bool {
            get { properties[.hidden] }
            set { properties[.hidden] = newValue }
        }
        public var isRead: Bool {
            get { properties[.read] }
            set { properties[.read] = newValue }
        }
        public var isWritten: Bool {
            get { properties[.written] }
            set { properties[.written] = newValue }
        }
        public var isRelative: Bool {
            get { properties[.relative] }
            set { properties[.relative] = newValue }
        }
        /// For `.register`.
        public var register: ZydisRegister {
            get { ZydisRegister(UInt32(name)) }
            set { name = UInt16(truncatingIfNeeded: newValue.rawValue) }
        }
        /// For `.pointer`.
        public var selector: UInt16 {
            get { name }
            set { name = newValue }
        }
        /// For `.immediate` the sign- or zero-extended value; for `.pointer` the offset, with the selector in `selector`.
        public var immediate: UInt64 {
            get { value }
            set { value = newValue }
        }
        /// For `.memory`.
        public var memory: MemoryOperand {
            get {
                var result = MemoryOperand()
                result.segment = segment
                result.base = base
                result.index = index
                result.scale = scale
                result.displacement = Int64(bitPattern: value)
                result.isAddressOnly = properties[.addressOnly]
                return result
            }
            set {
                segment = newValue.segment
                base = newValue.base
                index = newValue.index
                scale = newValue.scale
                value = UInt64(bitPattern: newValue.displacement)
                properties[.addressOnly] = newValue.isAddressOnly
            }
        }
    }

    /// The parts of an effective address.
    public struct MemoryOperand: Sendable {
        public var segment: SegmentRegister = .ds
        /// General-register number 0…15, or ``none``, or ``instructionPointer`` for a base.
        public var base: UInt8 = Self.none
        public var index: UInt8 = Self.none
        public var scale: UInt8 = 0
        public var displacement: Int64 = 0
        /// LEA and friends: no access happens.
        public var isAddressOnly = false

        public init() {}

        @inlinable public static var none: UInt8 { 0xFF }
        @inlinable public static var instructionPointer: UInt8 { 0x10 }
    }

    /// Operand `index`, 0…5.
    @inlinable public func operand(_ index: Int) -> Operand {
        switch index {
        case 0: operands.0
        case 1: operands.1
        case 2: operands.2
        case 3: operands.3
        case 4: operands.4
        default: operands.5
        }
    }

    @inlinable public func hasAttribute(_ bit: UInt64) -> Bool { attributes & bit != 0 }
    /// A LOCK prefix, or XCHG with memory, which locks by itself.
    @inlinable public var isLocked: Bool { attributes & DecodedInstruction.lockAttribute != 0 }
    @inlinable public var hasRepeat: Bool {
        attributes & (Self.repAttribute | Self.repeAttribute | Self.repneAttribute) != 0
    }
    @inlinable public var hasRepeatNotEqual: Bool { attributes & Self.repneAttribute != 0 }
}

extension DecodedInstruction {
    // Attribute bits as Zydis defines them (`ZYDIS_ATTRIB_…`; those macros are not importable).
    @inlinable public static var lockAttribute: UInt64 { 1 << 27 }
    @inlinable public static var repAttribute: UInt64 { 1 << 28 }
    @inlinable public static var repeAttribute: UInt64 { 1 << 29 }
    @inlinable public static var repneAttribute: UInt64 { 1 << 30 }
    @inlinable public static var operandSizeAttribute: UInt64 { 1 << 43 }
    @inlinable public static var addressSizeAttribute: UInt64 { 1 << 44 }
}
