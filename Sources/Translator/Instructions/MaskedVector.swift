import CZydis
import X86

// Moves whose mask decides which elements are accessed: VMASKMOVPS/PD, VPMASKMOVD/Q, MASKMOVDQU and MASKMOVQ.
//
// Elements that the mask leaves out never fault. A store checks all others before it writes any.

extension Processor {
    /// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ, loads and stores.
    func executeMaskedMove(_ i: DecodedInstruction, elementByteCount: Int) throws(GuestFault) {
        try requireVector(i)
        if i.operand(0).kind == .memory {
            let linear = linearAddress(i.operand(0).memory, of: i)
            let mask = state.vectorRegister(Self.vectorIndex(i.operand(1).register))
            let source = state.vectorRegister(Self.vectorIndex(i.operand(2).register))
            let selected = VectorMask.signBits(
                mask, elementByteCount: elementByteCount, byteCount: Int(i.operand(0).size) / 8)
            try storeSelected(linear, source, selected, elementByteCount: elementByteCount)
        } else {
            let linear = linearAddress(i.operand(2).memory, of: i)
            let mask = state.vectorRegister(Self.vectorIndex(i.operand(1).register))
            let selected = VectorMask.signBits(
                mask, elementByteCount: elementByteCount, byteCount: Int(i.operand(2).size) / 8)
            var value = InlineArray<4, UInt64>(repeating: 0)
            for index in 0..<(32 / elementByteCount) where selected >> UInt32(index) & 1 != 0 {
                let offset = index * elementByteCount
                let element = try readMemory(elementAddress(linear, offset), byteCount: elementByteCount)
                value[offset / 8] |= element << UInt64(offset % 8 * 8)
            }
            let target = state.vectorRegister(Self.vectorIndex(i.operand(0).register))
            for index in 0..<4 { target.storeBytes(of: value[index], toByteOffset: index * 8, as: UInt64.self) }
        }
        advance(i)
    }

    /// MASKMOVDQU and VMASKMOVDQU: the bytes of operand 0 that operand 1 selects go to DS:rDI.
    func executeMaskedMoveBytes(_ i: DecodedInstruction) throws(GuestFault) {
        try requireVector(i)
        let source = state.vectorRegister(Self.vectorIndex(i.operand(0).register))
        let mask = state.vectorRegister(Self.vectorIndex(i.operand(1).register))
        let selected = VectorMask.signBits(mask, elementByteCount: 1, byteCount: 16)
        try storeSelected(linearAddress(i.operand(2).memory, of: i), source, selected, elementByteCount: 1)
        advance(i)
    }

    /// MASKMOVQ: the same with MMX registers.
    func executeMaskedMoveMMX(_ i: DecodedInstruction) throws(GuestFault) {
        if system.cr0 & CR0.emulation != 0 { throw .invalidOpcode }
        if system.cr0 & CR0.taskSwitched != 0 { throw .exception(.deviceNotAvailable) }
        try requireNoPendingX87Exception()
        let first = ZYDIS_REGISTER_MM0.rawValue
        let source = FloatingStack.mmxRegister(Int(i.operand(0).register.rawValue - first), state)
        let mask = FloatingStack.mmxRegister(Int(i.operand(1).register.rawValue - first), state)
        let selected = VectorMask.signBits(mask, elementByteCount: 1, byteCount: 8)
        try storeSelected(linearAddress(i.operand(2).memory, of: i), source, selected, elementByteCount: 1)
        FloatingStack.enterMMX(state)
        advance(i)
    }

    /// Writes the elements at `source` that `selected` has a bit for.
    private func storeSelected(
        _ linear: UInt64, _ source: UnsafeRawPointer, _ selected: UInt32, elementByteCount: Int
    ) throws(GuestFault) {
        var remaining = selected
        while remaining != 0 {
            let offset = remaining.trailingZeroBitCount * elementByteCount
            try probeWrite(elementAddress(linear, offset), byteCount: elementByteCount)
            remaining &= remaining - 1
        }
        remaining = selected
        while remaining != 0 {
            let offset = remaining.trailingZeroBitCount * elementByteCount
            try writeMemory(
                elementAddress(linear, offset), BulkMemory.load(source + offset, elementByteCount),
                byteCount: elementByteCount)
            remaining &= remaining - 1
        }
    }

    private func elementAddress(_ linear: UInt64, _ offset: Int) -> UInt64 {
        let address = linear &+ UInt64(offset)
        return system.is64BitMode ? address : address & 0xFFFF_FFFF
    }

    /// The number 0…15 of an XMM or YMM register.
    static func vectorIndex(_ register: ZydisRegister) -> Int {
        switch register.rawValue {
        case ZYDIS_REGISTER_XMM0.rawValue...ZYDIS_REGISTER_XMM15.rawValue:
            Int(register.rawValue - ZYDIS_REGISTER_XMM0.rawValue)
        case ZYDIS_REGISTER_YMM0.rawValue...ZYDIS_REGISTER_YMM15.rawValue:
            Int(register.rawValue - ZYDIS_REGISTER_YMM0.rawValue)
        default: preconditionFailure("register \(register.rawValue) is not a vector register")
        }
    }
}

/// Masks that select elements of a vector.
package enum VectorMask {
    /// The sign bits of the elements in the first `byteCount` bytes at `mask`, element 0 in bit 0.
    package static func signBits(_ mask: UnsafeRawPointer, elementByteCount: Int, byteCount: Int) -> UInt32 {
        var bits: UInt32 = 0
        for index in 0..<(byteCount / elementByteCount) {
            let top = mask.load(fromByteOffset: (index + 1) * elementByteCount - 1, as: UInt8.self)
            bits |= UInt32(top >> 7) << UInt32(index)
        }
        return bits
    }
}
