import Host
import Synchronization

/// The registers of an IOAPIC as clients save and load them.
///
/// The corresponding C structure is `kvm_ioapic_state`.
public struct IOAPICState: Equatable, Sendable {
    public var baseAddress: UInt64 = IOAPIC.defaultAddress
    /// The register that the data window shows.
    public var registerSelect: UInt32 = 0
    public var id: UInt32 = 0
    /// One bit per pin whose line is high (level-triggered) or had an edge that waits.
    public var requests: UInt32 = 0
    /// ``IOAPIC/pinCount`` entries.
    public var redirections: [UInt64]

    /// The state after power-up: all pins masked.
    public init() {
        redirections = Array(repeating: RedirectionEntry.masked, count: IOAPIC.pinCount)
    }
}

/// Bits of a redirection entry.
enum RedirectionEntry {
    static let deliveryStatus: UInt64 = 1 << 12
    static let remoteRequest: UInt64 = 1 << 14
    static let levelTriggered: UInt64 = 1 << 15
    static let masked: UInt64 = 1 << 16

    static func message(_ entry: UInt64) -> InterruptMessage {
        InterruptMessage(
            destination: UInt32(truncatingIfNeeded: entry >> 56),
            destinationMode: entry & 1 << 11 != 0 ? .logical : .physical,
            deliveryMode: DeliveryMode(rawValue: UInt8(truncatingIfNeeded: entry >> 8) & 7) ?? .fixed,
            vector: UInt8(truncatingIfNeeded: entry),
            isLevelTriggered: entry & levelTriggered != 0)
    }
}

/// An I/O APIC with 24 pins.
///
/// Lines have positive logic whatever the polarity bits say, as in KVM. A level-triggered interrupt is sent once; its
/// "remote request" bit holds it back until the end of interrupt, and then it is sent again if the line is still high.
///
/// > Concurrency: every member may be used from any thread. Messages are sent with the lock held, so the output must not
/// > call back. Lock order: PIT, then IOAPIC or PIC, then nothing of this target.
/// > Source: Intel 82093AA data sheet; `struct kvm_ioapic_state`.
public final class IOAPIC: Sendable {
    public static let pinCount = 24
    public static let defaultAddress: UInt64 = 0xFEC0_0000
    /// The bytes from the base address on that the IOAPIC answers.
    public static let byteCount: UInt64 = 0x100

    /// Version 0x11 with 24 pins.
    private static let version: UInt32 = 0x11 | UInt32(pinCount - 1) << 16

    private struct State {
        var registers = IOAPICState()
        /// Per pin, one bit per ``InterruptSource`` that holds the line high.
        var lines = [UInt8](repeating: 0, count: IOAPIC.pinCount)
        /// The edges in `registers.requests` that were sent, and must not be sent again after a restore.
        var deliveredEdges: UInt32 = 0
    }

    private let state = Locked(State())
    /// Outside the lock, because every device access of the guest is compared with it.
    private let baseAddress = Atomic<UInt64>(IOAPIC.defaultAddress)
    private let output: @Sendable (InterruptMessage) -> Int
    private let acknowledged: @Sendable (Int) -> Void

    /// - Parameters:
    ///   - output: sends a message; returns as ``InterruptBus/deliver(_:from:)`` does. Called with the lock held.
    ///   - acknowledged: the service of a level-triggered pin's interrupt ended. Called without the lock, before the
    ///     line is looked at again; it may change lines.
    public init(
        output: @escaping @Sendable (InterruptMessage) -> Int,
        acknowledged: @escaping @Sendable (_ pin: Int) -> Void = { _ in }
    ) {
        self.output = output
        self.acknowledged = acknowledged
    }

    // MARK: Lines

    /// Sets the level that `source` gives to the line of `pin`.
    ///
    /// - Returns: -1 if masked or held back, 0 if pending already, else the number of processors reached.
    @discardableResult
    public func setLine(pin: Int, level: Bool, source: InterruptSource = .client) -> Int {
        guard pin >= 0, pin < Self.pinCount else { return -1 }
        return state.withLock { state in
            if level { state.lines[pin] |= source.bit } else { state.lines[pin] &= ~source.bit }
            let bit = UInt32(1) << UInt32(pin)
            guard state.lines[pin] != 0 else {
                state.registers.requests &= ~bit
                return 1
            }
            let wasHigh = state.registers.requests & bit != 0
            state.registers.requests |= bit
            let isEdge = state.registers.redirections[pin] & RedirectionEntry.levelTriggered == 0
            if isEdge, wasHigh { return 0 }
            state.deliveredEdges &= ~bit
            return send(pin, &state)
        }
    }

    /// The end of the service of a level-triggered interrupt, as a local APIC broadcasts it.
    public func endOfInterrupt(vector: UInt8) {
        var pins = pinsInService(vector: vector)
        while pins != 0 {
            let pin = pins.trailingZeroBitCount
            pins &= pins &- 1
            acknowledged(pin)
            state.withLock { state in
                let entry = state.registers.redirections[pin]
                guard Self.isInService(entry, vector: vector) else { return }
                state.registers.redirections[pin] = entry & ~RedirectionEntry.remoteRequest
                if state.registers.requests & UInt32(1) << UInt32(pin) != 0 { _ = send(pin, &state) }
            }
        }
    }

