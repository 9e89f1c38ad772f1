import Host

/// The registers of the 8254 as clients save and load them.
///
/// The corresponding C structure is `kvm_pit_state2`.
public struct PITState: Equatable, Sendable {
    /// Three counters.
    public var channels: [PITChannelState]
    /// An HPET has taken over; channel 0 raises no interrupts (`KVM_PIT_FLAGS_HPET_LEGACY`).
    public var isReplacedByHPET = false
    /// Bit 1 of port 0x61 (`KVM_PIT_FLAGS_SPEAKER_DATA_ON`).
    public var isSpeakerOn = false

    public init() {
        channels = Array(repeating: PITChannelState(), count: 3)
        channels[2].gate = false
    }
}

/// The 8254 interval timer with the speaker port: ports 0x40–0x43 and 0x61.
///
/// Channel 0 raises the timer interrupt; channel 2 is gated by port 0x61, and its output read there, which is how kernels
/// calibrate faster clocks. The timer does not read a clock: times are monotonic nanoseconds, given with each call, and
/// ``service(now:)`` has to be called when the armed deadline has come.
///
/// Ticks that the guest could not take yet are given later, a few at a time, so that guests which count ticks keep time.
///
/// > Concurrency: every member may be used from any thread. Both callbacks are called with the lock held and must not call
/// > back.
/// > Source: Intel 8254 data sheet; `struct kvm_pit_state2`.
public final class PIT: Sendable {
    /// Interrupts are at least this far apart, or a guest could keep the host busy with its timer alone.
    private static let minimumPeriodNanoseconds: UInt64 = 200_000
    /// Ticks that wait for their delivery; more are lost.
    private static let maximumBacklog: UInt64 = 1000

    private struct State {
        var channels = [PITChannel](repeating: PITChannel(), count: 3)
        var isReplacedByHPET = false
        var isSpeakerOn = false
        var reinjects = true
        /// The number of the next edge of channel 0, counted from its load.
        var nextEdge: UInt64 = 1
        /// Ticks that were due and not delivered.
        var backlog: UInt64 = 0
        var deadline: UInt64?
    }

    private let state: Locked<State>
    private let output: @Sendable (Bool) -> Int
    private let armTimer: @Sendable (UInt64?) -> Void

    /// - Parameters:
    ///   - output: sets the level of the timer's interrupt line; returns as ``InterruptRouter/setLine(_:level:source:)``.
    ///   - armTimer: asks for ``service(now:)`` at that time or soon after; nil takes the wish back.
    public init(
        output: @escaping @Sendable (Bool) -> Int,
        armTimer: @escaping @Sendable (_ deadlineNanoseconds: UInt64?) -> Void
    ) {
        self.output = output
        self.armTimer = armTimer
        var state = State()
        state.channels[2].registers.gate = false
        state.channels[2].stopTime = 0
        // Nothing counts until the guest has programmed it.
        for index in 0..<3 { state.channels[index].isLoaded = false }
        self.state = Locked(state)
    }

    // MARK: Channel 0

    /// Raises the timer interrupt if it is due. May be called early or for nothing.
    public func service(now: UInt64) {
        state.withLock { state in
            guard let deadline = state.deadline, now >= deadline else { return }
            countEdges(&state, now)
            deliverTick(&state)
            schedule(&state, now)
        }
    }

    /// Whether ticks that the guest missed are delivered later (`KVM_REINJECT_CONTROL`); they are by default.
    public func setReinjection(_ isOn: Bool) {
        state.withLock { state in
            state.reinjects = isOn
            state.backlog = 0
        }
    }

    /// Adds the edges up to `now` to the backlog.
    private func countEdges(_ state: inout State, _ now: UInt64) {
        let channel = state.channels[0]
        guard let due = channel.edgeTime(state.nextEdge), due <= now else { return }
        var count: UInt64 = 1
        if let period = channel.period {
            let reached = channel.elapsedTicks(at: now) / period
            if reached > state.nextEdge { count &+= reached &- state.nextEdge }
        }
        state.nextEdge &+= count
        state.backlog = min(state.backlog.saturatingAdd(count), Self.maximumBacklog)
    }

    private func deliverTick(_ state: inout State) {
        guard state.backlog != 0 else { return }
        guard !state.isReplacedByHPET else {
            state.backlog = 0
            return
        }
        let status = output(true)
        _ = output(false)
        switch status {
        case 0 where state.reinjects: break
        case ..<0: state.backlog = 0
        default: state.backlog = state.reinjects ? state.backlog &- 1 : 0
        }
    }

