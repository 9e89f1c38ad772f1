import Host
import Synchronization

/// The pair of 8259 interrupt controllers of the PC, the second cascaded through pin 2 of the first.
///
/// > Concurrency: every member may be used from any thread. The output is called with the lock held and must not call
/// > back.
/// > Source: Intel 8259A data sheet; `struct kvm_pic_state`.
public final class PIC: Sendable {
    public static let pinCount = 16

    private struct State {
        var first = PICChip(edgeLevelMask: 0xF8)
        var second = PICChip(edgeLevelMask: 0xDE)
        /// Per pin, one bit per ``InterruptSource`` that holds the line high.
        var lines = [UInt8](repeating: 0, count: PIC.pinCount)
        var isOutputHigh = false
    }

    private let state = Locked(State())
    private let isAsserted = Atomic<Bool>(false)
    private let output: @Sendable (Bool) -> Void
    private let acknowledged: @Sendable (Int) -> Void

    /// - Parameters:
    ///   - output: the line to the processors changed. Called with the lock held.
    ///   - acknowledged: the service of a pin's interrupt ended. Called without the lock; it may change lines.
    public init(
        output: @escaping @Sendable (Bool) -> Void, acknowledged: @escaping @Sendable (_ pin: Int) -> Void = { _ in }
    ) {
        self.output = output
        self.acknowledged = acknowledged
    }

    /// The line to the processors.
    public var isOutputAsserted: Bool {
        // ORDERING: acquire, pairs with `settle`.
        isAsserted.load(ordering: .acquiring)
    }

    /// Sets the level that `source` gives to the line of `pin` (0–15, but not 2, which is the cascade).
    ///
    /// - Returns: -1 if masked, 0 if pending already, else 1.
    @discardableResult
    public func setLine(pin: Int, level: Bool, source: InterruptSource = .client) -> Int {
        guard pin >= 0, pin < Self.pinCount, pin != 2 else { return -1 }
        return state.withLock { state in
            if level { state.lines[pin] |= source.bit } else { state.lines[pin] &= ~source.bit }
            let isHigh = state.lines[pin] != 0
            let status =
                pin < 8 ? state.first.setLine(pin, isHigh) : state.second.setLine(pin - 8, isHigh)
            settle(&state)
            return status
        }
    }

    /// The processor's interrupt acknowledge cycle: the vector of the interrupt whose service begins; a spurious one if
    /// the request is gone.
    public func acknowledge() -> UInt8 {
        let (vector, ended): (UInt8, [Int]) = state.withLock { state in
            defer { settle(&state) }
            guard let pin = state.first.highestRequest(isFirst: true) else {
                return (state.first.registers.vectorBase &+ 7, [])
            }
            var ended: [Int] = []
            if state.first.beginService(pin) { ended.append(pin) }
            guard pin == 2 else { return (state.first.registers.vectorBase &+ UInt8(pin), ended) }
            guard let second = state.second.highestRequest(isFirst: false) else {
                return (state.second.registers.vectorBase &+ 7, ended)
            }
            if state.second.beginService(second) { ended.append(second + 8) }
            return (state.second.registers.vectorBase &+ UInt8(second), ended)
        }
        for pin in ended { acknowledged(pin) }
        return vector
    }

    // MARK: Ports

    /// Whether ``readPort(_:)`` and ``writePort(_:_:)`` answer for `port`.
    public static func ownsPort(_ port: UInt16) -> Bool {
        switch port {
        case 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1: true
        default: false
        }
    }

    /// Reads one byte.
    public func readPort(_ port: UInt16) -> UInt8 {
        state.withLock { state in
            defer { settle(&state) }
            switch port {
            case 0x20, 0x21: return state.first.read(isData: port & 1 != 0, isFirst: true)
            case 0xA0, 0xA1: return state.second.read(isData: port & 1 != 0, isFirst: false)
            case 0x4D0: return state.first.registers.edgeLevelControl
            case 0x4D1: return state.second.registers.edgeLevelControl
            default: return 0xFF
            }
        }
    }

    /// Writes one byte.
    public func writePort(_ port: UInt16, _ value: UInt8) {
        var ended: UInt16 = 0
        state.withLock { state in
            switch port {
            case 0x20, 0x21: ended = UInt16(state.first.write(value, isData: port & 1 != 0))
            case 0xA0, 0xA1: ended = UInt16(state.second.write(value, isData: port & 1 != 0)) << 8
            case 0x4D0: state.first.setEdgeLevelControl(value)
            case 0x4D1: state.second.setEdgeLevelControl(value)
            default: break
            }
            settle(&state)
        }
        while ended != 0 {
            acknowledged(ended.trailingZeroBitCount)
            ended &= ended &- 1
        }
    }

    /// Carries the second chip's request to the first, and the first's to the processors.
    private func settle(_ state: inout State) {
        // The cascade input is a level, whatever the guest says of edges: while the second chip asks, the first has a
        // request.
        let cascade: UInt8 = 1 << 2
        if state.second.highestRequest(isFirst: false) != nil {
            state.first.registers.requests |= cascade
        } else {
            state.first.registers.requests &= ~cascade
        }
        let isHigh = state.first.highestRequest(isFirst: true) != nil
        guard isHigh != state.isOutputHigh else { return }
        state.isOutputHigh = isHigh
        // ORDERING: release, pairs with `isOutputAsserted`.
        isAsserted.store(isHigh, ordering: .sequentiallyConsistent)
        output(isHigh)
    }

    // MARK: State

    /// The registers of the first (`false`) or second chip for a client (`KVM_GET_IRQCHIP`).
    public func saveState(ofSecond isSecond: Bool) -> PICState {
        state.withLock { isSecond ? $0.second.registers : $0.first.registers }
    }

    /// Takes over a client's registers (`KVM_SET_IRQCHIP`).
    public func loadState(_ new: PICState, ofSecond isSecond: Bool) {
        state.withLock { state in
            if isSecond { state.second.load(new) } else { state.first.load(new) }
            settle(&state)
        }
    }
}
