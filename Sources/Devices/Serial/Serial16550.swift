import Host

/// A 16550A serial port.
///
/// Output is handed on at once, so the transmitter is always empty; the speed that the guest sets is kept but not
/// imitated. Input waits in a queue until the guest asserts RTS, as a terminal with hardware flow control would hold it
/// back: a kernel that empties the receiver while it probes the port does not eat what was typed ahead.
///
/// > Source: PC16550D data sheet (National Semiconductor).
public final class Serial16550: Device {
    private let state: Locked<SerialRegisters>
    private let interrupt: InterruptLine
    private let transmit: @Sendable (UInt8) -> Void
    private let inputDrained: @Sendable () -> Void

    /// - Parameters:
    ///   - interrupt: the port's line, level-triggered.
    ///   - transmit: takes each byte the guest sends. Called under the port's lock, so bytes arrive in order.
    ///   - inputDrained: called, without the lock, when ``receive(_:)`` has refused bytes and would now accept some.
    public init(
        interrupt: @escaping InterruptLine, transmit: @escaping @Sendable (UInt8) -> Void,
        inputDrained: @escaping @Sendable () -> Void = {}
    ) {
        self.interrupt = interrupt
        self.transmit = transmit
        self.inputDrained = inputDrained
        state = Locked(SerialRegisters())
    }

    /// How many bytes wait for the guest before ``receive(_:)`` refuses more.
    public static var inputCapacity: Int { 4096 }

    public var widestAccess: Int { 1 }

    /// Queues bytes for the guest and returns how many were accepted.
    /// > Concurrency: any thread.
    public func receive(_ bytes: some Collection<UInt8>) -> Int {
        state.withLock { state in
            let count = min(bytes.count, Self.inputCapacity - state.waitingInput.count)
            state.waitingInput.append(contentsOf: bytes.prefix(count))
            if count < bytes.count { state.refusedInput = true }
            state.fillReceiver()
            updateInterrupt(&state)
            return count
        }
    }

    public func read(at offset: Int, byteCount: Int) -> UInt64 {
        let (value, hasDrained) = state.withLock { state in
            let value = state.read(offset & 7)
            updateInterrupt(&state)
            let hasDrained = state.refusedInput && state.waitingInput.isEmpty
            if hasDrained { state.refusedInput = false }
            return (value, hasDrained)
        }
        if hasDrained { inputDrained() }
        return UInt64(value)
    }

    public func write(at offset: Int, byteCount: Int, value: UInt64) {
        let hasDrained = state.withLock { state in
            if let byte = state.write(offset & 7, UInt8(truncatingIfNeeded: value)) { transmit(byte) }
            updateInterrupt(&state)
            let hasDrained = state.refusedInput && state.waitingInput.isEmpty
            if hasDrained { state.refusedInput = false }
            return hasDrained
        }
        if hasDrained { inputDrained() }
    }

    private func updateInterrupt(_ state: inout SerialRegisters) {
        let isAsserted = state.interruptCause != nil
        guard isAsserted != state.isInterruptAsserted else { return }
        state.isInterruptAsserted = isAsserted
        interrupt(isAsserted)
    }
}