    private func schedule(_ state: inout State, _ now: UInt64) {
        var next = state.channels[0].edgeTime(state.nextEdge)
        if let time = next { next = max(time, now.saturatingAdd(Self.minimumPeriodNanoseconds)) }
        if state.backlog != 0 {
            // Catch up faster than ticks arise, but leave the guest time to handle each.
            let ticks = min(state.channels[0].period ?? 1193, 1193)
            let pause = scale(ticks, by: 1_000_000_000, over: PITChannel.frequencyHertz) / 2
            let retry = now.saturatingAdd(max(pause, Self.minimumPeriodNanoseconds))
            next = min(next ?? .max, retry)
        }
        guard next != state.deadline else { return }
        state.deadline = next
        armTimer(next)
    }

    /// Starts anew after a load of channel 0.
    private func restart(_ state: inout State, _ now: UInt64) {
        state.nextEdge = 1
        state.backlog = 0
        let next = state.channels[0].edgeTime(1)
        state.deadline = next
        armTimer(next)
    }

    // MARK: Ports

    /// Whether ``readPort(_:now:)`` and ``writePort(_:_:now:)`` answer for `port`.
    public static func ownsPort(_ port: UInt16) -> Bool { (0x40...0x43).contains(port) || port == 0x61 }

    /// Reads one byte.
    public func readPort(_ port: UInt16, now: UInt64) -> UInt8 {
        state.withLock { state in
            switch port {
            case 0x40...0x42: return state.channels[Int(port & 3)].read(at: now)
            case 0x61:
                let channel = state.channels[2]
                // Bit 4 toggles with each refresh of dynamic memory, about every 15 µs.
                return (channel.registers.gate ? 1 : 0) | (state.isSpeakerOn ? 2 : 0)
                    | UInt8(truncatingIfNeeded: now >> 14 & 1) << 4 | (channel.output(at: now) ? 0x20 : 0)
            default: return 0
            }
        }
    }

    /// Writes one byte.
    public func writePort(_ port: UInt16, _ value: UInt8, now: UInt64) {
        state.withLock { state in
            switch port {
            case 0x40...0x42:
                let index = Int(port & 3)
                let isLoaded = state.channels[index].write(value, now: now)
                if index == 0, isLoaded || !state.channels[0].isLoaded { restart(&state, now) }
            case 0x43:
                writeControl(value, &state, now)
            case 0x61:
                state.isSpeakerOn = value & 2 != 0
                state.channels[2].setGate(value & 1 != 0, now: now)
            default:
                break
            }
        }
    }

    private func writeControl(_ value: UInt8, _ state: inout State, _ now: UInt64) {
        guard value >> 6 != 3 else { return readBack(value, &state, now) }
        let index = Int(value >> 6)
        guard value & 0x30 != 0 else { return state.channels[index].latchCount(at: now) }
        state.channels[index].setControl(value)
        if index == 0 { restart(&state, now) }
    }

    /// Bits 5 and 4 are active low: latch count, latch status; bits 3–1 choose the channels.
    private func readBack(_ value: UInt8, _ state: inout State, _ now: UInt64) {
        for index in 0..<3 where value & 2 << UInt8(index) != 0 {
            if value & 0x20 == 0 { state.channels[index].latchCount(at: now) }
            if value & 0x10 == 0 { state.channels[index].latchStatus(at: now) }
        }
    }

    // MARK: State

    /// The registers for a client (`KVM_GET_PIT2`).
    public func saveState() -> PITState {
        state.withLock { state in
            var saved = PITState()
            saved.channels = state.channels.map(\.registers)
            saved.isReplacedByHPET = state.isReplacedByHPET
            saved.isSpeakerOn = state.isSpeakerOn
            return saved
        }
    }

    /// Takes over a client's registers (`KVM_SET_PIT2`). Channel 0 begins a new period, as in KVM.
    public func loadState(_ new: PITState, now: UInt64) {
        state.withLock { state in
            for (index, channel) in new.channels.prefix(3).enumerated() { state.channels[index].load(channel) }
            state.channels[0].registers.loadTimeNanoseconds = now
            state.channels[0].stopTime = nil
            state.isReplacedByHPET = new.isReplacedByHPET
            state.isSpeakerOn = new.isSpeakerOn
            restart(&state, now)
        }
    }
}