    /// One bit per pin that waits for the end of `vector`.
    private func pinsInService(vector: UInt8) -> UInt32 {
        state.withLock { state in
            var pins: UInt32 = 0
            for pin in 0..<Self.pinCount where Self.isInService(state.registers.redirections[pin], vector: vector) {
                pins |= 1 << UInt32(pin)
            }
            return pins
        }
    }

    private static func isInService(_ entry: UInt64, vector: UInt8) -> Bool {
        let awaited = RedirectionEntry.levelTriggered | RedirectionEntry.remoteRequest
        return entry & awaited == awaited && UInt8(truncatingIfNeeded: entry) == vector
    }

    private func send(_ pin: Int, _ state: inout State) -> Int {
        let entry = state.registers.redirections[pin]
        guard entry & RedirectionEntry.masked == 0 else { return -1 }
        let isLevel = entry & RedirectionEntry.levelTriggered != 0
        if isLevel, entry & RedirectionEntry.remoteRequest != 0 { return -1 }
        if !isLevel { state.deliveredEdges |= 1 << UInt32(pin) }
        let status = output(RedirectionEntry.message(entry))
        // Only an accepted interrupt has an end that could be awaited.
        if isLevel, status >= 0 { state.registers.redirections[pin] |= RedirectionEntry.remoteRequest }
        return status
    }

    // MARK: Registers

    /// The offset of `address` in the register range; nil if it is outside.
    public func offset(of address: UInt64) -> UInt32? {
        let offset = address &- baseAddress.load(ordering: .relaxed)
        return offset < Self.byteCount ? UInt32(truncatingIfNeeded: offset) : nil
    }

    /// Reads from the register range. Offset 0x00 is the register select, 0x10 its data window.
    public func read(offset: UInt32, byteCount: Int) -> UInt64 {
        let value: UInt32 = state.withLock { state in
            switch offset & 0xFF {
            case 0x00: state.registers.registerSelect
            case 0x10: Self.selected(state.registers)
            default: 0
            }
        }
        guard byteCount > 0, byteCount < 4 else { return UInt64(value) }
        return UInt64(value) & ((1 << (UInt64(byteCount) * 8)) - 1)
    }

    /// Writes to the register range; missing upper bytes count as 0.
    public func write(offset: UInt32, byteCount: Int, value: UInt64) {
        let mask: UInt64 = byteCount > 0 && byteCount < 4 ? (1 << (UInt64(byteCount) * 8)) - 1 : 0xFFFF_FFFF
        let value = UInt32(truncatingIfNeeded: value & mask)
        state.withLock { state in
            switch offset & 0xFF {
            case 0x00: state.registers.registerSelect = value & 0xFF
            case 0x10: writeSelected(value, &state)
            default: break
            }
        }
    }

    private static func selected(_ registers: IOAPICState) -> UInt32 {
        switch registers.registerSelect {
        case 0, 2: return (registers.id & 0xF) << 24
        case 1: return version
        default:
            guard let (pin, shift) = redirection(registers.registerSelect) else { return 0xFFFF_FFFF }
            return UInt32(truncatingIfNeeded: registers.redirections[pin] >> shift)
        }
    }

    /// The pin and the shift of its half that a register number means.
    private static func redirection(_ register: UInt32) -> (pin: Int, shift: UInt64)? {
        guard register >= 0x10, register < 0x10 + UInt32(2 * pinCount) else { return nil }
        return (Int((register - 0x10) >> 1), UInt64(register & 1) * 32)
    }

    private func writeSelected(_ value: UInt32, _ state: inout State) {
        if state.registers.registerSelect == 0 { state.registers.id = value >> 24 & 0xF }
        guard let (pin, shift) = Self.redirection(state.registers.registerSelect) else { return }
        let readOnly = RedirectionEntry.deliveryStatus | RedirectionEntry.remoteRequest
        let old = state.registers.redirections[pin]
        let replaced = 0xFFFF_FFFF << shift & ~readOnly
        var entry = old & ~replaced | UInt64(value) << shift & replaced
        // Linux clears a stuck remote request by making the pin edge-triggered for a moment.
        if entry & RedirectionEntry.levelTriggered == 0 { entry &= ~RedirectionEntry.remoteRequest }
        state.registers.redirections[pin] = entry
        let isHigh = state.registers.requests & UInt32(1) << UInt32(pin) != 0
        if isHigh, entry & RedirectionEntry.levelTriggered != 0 { _ = send(pin, &state) }
    }

    // MARK: State

    /// The registers for a client (`KVM_GET_IRQCHIP`).
    public func saveState() -> IOAPICState {
        state.withLock { state in
            var registers = state.registers
            registers.requests &= ~state.deliveredEdges
            return registers
        }
    }

    /// Takes over a client's registers (`KVM_SET_IRQCHIP`) and sends what is pending.
    public func loadState(_ new: IOAPICState) {
        state.withLock { state in
            state.registers = new
            baseAddress.store(new.baseAddress, ordering: .relaxed)
            state.deliveredEdges = 0
            state.registers.registerSelect &= 0xFF
            state.registers.id &= 0xF
            state.registers.requests &= 1 << UInt32(Self.pinCount) - 1
            let missing = max(0, Self.pinCount - new.redirections.count)
            let entries =
                new.redirections.prefix(Self.pinCount) + Array(repeating: RedirectionEntry.masked, count: missing)
            state.registers.redirections = Array(entries)
            for pin in 0..<Self.pinCount where state.registers.requests & UInt32(1) << UInt32(pin) != 0 {
                _ = send(pin, &state)
            }
        }
    }
}
