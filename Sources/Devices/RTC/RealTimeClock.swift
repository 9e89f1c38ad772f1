import Host

/// The real-time clock and its battery-backed memory behind ports 0x70 and 0x71.
///
/// The time is the host's, in UTC, plus what the guest has set; the difference is not kept when the machine ends. The
/// memory tells the size of RAM the way firmware leaves it there.
///
/// > Source: MC146818A data sheet (Motorola).
public final class RealTimeClock: Device {
    private let state: Locked<RTCRegisters>
    private let clock: any DeviceClock
    private let interrupt: InterruptLine

    /// - Parameters:
    ///   - lowMemoryByteCount: RAM below 4 GiB, from address 0.
    ///   - highMemoryByteCount: RAM from 4 GiB on.
    public init(
        clock: any DeviceClock, lowMemoryByteCount: UInt64, highMemoryByteCount: UInt64,
        interrupt: @escaping InterruptLine
    ) {
        self.clock = clock
        self.interrupt = interrupt
        var registers = RTCRegisters(now: clock.realTimeNanoseconds)
        registers.storeMemorySize(low: lowMemoryByteCount, high: highMemoryByteCount)
        state = Locked(registers)
    }

    public var widestAccess: Int { 1 }

    public func read(at offset: Int, byteCount: Int) -> UInt64 {
        // The index port cannot be read back.
        guard offset == 1 else { return 0xFF }
        return state.withLock { state in
            let value = state.read(now: clock.realTimeNanoseconds)
            settle(&state)
            return UInt64(value)
        }
    }

    public func write(at offset: Int, byteCount: Int, value: UInt64) {
        let value = UInt8(truncatingIfNeeded: value)
        state.withLock { state in
            if offset == 0 {
                state.index = Int(value & 0x7F)
            } else {
                state.write(value, now: clock.realTimeNanoseconds)
                settle(&state)
            }
        }
    }

    /// Tells the interrupt controller about a new level, and arranges to be woken for the next event that the guest
    /// wants an interrupt for.
    private func settle(_ state: inout RTCRegisters) {
        if state.wantsInterrupt != state.isInterruptAsserted {
            state.isInterruptAsserted = state.wantsInterrupt
            interrupt(state.isInterruptAsserted)
        }
        guard let delay = state.nanosecondsToNextInterrupt(now: clock.realTimeNanoseconds) else {
            state.nextWake = nil
            return
        }
        let deadline = clock.monotonicNanoseconds &+ UInt64(delay)
        // A wake-up that is early enough is on its way: it will call this again.
        if let nextWake = state.nextWake, nextWake <= deadline { return }
        state.nextWake = deadline
        clock.wake(afterNanoseconds: delay) { [weak self] in self?.wake(deadline) }
    }

    private func wake(_ deadline: UInt64) {
        state.withLock { state in
            // Another wake-up has replaced this one.
            guard state.nextWake == deadline else { return }
            state.nextWake = nil
            state.advance(to: clock.realTimeNanoseconds)
            settle(&state)
        }
    }
}
