import CZydis
import X86

// Operands, registers and addresses as instruction implementations use them. Sizes are in bytes, values are
// zero-extended to 64 bits unless a name says otherwise.

extension Processor {
    /// The current privilege level, 0…3.
    @inlinable public var cpl: UInt8 { system.cpl }
    /// The I/O privilege level, 0…3.
    @inlinable public var iopl: UInt8 { UInt8(truncatingIfNeeded: state.systemFlags >> 12 & 3) }
    @inlinable public var isVirtual8086: Bool { state.systemFlags & RFlags.virtual8086 != 0 }
    /// Protected mode outside virtual-8086 mode: selectors name descriptors.
    @inlinable public var usesDescriptors: Bool { system.isProtectedMode && !isVirtual8086 }

    @inlinable public var isCode64: Bool { system.is64BitMode }
    @inlinable public var isCode32: Bool { !system.is64BitMode && system.cs.isDefault32 }
    @inlinable public var isCode16: Bool { !system.is64BitMode && !system.cs.isDefault32 }

    /// The bits of RIP that exist at the current code size.
    @inlinable public var instructionPointerMask: UInt64 {
        if system.is64BitMode { return ~0 }
        return system.cs.isDefault32 ? 0xFFFF_FFFF : 0xFFFF
    }

    /// The address of the instruction after `instruction`, as an offset within CS.
    @inlinable public func nextRIP(_ instruction: DecodedInstruction) -> UInt64 {
        (state.rip &+ UInt64(instruction.length)) & instructionPointerMask
    }

    /// Ends `instruction`: RIP moves behind it.
    @inlinable public func advance(_ instruction: DecodedInstruction) {
        state.rip = nextRIP(instruction)
    }

    /// Fails with #GP(0) unless the current privilege level is 0.
    @inlinable public func requirePrivilege() throws(GuestFault) {
        if system.cpl != 0 { throw .generalProtection() }
    }

    /// Whether `address` is canonical for the current paging mode (48-bit linear addresses).
    @inlinable public func isCanonical(_ address: UInt64) -> Bool {
        UInt64(bitPattern: Int64(bitPattern: address << 16) >> 16) == address
    }
}

// MARK: Registers

extension Processor {
    /// A general register (8 bits with the high-byte forms, 16, 32 or 64 bits) or a segment selector.
    public func readRegister(_ register: ZydisRegister) -> UInt64 {
        let number = register.rawValue
        switch number {
        case ZYDIS_REGISTER_RAX.rawValue...ZYDIS_REGISTER_R15.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_RAX.rawValue))]
        case ZYDIS_REGISTER_EAX.rawValue...ZYDIS_REGISTER_R15D.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_EAX.rawValue))] & 0xFFFF_FFFF
        case ZYDIS_REGISTER_AX.rawValue...ZYDIS_REGISTER_R15W.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_AX.rawValue))] & 0xFFFF
        case ZYDIS_REGISTER_AL.rawValue...ZYDIS_REGISTER_BL.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_AL.rawValue))] & 0xFF
        case ZYDIS_REGISTER_AH.rawValue...ZYDIS_REGISTER_BH.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_AH.rawValue))] >> 8 & 0xFF
        case ZYDIS_REGISTER_SPL.rawValue...ZYDIS_REGISTER_R15B.rawValue:
            return state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_SPL.rawValue) + 4)] & 0xFF
        case ZYDIS_REGISTER_ES.rawValue...ZYDIS_REGISTER_GS.rawValue:
            return UInt64(system[Self.segmentRegister(register)].selector)
        default:
            preconditionFailure("register \(number) is neither a general nor a segment register")
        }
    }

    /// Writes a general register: 32-bit forms clear the upper half, 8- and 16-bit forms keep the rest.
    public func writeRegister(_ register: ZydisRegister, _ value: UInt64) {
        let number = register.rawValue
        switch number {
        case ZYDIS_REGISTER_RAX.rawValue...ZYDIS_REGISTER_R15.rawValue:
            state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_RAX.rawValue))] = value
        case ZYDIS_REGISTER_EAX.rawValue...ZYDIS_REGISTER_R15D.rawValue:
            state[GeneralRegister(index: Int(number - ZYDIS_REGISTER_EAX.rawValue))] = value & 0xFFFF_FFFF
        case ZYDIS_REGISTER_AX.rawValue...ZYDIS_REGISTER_R15W.rawValue:
            writeGeneral(GeneralRegister(index: Int(number - ZYDIS_REGISTER_AX.rawValue)), value, byteCount: 2)
        case ZYDIS_REGISTER_AL.rawValue...ZYDIS_REGISTER_BL.rawValue:
            writeGeneral(GeneralRegister(index: Int(number - ZYDIS_REGISTER_AL.rawValue)), value, byteCount: 1)
        case ZYDIS_REGISTER_AH.rawValue...ZYDIS_REGISTER_BH.rawValue:
            let target = GeneralRegister(index: Int(number - ZYDIS_REGISTER_AH.rawValue))
            state[target] = state[target] & ~0xFF00 | (value & 0xFF) << 8
        case ZYDIS_REGISTER_SPL.rawValue...ZYDIS_REGISTER_R15B.rawValue:
            writeGeneral(GeneralRegister(index: Int(number - ZYDIS_REGISTER_SPL.rawValue) + 4), value, byteCount: 1)
        default:
            preconditionFailure("register \(number) is not a general register")
        }
    }

    /// The low `byteCount` (1, 2, 4 or 8) bytes of a general register; a single byte is the low one.
    @inlinable public func readGeneral(_ register: GeneralRegister, byteCount: Int) -> UInt64 {
        state[register] & Self.mask(byteCount: byteCount)
    }

    /// Writes the low `byteCount` bytes of a general register; 4 bytes clear the upper half, 1 and 2 keep the rest.
    @inlinable public func writeGeneral(_ register: GeneralRegister, _ value: UInt64, byteCount: Int) {
        switch byteCount {
        case 8: state[register] = value
        case 4: state[register] = value & 0xFFFF_FFFF
        default:
            let mask = Self.mask(byteCount: byteCount)
            state[register] = state[register] & ~mask | value & mask
        }
    }

    /// Ones in the low `byteCount` (1…8) bytes.
    @inlinable public static func mask(byteCount: Int) -> UInt64 { ~0 >> UInt64(64 - byteCount * 8) }

    /// The segment register `register` names.
    static func segmentRegister(_ register: ZydisRegister) -> SegmentRegister {
        switch register.rawValue &- ZYDIS_REGISTER_ES.rawValue {
        case 0: .es
        case 1: .cs
        case 2: .ss
        case 3: .ds
        case 4: .fs
        case 5: .gs
        default: preconditionFailure("register \(register.rawValue) is not a segment register")
        }
    }
}

