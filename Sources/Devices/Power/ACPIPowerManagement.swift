import Host

/// The fixed ACPI hardware of a machine: the PM1a event and control blocks and the power-management timer.
///
/// The machine is always in ACPI mode. S5 is the only sleep state; the power button is the only event.
///
/// | offset | bytes | register |
/// |---|---|---|
/// | 0 | 2 | PM1 status, write 1 to clear |
/// | 2 | 2 | PM1 enable |
/// | 4 | 2 | PM1 control |
/// | 8 | 4 | timer, 24 bits at 3.579545 MHz |
///
/// > Source: ACPI specification 6.5, section 4.8.3.
public final class ACPIPowerManagement: Device {
    private struct Registers {
        var status: UInt16 = 0
        var enable: UInt16 = 0
        /// SCI_EN reads 1: there is no other mode to be in.
        var control: UInt16 = 1
        var isInterruptAsserted = false
    }

    private static var powerButton: UInt16 { 1 << 8 }
    private static var sleepEnable: UInt16 { 1 << 13 }

    private let state = Locked(Registers())
    private let startNanoseconds: UInt64
    private let clock: any DeviceClock
    private let softOffSleepType: UInt8
    private let interrupt: InterruptLine
    private let powerOff: @Sendable () -> Void

    /// - Parameters:
    ///   - softOffSleepType: `SLP_TYP` for S5, as `\_S5` names it.
    ///   - interrupt: the system control interrupt, level-triggered.
    ///   - powerOff: called when the guest turns the machine off.
    public init(
        clock: any DeviceClock, softOffSleepType: UInt8, interrupt: @escaping InterruptLine,
        powerOff: @escaping @Sendable () -> Void
    ) {
        self.clock = clock
        self.softOffSleepType = softOffSleepType
        self.interrupt = interrupt
        self.powerOff = powerOff
        startNanoseconds = clock.monotonicNanoseconds
    }

    /// The number of ports from the status register to the timer's end.
    public static var portCount: UInt64 { 12 }

    public var widestAccess: Int { 4 }

    /// Asks the guest's operating system to shut down.
    /// > Concurrency: any thread.
    public func pressPowerButton() {
        state.withLock { state in
            state.status |= Self.powerButton
            updateInterrupt(&state)
        }
    }

    public func read(at offset: Int, byteCount: Int) -> UInt64 {
        // Accesses are naturally aligned, so none crosses from one 4-byte group into the next.
        let group: UInt32 = state.withLock { state in
            switch offset & ~3 {
            case 0: UInt32(state.status) | UInt32(state.enable) << 16
            case 4: UInt32(state.control)
            default: timer
            }
        }
        return UInt64(group >> UInt32(8 * (offset & 3))) & (UInt64.max >> UInt64(64 - 8 * byteCount))
    }

    public func write(at offset: Int, byteCount: Int, value: UInt64) {
        let turnsOff = state.withLock { state in
            var turnsOff = false
            // Byte by byte, since guests may write any part.
            for index in 0..<byteCount {
                let byte = UInt16(truncatingIfNeeded: value >> UInt64(8 * index)) & 0xFF
                turnsOff = writeByte(at: offset + index, byte, &state) || turnsOff
            }
            updateInterrupt(&state)
            return turnsOff
        }
        if turnsOff { powerOff() }
    }

    /// - Returns: whether the guest turned the machine off.
    private func writeByte(at offset: Int, _ byte: UInt16, _ state: inout Registers) -> Bool {
        let shift = UInt16(8 * (offset & 1))
        switch offset & ~1 {
        case 0: state.status &= ~(byte << shift)
        case 2: state.enable = state.enable & ~(0xFF << shift) | byte << shift
        case 4:
            // SLP_EN is write-only: it acts and reads 0.
            let written = state.control & ~(0xFF << shift) | byte << shift
            state.control = written & ~Self.sleepEnable | 1
            return written & Self.sleepEnable != 0 && UInt8(written >> 10 & 7) == softOffSleepType
        default: break
        }
        return false
    }

    private func updateInterrupt(_ state: inout Registers) {
        let isAsserted = state.status & state.enable & Self.powerButton != 0
        guard isAsserted != state.isInterruptAsserted else { return }
        state.isInterruptAsserted = isAsserted
        interrupt(isAsserted)
    }

    private var timer: UInt32 {
        let elapsed = (clock.monotonicNanoseconds - startNanoseconds).multipliedFullWidth(by: 3_579_545)
        return UInt32(truncatingIfNeeded: UInt64(1_000_000_000).dividingFullWidth(elapsed).quotient & 0xFF_FFFF)
    }
}
