import X86

/// The x87 registers by physical number, while the FXSAVE image counts from the top of the stack.
package enum FloatingStack {
    private static func top(_ state: CPUState) -> Int {
        Int(state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self) >> 11 & 7)
    }

    /// MMX register `index`, 0…7.
    package static func mmxRegister(_ index: Int, _ state: CPUState) -> UnsafeMutableRawPointer {
        state.fxsaveArea + 32 + ((index - top(state)) & 7) * 16
    }

    /// Moves the top of the stack to `newTop`; physical registers keep their contents.
    package static func setTop(_ newTop: Int, _ state: CPUState) {
        let area = state.fxsaveArea
        let distance = top(state) - newTop
        if distance == 0 { return }
        var registers = InlineArray<16, UInt64>(repeating: 0)
        for word in 0..<16 { registers[word] = area.load(fromByteOffset: 32 + word * 8, as: UInt64.self) }
        for word in 0..<16 {
            let slot = (word + distance * 2) & 15
            area.storeBytes(of: registers[word], toByteOffset: 32 + slot * 8, as: UInt64.self)
        }
        let status = area.load(fromByteOffset: 2, as: UInt16.self) & ~0x3800 | UInt16(newTop) << 11
        area.storeBytes(of: status, toByteOffset: 2, as: UInt16.self)
    }

    /// What every MMX instruction does: the top of the stack becomes 0, and no register is empty.
    package static func enterMMX(_ state: CPUState) {
        setTop(0, state)
        state.fxsaveArea.storeBytes(of: 0xFF, toByteOffset: 4, as: UInt8.self)
    }
}
