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
    private var manners = InlineArray<16, Manner>(repeating: .swift)
    private var instructions: UnsafeMutablePointer<SwiftInstruction>?

    private func place(_ key: Key) -> Int { Int((key.physical ^ key.physical >> 4) & UInt64(Self.count - 1)) }

    /// How an instruction is executed.
    enum Manner {
        /// In Swift.
        case swift
        /// A copy of it, on a buffer in the place of its operand.
        case copied
        /// As ``DecodedInstruction/isPlainMove`` says.
        case move
    }

    struct Entry {
        var instruction: UnsafePointer<SwiftInstruction>
        var manner: Manner
    }

    /// The instruction for `key`, until another is inserted.
    func find(_ key: Key) -> Entry? {
        let place = place(key)
        guard keys[place] == key, let instructions else { return nil }
        return Entry(instruction: UnsafePointer(instructions + place), manner: manners[place])
    }

    mutating func insert(_ instruction: SwiftInstruction, _ manner: Manner, _ key: Key) -> Entry {
        let instructions = instructions ?? .allocate(capacity: Self.count)
        if self.instructions == nil {
            instructions.initialize(repeating: SwiftInstruction(DecodedInstruction(), offset: 0), count: Self.count)
            self.instructions = instructions
        }
        let place = place(key)
        instructions[place] = instruction
        keys[place] = key
        manners[place] = manner
        return Entry(instruction: UnsafePointer(instructions + place), manner: manner)
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
    /// Executes a plain move, whose memory operand is a device's or crosses a page.
    ///
    /// Looks at the few fields that matter: the whole structure is slow to copy.
    /// > Source: Intel SDM, volume 2, MOV.
    func executePlainMove(_ instruction: UnsafePointer<SwiftInstruction>) throws(GuestFault) {
        let (target, source) = (instruction.pointee.decoded.operands.0, instruction.pointee.decoded.operands.1)
        let length = instruction.pointee.decoded.length
        let addressWidth = instruction.pointee.decoded.addressWidth
        let isLoad = source.kind == .memory
        let operand = isLoad ? source : target
        let linear = linearAddress(operand.memory, length: length, addressWidth: addressWidth)
        let byteCount = Int(operand.size) / 8
        // What the client was asked for was the whole access, if that lies in one page.
        let isOneAccess = linear & 0xFFF + UInt64(byteCount) <= 4096
        let answer = isCompletingAccess && isOneAccess ? clientAnswers.next() : nil
        // Translated code has just come from there.
        let device = answer == nil && !isCompletingAccess && missDevice?.linear == linear ? missDevice?.physical : nil
        missDevice = nil
        if isLoad {
            let value: UInt64
            if let answer {
                value = answer
            } else if let device {
                value = try readWholeDevice(device, byteCount: byteCount)
            } else {
                value = try readData(linear, byteCount: byteCount, segment: operand.memory.segment)
            }
            writeRegister(target.register, value)
        } else if answer == nil {
            let value = source.kind == .register ? readRegister(source.register) : source.immediate
            if let device {
                try writeWholeDevice(device, byteCount: byteCount, value & Self.mask(byteCount: byteCount))
            } else {
                try writeData(linear, value, byteCount: byteCount, segment: operand.memory.segment)
            }
        }
        state.rip = (state.rip &+ UInt64(length)) & instructionPointerMask
    }

    /// An access of 1, 2, 4 or 8 bytes for which the client has not given an answer yet.
    private func readWholeDevice(_ physical: UInt64, byteCount: Int) throws(GuestFault) -> UInt64 {
        if let own = platform.readMMIO(physical, byteCount: byteCount) { return own }
        return try clientAccess(.mmioRead(address: physical, byteCount: byteCount))
    }

    private func writeWholeDevice(_ physical: UInt64, byteCount: Int, _ value: UInt64) throws(GuestFault) {
        if platform.writeMMIO(physical, byteCount: byteCount, value: value) { return }
        _ = try clientAccess(.mmioWrite(address: physical, byteCount: byteCount, value: value))
    }
}