// MARK: Operands

extension Processor {
    /// The value of a register, memory or immediate operand of up to 64 bits.
    public func readOperand(
        _ operand: DecodedInstruction.Operand, of instruction: DecodedInstruction
    ) throws(GuestFault) -> UInt64 {
        switch operand.kind {
        case .register: return readRegister(operand.register)
        case .memory:
            return try readData(
                linearAddress(operand.memory, of: instruction), byteCount: Int(operand.size) / 8,
                segment: operand.memory.segment)
        case .immediate, .pointer: return operand.immediate
        case .none: return 0
        }
    }

    /// Writes `value` to a register or memory operand of up to 64 bits.
    public func writeOperand(
        _ operand: DecodedInstruction.Operand, of instruction: DecodedInstruction, _ value: UInt64
    ) throws(GuestFault) {
        switch operand.kind {
        case .register: writeRegister(operand.register, value)
        case .memory:
            try writeData(
                linearAddress(operand.memory, of: instruction), value, byteCount: Int(operand.size) / 8,
                segment: operand.memory.segment)
        case .immediate, .pointer, .none: preconditionFailure("operand cannot be written")
        }
    }

    /// Reads 1, 2, 4 or 8 bytes at a linear address that was formed with `segment`: a non-canonical address is a stack
    /// fault for SS.
    public func readData(
        _ linear: UInt64, byteCount: Int, segment: SegmentRegister, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> UInt64 {
        do {
            return try readMemory(linear, byteCount: byteCount, privilege)
        } catch {
            throw Self.attribute(error, to: segment)
        }
    }

    /// Writes 1, 2, 4 or 8 bytes at a linear address that was formed with `segment`.
    public func writeData(
        _ linear: UInt64, _ value: UInt64, byteCount: Int, segment: SegmentRegister,
        _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        do {
            try writeMemory(linear, value, byteCount: byteCount, privilege)
        } catch {
            throw Self.attribute(error, to: segment)
        }
    }

    /// Reads 1, 2, 4 or 8 bytes at a linear address.
    public func readMemory(
        _ linear: UInt64, byteCount: Int, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> UInt64 {
        switch byteCount {
        case 1: return UInt64(try read(linear, as: UInt8.self, privilege))
        case 2: return UInt64(try read(linear, as: UInt16.self, privilege))
        case 4: return UInt64(try read(linear, as: UInt32.self, privilege))
        case 8: return try read(linear, as: UInt64.self, privilege)
        default: preconditionFailure("no integer has \(byteCount) bytes")
        }
    }

    /// Writes 1, 2, 4 or 8 bytes at a linear address.
    public func writeMemory(
        _ linear: UInt64, _ value: UInt64, byteCount: Int, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        switch byteCount {
        case 1: try write(linear, UInt8(truncatingIfNeeded: value), privilege)
        case 2: try write(linear, UInt16(truncatingIfNeeded: value), privilege)
        case 4: try write(linear, UInt32(truncatingIfNeeded: value), privilege)
        case 8: try write(linear, value, privilege)
        default: preconditionFailure("no integer has \(byteCount) bytes")
        }
    }

    /// A general-protection fault on an access through SS is a stack fault.
    static func attribute(_ fault: GuestFault, to segment: SegmentRegister) -> GuestFault {
        guard segment == .ss, case .exception(let exception) = fault, exception.vector == 13 else { return fault }
        return .exception(.stack(exception.errorCode ?? 0))
    }
}
