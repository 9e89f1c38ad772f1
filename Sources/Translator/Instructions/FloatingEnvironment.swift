import X86

// FNSTENV, FLDENV, FNSAVE and FRSTOR.
//
// The environment has seven words of 16 or 32 bits: control, status, tags, and four for instruction and data
// pointers, which are zero. The layouts of real and protected mode differ only in the pointers.

extension Processor {
    func executeStoreEnvironment(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        let layout = FloatingEnvironment(wordByteCount: i.operandWidth == 16 ? 2 : 4)
        let linear = linearAddress(i.operand(0).memory, of: i)
        try withImage(linear, byteCount: layout.byteCount, forWriting: true) { (image) in
            layout.store(state, to: image)
        }
        FloatingEnvironment.maskExceptions(state)
        advance(i)
    }

    func executeLoadEnvironment(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        try requireNoPendingX87Exception()
        let layout = FloatingEnvironment(wordByteCount: i.operandWidth == 16 ? 2 : 4)
        let linear = linearAddress(i.operand(0).memory, of: i)
        try withImage(linear, byteCount: layout.byteCount, forWriting: false) { (image) in
            layout.load(state, from: image)
        }
        advance(i)
    }

    func executeSaveFloatingState(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        let layout = FloatingEnvironment(wordByteCount: i.operandWidth == 16 ? 2 : 4)
        let linear = linearAddress(i.operand(0).memory, of: i)
        try withImage(linear, byteCount: layout.byteCountWithRegisters, forWriting: true) { (image) in
            layout.store(state, to: image)
            layout.storeRegisters(state, to: image)
        }
        ExtendedState.initializeX87Control(state)
        advance(i)
    }

    func executeRestoreFloatingState(_ i: DecodedInstruction) throws(GuestFault) {
        try requireX87()
        try requireNoPendingX87Exception()
        let layout = FloatingEnvironment(wordByteCount: i.operandWidth == 16 ? 2 : 4)
        let linear = linearAddress(i.operand(0).memory, of: i)
        try withImage(linear, byteCount: layout.byteCountWithRegisters, forWriting: false) { (image) in
            layout.load(state, from: image)
            layout.loadRegisters(state, from: image)
        }
        advance(i)
    }
}

/// The memory format of FNSTENV and FNSAVE.
package struct FloatingEnvironment {
    /// 2 or 4.
    package let wordByteCount: Int

    package init(wordByteCount: Int) { self.wordByteCount = wordByteCount }

    package var byteCount: Int { 7 * wordByteCount }
    /// With ST0–ST7, 10 bytes each.
    package var byteCountWithRegisters: Int { byteCount + 80 }

    package func store(_ state: CPUState, to image: UnsafeMutableRawPointer) {
        let area = state.fxsaveArea
        let control = area.load(as: UInt16.self)
        let status = area.load(fromByteOffset: 2, as: UInt16.self)
        storeWord(control, 0, image)
        storeWord(status, 1, image)
        storeWord(Self.fullTags(state), 2, image)
        for word in 3..<7 {
            let offset = word * wordByteCount
            if wordByteCount == 2 {
                image.storeBytes(of: 0, toByteOffset: offset, as: UInt16.self)
            } else {
                // The upper half of the data selector's word is reserved and reads as ones.
                image.storeBytes(of: word == 6 ? 0xFFFF_0000 : 0, toByteOffset: offset, as: UInt32.self)
            }
        }
    }

    /// Reserved upper halves read as ones.
    private func storeWord(_ value: UInt16, _ word: Int, _ image: UnsafeMutableRawPointer) {
        if wordByteCount == 2 {
            image.storeBytes(of: value, toByteOffset: word * 2, as: UInt16.self)
        } else {
            image.storeBytes(of: 0xFFFF_0000 | UInt32(value), toByteOffset: word * 4, as: UInt32.self)
        }
    }

    package func load(_ state: CPUState, from image: UnsafeRawPointer) {
        let control = image.loadUnaligned(as: UInt16.self)
        let status = image.loadUnaligned(fromByteOffset: wordByteCount, as: UInt16.self)
        let tags = image.loadUnaligned(fromByteOffset: 2 * wordByteCount, as: UInt16.self)
        // Only "empty" (3) is taken from the tags; the other values follow from the contents.
        var abridged: UInt8 = 0
        for register in 0..<UInt16(8) where tags >> (register * 2) & 3 != 3 { abridged |= 1 << UInt8(register) }
        FloatingStack.setTop(Int(status >> 11 & 7), state)
        ExtendedState.setX87Control(state, control: control, status: status, tags: abridged)
    }

    package func storeRegisters(_ state: CPUState, to image: UnsafeMutableRawPointer) {
        for index in 0..<8 {
            let target = image + byteCount + index * 10
            target.copyMemory(from: state.fxsaveArea + 32 + index * 16, byteCount: 10)
        }
    }

    package func loadRegisters(_ state: CPUState, from image: UnsafeRawPointer) {
        for index in 0..<8 {
            let source = image + byteCount + index * 10
            let target = state.fxsaveArea + 32 + index * 16
            target.storeBytes(of: source.loadUnaligned(as: UInt64.self), as: UInt64.self)
            let high = UInt64(source.loadUnaligned(fromByteOffset: 8, as: UInt16.self))
            target.storeBytes(of: high, toByteOffset: 8, as: UInt64.self)
        }
    }

    /// What FNSTENV leaves: all exceptions masked, so none pending.
    package static func maskExceptions(_ state: CPUState) {
        let area = state.fxsaveArea
        let control = area.load(as: UInt16.self) | 0x3F
        let status = area.load(fromByteOffset: 2, as: UInt16.self)
        area.storeBytes(of: control, as: UInt16.self)
        area.storeBytes(
            of: ExtendedState.statusWord(status, control: control), toByteOffset: 2, as: UInt16.self)
    }

    /// The tag word with two bits for each physical register: 0 valid, 1 zero, 2 special, 3 empty.
    package static func fullTags(_ state: CPUState) -> UInt16 {
        let area = state.fxsaveArea
        let top = Int(area.load(fromByteOffset: 2, as: UInt16.self) >> 11 & 7)
        let present = area.load(fromByteOffset: 4, as: UInt8.self)
        var tags: UInt16 = 0
        for register in 0..<8 {
            let tag: UInt16
            if present >> UInt8(register) & 1 == 0 {
                tag = 3
            } else {
                let slot = area + 32 + ((register - top) & 7) * 16
                let significand = slot.load(as: UInt64.self)
                let exponent = slot.load(fromByteOffset: 8, as: UInt16.self) & 0x7FFF
                tag =
                    if exponent == 0x7FFF {
                        2
                    } else if exponent == 0 {
                        significand == 0 ? 1 : 2
                    } else {
                        significand >> 63 != 0 ? 0 : 2
                    }
            }
            tags |= tag << UInt16(register * 2)
        }
        return tags
    }
}
