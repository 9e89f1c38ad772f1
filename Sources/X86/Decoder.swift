import CZydis

/// Decodes guest instructions with Zydis.
///
/// A decoder belongs to one thread.
public struct Decoder {
    private var decoder64 = ZydisDecoder()
    private var decoder32 = ZydisDecoder()
    private var decoder16 = ZydisDecoder()
    private let operandBuffer: UnsafeMutablePointer<ZydisDecodedOperand>

    /// The default operand and address size of the code segment.
    public enum CodeSize: UInt8, Sendable {
        case bits16, bits32, bits64
    }

    public init() {
        ZydisDecoderInit(&decoder64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        ZydisDecoderInit(&decoder32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        ZydisDecoderInit(&decoder16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16)
        // One small buffer per decoder, which lives as long as its processor; zeroing ten operands per call would
        // cost more than decoding.
        operandBuffer = .allocate(capacity: Int(ZYDIS_MAX_OPERAND_COUNT))
    }

    /// Frees what the decoder holds; the decoder must not be used afterwards.
    public func destroy() { operandBuffer.deallocate() }

    /// The result of ``decode(_:byteCount:size:)``.
    public enum Outcome {
        case instruction(DecodedInstruction)
        /// The bytes end before the instruction does.
        case truncated
        /// No instruction of any processor, or longer than 15 bytes (`tooLong`, a general-protection fault).
        case invalid(tooLong: Bool)
    }

    /// Decodes the instruction at `bytes`.
    /// - Parameter byteCount: bytes that may be read, at most 15 are.
    public func decode(_ bytes: UnsafeRawPointer, byteCount: Int, size: CodeSize) -> Outcome {
        var result = DecodedInstruction()
        let status = decode(bytes, byteCount: byteCount, size: size, into: &result)
        if status & 0x8000_0000 == 0 { return .instruction(result) }
        if status == Self.noMoreData { return byteCount >= 15 ? .invalid(tooLong: true) : .truncated }
        return .invalid(tooLong: status == Self.instructionTooLong)
    }

    /// Whether an instruction of 64-bit code begins at `offset` of `code`, if one begins at its first byte and they follow each
    /// other without a gap.
    public static func hasInstruction(at offset: Int, of code: UnsafeRawBufferPointer) -> Bool {
        var decoder = ZydisDecoder()
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        // Lengths are all that matters.
        ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MINIMAL, 1)
        var raw = ZydisDecodedInstruction()
        var position = 0
        while position < offset {
            let rest = UnsafeRawBufferPointer(rebasing: code[position...])
            guard ZydisDecoderDecodeInstruction(&decoder, nil, rest.baseAddress, rest.count, &raw) & 0x8000_0000 == 0
            else { return false }
            position += Int(raw.length)
        }
        return position == offset
    }

    /// `ZYDIS_STATUS_NO_MORE_DATA`.
    private static var noMoreData: UInt32 { 0x8020_0000 }
    /// `ZYDIS_STATUS_INSTRUCTION_TOO_LONG`.
    private static var instructionTooLong: UInt32 { 0x8020_0002 }

    private func decode(
        _ bytes: UnsafeRawPointer, byteCount: Int, size: CodeSize, into result: inout DecodedInstruction
    ) -> UInt32 {
        var raw = ZydisDecodedInstruction()
        var context = ZydisDecoderContext()
        let length = min(byteCount, 15)
        var decoder =
            switch size {
            case .bits64: decoder64
            case .bits32: decoder32
            case .bits16: decoder16
            }
        var status = ZydisDecoderDecodeInstruction(&decoder, &context, bytes, length, &raw)
        if status & 0x8000_0000 != 0 { return status }
        status = ZydisDecoderDecodeOperands(&decoder, &context, &raw, operandBuffer, raw.operand_count)
        if status & 0x8000_0000 != 0 { return status }
        fill(&result, raw, bytes)
        return status
    }

    private func fill(_ result: inout DecodedInstruction, _ raw: ZydisDecodedInstruction, _ bytes: UnsafeRawPointer) {
        result.mnemonic = raw.mnemonic
        result.category = raw.meta.category
        result.isaSet = raw.meta.isa_set
        result.attributes = raw.attributes
        result.length = raw.length
        result.opcodeMap = UInt8(truncatingIfNeeded: raw.opcode_map.rawValue)
        result.opcode = raw.opcode
        result.operandWidth = raw.operand_width
        result.addressWidth = raw.address_width
        result.stackWidth = raw.stack_width
        switch raw.encoding {
        case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
            result.encoding = .legacy
            result.rexW = raw.raw.rex.W != 0
            result.hasREX = raw.attributes & (1 << 2) != 0
        case ZYDIS_INSTRUCTION_ENCODING_VEX:
            result.encoding = .vex
            result.rexW = raw.raw.vex.W != 0
            result.vexL = raw.raw.vex.L
            result.vexPP = raw.raw.vex.pp
            result.vexV = ~raw.raw.vex.vvvv & 15
        default:
            result.encoding = .other
        }
        result.hasModRM = raw.attributes & 1 != 0
        result.modrmMod = raw.raw.modrm.mod
        result.modrmReg = raw.raw.modrm.reg
        result.modrmRM = raw.raw.modrm.rm
        result.immediateOffset = raw.raw.imm.0.offset
        result.immediateByteCount = (raw.raw.imm.0.size + raw.raw.imm.1.size) / 8
        withUnsafeBytes(of: raw.raw.prefixes) { prefixes in
            // Each element is an enum (4 bytes) and a value byte, padded to 8.
            for i in 0..<Int(raw.raw.prefix_count) {
                let type = prefixes.load(fromByteOffset: i * 8, as: UInt32.self)
                if type == ZYDIS_PREFIX_TYPE_MANDATORY.rawValue {
                    result.mandatoryPrefix = prefixes.load(fromByteOffset: i * 8 + 4, as: UInt8.self)
                }
            }
        }
        withUnsafeMutableBytes(of: &result.bytes) { target in
            target.copyMemory(from: UnsafeRawBufferPointer(start: bytes, count: Int(raw.length)))
        }
        result.visibleOperandCount = raw.operand_count_visible
        result.operandCount = min(raw.operand_count, 6)
        let count = Int(result.operandCount)
        if count > 0 { result.operands.0 = Self.operand(operandBuffer[0]) }
        if count > 1 { result.operands.1 = Self.operand(operandBuffer[1]) }
        if count > 2 { result.operands.2 = Self.operand(operandBuffer[2]) }
        if count > 3 { result.operands.3 = Self.operand(operandBuffer[3]) }
        if count > 4 { result.operands.4 = Self.operand(operandBuffer[4]) }
        if count > 5 { result.operands.5 = Self.operand(operandBuffer[5]) }
    }

    private static func operand(_ raw: ZydisDecodedOperand) -> DecodedInstruction.Operand {
        var result = DecodedInstruction.Operand()
        result.isHidden = raw.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN
        let actions = raw.actions
        result.isRead = actions & 0x05 != 0
        result.isWritten = actions & 0x0A != 0
        result.size = raw.size
        // A conditional write leaves the old value in place, which counts as reading it.
        if actions & 0x08 != 0 { result.isRead = true }
        result.place =
            switch raw.encoding {
            case ZYDIS_OPERAND_ENCODING_MODRM_REG: .modrmReg
            case ZYDIS_OPERAND_ENCODING_MODRM_RM: .modrmRM
            case ZYDIS_OPERAND_ENCODING_OPCODE: .opcode
            case ZYDIS_OPERAND_ENCODING_NDSNDD: .vexV
            case ZYDIS_OPERAND_ENCODING_IS4: .immediate
            default: .implied
            }
        switch raw.type {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            result.kind = .register
            result.register = raw.reg.value
        case ZYDIS_OPERAND_TYPE_MEMORY:
            result.kind = .memory
            result.memory = memory(raw.mem)
        case ZYDIS_OPERAND_TYPE_POINTER:
            result.kind = .pointer
            result.immediate = UInt64(raw.ptr.offset)
            result.selector = raw.ptr.segment
        case ZYDIS_OPERAND_TYPE_IMMEDIATE:
            result.kind = .immediate
            result.immediate = raw.imm.value.u
            result.isRelative = raw.imm.is_relative != 0
        default: break
        }
        return result
    }

    private static func memory(_ raw: ZydisDecodedOperandMem) -> DecodedInstruction.MemoryOperand {
        var result = DecodedInstruction.MemoryOperand()
        let segment = raw.segment.rawValue &- ZYDIS_REGISTER_ES.rawValue
        result.segment = segment < 6 ? SegmentRegister(rawValue: UInt8(segment)) ?? .ds : .ds
        result.base = registerNumber(raw.base)
        result.index = registerNumber(raw.index)
        result.scale = raw.scale
        result.displacement = raw.disp.has_displacement != 0 ? raw.disp.value : 0
        result.isAddressOnly = raw.type == ZYDIS_MEMOP_TYPE_AGEN
        return result
    }

    /// The number 0…15 of an address register, ``DecodedInstruction/MemoryOperand/instructionPointer`` or
    /// ``DecodedInstruction/MemoryOperand/none``. Vector index registers give their number.
    private static func registerNumber(_ register: ZydisRegister) -> UInt8 {
        switch register.rawValue {
        case ZYDIS_REGISTER_RAX.rawValue...ZYDIS_REGISTER_R15.rawValue:
            UInt8(register.rawValue - ZYDIS_REGISTER_RAX.rawValue)
        case ZYDIS_REGISTER_EAX.rawValue...ZYDIS_REGISTER_R15D.rawValue:
            UInt8(register.rawValue - ZYDIS_REGISTER_EAX.rawValue)
        case ZYDIS_REGISTER_AX.rawValue...ZYDIS_REGISTER_R15W.rawValue:
            UInt8(register.rawValue - ZYDIS_REGISTER_AX.rawValue)
        case ZYDIS_REGISTER_RIP.rawValue, ZYDIS_REGISTER_EIP.rawValue:
            DecodedInstruction.MemoryOperand.instructionPointer
        case ZYDIS_REGISTER_XMM0.rawValue...ZYDIS_REGISTER_XMM15.rawValue:
            UInt8(register.rawValue - ZYDIS_REGISTER_XMM0.rawValue)
        case ZYDIS_REGISTER_YMM0.rawValue...ZYDIS_REGISTER_YMM15.rawValue:
            UInt8(register.rawValue - ZYDIS_REGISTER_YMM0.rawValue)
        default: DecodedInstruction.MemoryOperand.none
        }
    }
}
