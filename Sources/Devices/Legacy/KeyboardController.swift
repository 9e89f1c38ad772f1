import Host

/// An i8042 keyboard controller with nothing plugged in.
///
/// It answers its own commands, so that a guest that looks for a keyboard soon finds none, and resets the machine when
/// it is told to pulse that line. It raises no interrupts.
///
/// > Source: IBM Personal System/2 Technical Reference, keyboard and auxiliary device controller.
public final class KeyboardController: Device {
    private struct Registers {
        /// The byte the guest will read; nil if there is none.
        var output: UInt8?
        /// The output came from a device that did not answer.
        var isTimeout = false
        /// The next data byte belongs to this command.
        var pendingCommand: UInt8?
        /// Both devices disabled, translation on, no interrupts; the self-test was passed.
        var commandByte: UInt8 = 0x74
        /// Reset line inactive, A20 on.
        var outputPort: UInt8 = 0x03
    }

    private let state = Locked(Registers())
    private let reset: @Sendable () -> Void

    public init(reset: @escaping @Sendable () -> Void) { self.reset = reset }

    public var widestAccess: Int { 1 }

    /// Offset of the data register; on a PC it is port 0x60.
    public static var dataOffset: Int { 0 }
    /// Offset of the status and command register; on a PC it is port 0x64.
    public static var commandOffset: Int { 4 }

    public func read(at offset: Int, byteCount: Int) -> UInt64 {
        state.withLock { state in
            if offset == Self.commandOffset {
                let hasOutput: UInt8 = state.output == nil ? 0 : 0x01
                // Bit 2: self-test passed. Bit 4: not locked. The input buffer (bit 1) is always empty.
                return UInt64(0x14 | hasOutput | (state.isTimeout ? 0x40 : 0))
            }
            defer {
                state.output = nil
                state.isTimeout = false
            }
            return UInt64(state.output ?? 0)
        }
    }

    public func write(at offset: Int, byteCount: Int, value: UInt64) {
        let value = UInt8(truncatingIfNeeded: value)
        let isReset = state.withLock { state in
            offset == Self.commandOffset ? command(value, &state) : data(value, &state)
        }
        if isReset { reset() }
    }

    /// - Returns: whether the machine is to be reset.
    private func command(_ command: UInt8, _ state: inout Registers) -> Bool {
        state.pendingCommand = nil
        switch command {
        case 0x20: state.output = state.commandByte
        case 0x60, 0xD1, 0xD2, 0xD3, 0xD4: state.pendingCommand = command
        case 0xA7: state.commandByte |= 0x20
        case 0xA8: state.commandByte &= ~0x20
        case 0xA9, 0xAB: state.output = 0x02  // test of a device's clock line: stuck high, nothing there
        case 0xAA: state.output = 0x55  // self-test passed
        case 0xAD: state.commandByte |= 0x10
        case 0xAE: state.commandByte &= ~0x10
        case 0xD0: state.output = state.outputPort
        case 0xF0...0xFF: return command & 1 == 0  // pulse lines; line 0 is the processor's reset
        default: break
        }
        return false
    }

    /// - Returns: whether the machine is to be reset.
    private func data(_ value: UInt8, _ state: inout Registers) -> Bool {
        defer { state.pendingCommand = nil }
        switch state.pendingCommand {
        case 0x60: state.commandByte = value
        case 0xD1:
            state.outputPort = value | 0x02
            return value & 1 == 0
        case 0xD2, 0xD3: state.output = value
        default:
            // For the keyboard (no command) or the mouse (0xD4): nobody answers.
            state.output = 0xFE
            state.isTimeout = true
        }
        return false
    }
}
