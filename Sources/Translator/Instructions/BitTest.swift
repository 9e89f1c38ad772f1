import CZydis
import X86

/// What a bit-test instruction does to the bit.
package enum BitOperation {
    case test, set, reset, complement

    /// `value` with the bits of `mask` changed.
    package func applied(to value: UInt64, _ mask: UInt64) -> UInt64 {
        switch self {
        case .test: value
        case .set: value | mask
        case .reset: value & ~mask
        case .complement: value ^ mask
        }
    }
}

extension Processor {
    /// BT, BTS, BTR and BTC.
    ///
    /// With a bit number in a register, a memory operand is a bit string: the number is signed and reaches beyond the
    /// operand. In plain memory only the byte that holds the bit is accessed.
    func executeBitTest(_ i: DecodedInstruction, _ operation: BitOperation) throws(GuestFault) {
        let target = i.operand(0)
        let width = UInt64(target.size)
        let source = i.operand(1)
        let number = source.kind == .register ? readRegister(source.register) : source.immediate & (width - 1)
        let wasSet: Bool
        if target.kind == .register {
            let value = readRegister(target.register)
            let mask: UInt64 = 1 << (number & (width - 1))
            wasSet = value & mask != 0
            if operation != .test { writeRegister(target.register, operation.applied(to: value, mask)) }
        } else {
            wasSet = try changeBit(BitString.signed(number, width: width), of: target, i, operation)
        }
        let carry = wasSet ? RFlags.carry : 0
        state.arithmeticFlags = state.arithmeticFlags & ~RFlags.carry | carry
        advance(i)
    }

    private func changeBit(
        _ number: Int64, of target: DecodedInstruction.Operand, _ i: DecodedInstruction, _ operation: BitOperation
    ) throws(GuestFault) -> Bool {
        var memory = target.memory
        memory.displacement = target.memory.displacement &+ BitString.unitOffset(number, width: UInt64(target.size))
        let unit = linearAddress(memory, of: i)
        let unitMask: UInt64 = 1 << (UInt64(bitPattern: number) & UInt64(target.size - 1))
        guard operation != .test else { return try changeUnit(unit, target, unitMask, operation) }
        // The whole unit is accessed, so a fault on any of its bytes counts.
        try probeWrite(unit, byteCount: Int(target.size) / 8)
        memory.displacement = target.memory.displacement &+ (number >> 3)
        let address = linearAddress(memory, of: i)
        let mask: UInt8 = 1 << UInt8(number & 7)
        if let byte = try hostPointer(address, forWriting: true) {
            func changed(_ old: UInt8) -> UInt8 {
                UInt8(truncatingIfNeeded: operation.applied(to: UInt64(old), UInt64(mask)))
            }
            if i.isLocked {
                guard let old = byte.exchangeGuestByte(changed) else { throw .hostMemory(address) }
                return old & mask != 0
            }
            guard let old = byte.guestValue(as: UInt8.self), byte.storeGuestValue(changed(old)) else {
                throw .hostMemory(address)
            }
            return old & mask != 0
        }
        // A device, or a page whose writes need help: an access of the operand's size.
        guard i.isLocked else { return try changeUnit(unit, target, unitMask, operation) }
        var result = Result<Bool, GuestFault>.success(false)
        platform.withOthersPaused {
            do throws(GuestFault) {
                result = .success(try changeUnit(unit, target, unitMask, operation))
            } catch {
                result = .failure(error)
            }
        }
        return try result.get()
    }

    private func changeUnit(
        _ linear: UInt64, _ target: DecodedInstruction.Operand, _ mask: UInt64, _ operation: BitOperation
    ) throws(GuestFault) -> Bool {
        let byteCount = Int(target.size) / 8
        let segment = target.memory.segment
        let value = try readData(linear, byteCount: byteCount, segment: segment)
        if operation != .test {
            let new = operation.applied(to: value, mask)
            try writeData(linear, new, byteCount: byteCount, segment: segment)
        }
        return value & mask != 0
    }
}

/// Bit numbers relative to an operand of 16, 32 or 64 bits.
package enum BitString {
    /// The register value `number` of `width` bits as a signed number.
    package static func signed(_ number: UInt64, width: UInt64) -> Int64 {
        let shift = 64 - width
        return Int64(bitPattern: number << shift) >> Int64(shift)
    }

    /// The distance in bytes from the operand to the unit of `width` bits that holds bit `number`.
    package static func unitOffset(_ number: Int64, width: UInt64) -> Int64 {
        (number >> 3) & ~Int64(width / 8 - 1)
    }
}
