import CZydis
import X86

/// The decoded forms of a few instructions whose accesses translated code leaves to the processor time and again: those of
/// drivers, which reach devices.
///
/// Memory is used from the first such instruction on.
struct SlowInstructions {
    /// What an instruction is known by. Its bytes do not change unnoticed: it has been executed from a block, whose drop
    /// changes the count.
    struct Key: Equatable {
        var physical: UInt64 = .max
        var modeNumber: UInt8 = 0
        var epoch: UInt64 = 0
        /// `SoftTLB.jumpDropCount`.
        var dropCount: UInt64 = 0
    }

    private static let count = 16
    private var keys = InlineArray<16, Key>(repeating: Key())
    private var instructions: UnsafeMutablePointer<SwiftInstruction>?

    private func place(_ key: Key) -> Int { Int((key.physical ^ key.physical >> 4) & UInt64(Self.count - 1)) }

    /// The instruction for `key`, until another is inserted.
    func find(_ key: Key) -> UnsafePointer<SwiftInstruction>? {
        let place = place(key)
        guard keys[place] == key, let instructions else { return nil }
        return UnsafePointer(instructions + place)
    }

    mutating func insert(_ instruction: SwiftInstruction, _ key: Key) -> UnsafePointer<SwiftInstruction> {
        let instructions = instructions ?? .allocate(capacity: Self.count)
        if self.instructions == nil {
            instructions.initialize(repeating: SwiftInstruction(DecodedInstruction(), offset: 0), count: Self.count)
            self.instructions = instructions
        }
        let place = place(key)
        instructions[place] = instruction
        keys[place] = key
        return UnsafePointer(instructions + place)
    }

    /// Frees the memory. Nothing may be used afterwards.
    func destroy() { instructions?.deallocate() }
}

extension DecodedInstruction {
    /// MOV between memory and a general register, or of a constant to memory: what Swift does sooner than a copy of the
    /// instruction on a buffer.
    var isPlainMove: Bool {
        guard mnemonic == ZYDIS_MNEMONIC_MOV, encoding == .legacy, opcodeMap == 0 else { return false }
        switch opcode {
        case 0x88...0x8B, 0xA0...0xA3, 0xC6, 0xC7: return true
        default: return false
        }
    }
}

extension Processor {
    /// > Source: Intel SDM, volume 2, MOV.
    func executePlainMove(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        guard i.isPlainMove else { return false }
        let (target, source) = (i.operand(0), i.operand(1))
        if isCompletingAccess, isOneAccess(source.kind == .memory ? source : target, of: i),
            let answer = clientAnswers.next()
        {
            // The client has made the access.
            if source.kind == .memory { writeRegister(target.register, answer) }
        } else {
            try writeOperand(target, of: i, readOperand(source, of: i))
        }
        advance(i)
        return true
    }

    /// Whether a device sees the whole operand at once.
    private func isOneAccess(_ operand: DecodedInstruction.Operand, of i: DecodedInstruction) -> Bool {
        linearAddress(operand.memory, of: i) & 0xFFF + UInt64(operand.size / 8) <= 4096
    }
}
