import CZydis

/// Zydis with its buffers: the instruction that was decoded last.
final class Disassembler {
    private var decoder = ZydisDecoder()
    private var formatter = ZydisFormatter()
    let instruction: UnsafeMutablePointer<ZydisDecodedInstruction>
    let operands: UnsafeMutablePointer<ZydisDecodedOperand>

    init(isNarrow: Bool) {
        if isNarrow {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        } else {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        }
        ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)
        instruction = .allocate(capacity: 1)
        instruction.initialize(to: ZydisDecodedInstruction())
        operands = .allocate(capacity: Int(ZYDIS_MAX_OPERAND_COUNT))
        operands.initialize(repeating: ZydisDecodedOperand(), count: Int(ZYDIS_MAX_OPERAND_COUNT))
    }

    deinit {
        instruction.deallocate()
        operands.deallocate()
    }

    func decode(_ bytes: UnsafeRawPointer, byteCount: Int) -> Bool {
        ZydisDecoderDecodeFull(&decoder, bytes, byteCount, instruction, operands) & 0x8000_0000 == 0
    }

    func decode(_ bytes: [UInt8]) -> Bool {
        bytes.withUnsafeBytes { decode($0.baseAddress.unsafelyUnwrapped, byteCount: $0.count) }
    }

    var mnemonic: ZydisMnemonic { instruction.pointee.mnemonic }
    var operandCount: Int { Int(instruction.pointee.operand_count) }

    /// The one operand that a ModRM names in memory, or an absolute one.
    var memoryOperand: ZydisDecodedOperand? {
        for i in 0..<operandCount where operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY { return operands[i] }
        return nil
    }

    /// The general registers (numbers 0…15) that the instruction may write, as a bit mask.
    var writtenRegisters: UInt16 {
        var result: UInt16 = 0
        for i in 0..<operandCount where operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER {
            // Write or conditional write.
            if operands[i].actions & 0x0A != 0 { result |= Self.generalRegister(operands[i].reg.value) }
        }
        return result
    }

    /// The general registers that are named anywhere in the instruction.
    var usedRegisters: UInt16 {
        var result: UInt16 = 0
        for i in 0..<operandCount {
            if operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER { result |= Self.generalRegister(operands[i].reg.value) }
            if operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY {
                result |= Self.generalRegister(operands[i].mem.base) | Self.generalRegister(operands[i].mem.index)
            }
        }
        return result
    }

    static func generalRegister(_ register: ZydisRegister) -> UInt16 {
        let whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, register)
        guard whole.rawValue >= ZYDIS_REGISTER_RAX.rawValue, whole.rawValue <= ZYDIS_REGISTER_R15.rawValue else {
            return 0
        }
        return 1 << UInt16(whole.rawValue - ZYDIS_REGISTER_RAX.rawValue)
    }

    /// The decoded instruction in assembly.
    func text(at address: UInt64) -> String {
        var buffer = [CChar](repeating: 0, count: 256)
        ZydisFormatterFormatInstruction(
            &formatter, instruction, operands, instruction.pointee.operand_count_visible, &buffer, 256, address, nil)
        return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// The instructions in `bytes`, one to a line.
    func listing(_ bytes: [UInt8], at address: UInt64) -> String {
        var lines: [String] = []
        var offset = 0
        while offset < bytes.count {
            let rest = Array(bytes[offset...])
            let length = decode(rest) ? Int(instruction.pointee.length) : 1
            let text = decode(rest) ? self.text(at: address + UInt64(offset)) : "?"
            if !(length == 1 && bytes[offset] == 0x90) {
                let hex = rest.prefix(length).map { String(Int($0) + 256, radix: 16).dropFirst() }.joined()
                lines.append("  \(String(address + UInt64(offset), radix: 16))  \(hex)  \(text)")
            }
            offset += length
        }
        return lines.joined(separator: "\n")
    }
}
