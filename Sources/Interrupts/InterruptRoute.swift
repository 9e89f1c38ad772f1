/// Where a GSI leads. One GSI may have a pin of each chip, or one message.
public enum InterruptTarget: Equatable, Sendable {
    /// A pin of the 8259 pair, 0–15.
    case pic(pin: Int)
    /// A pin of the IOAPIC, 0–23.
    case ioapic(pin: Int)
    case message(MessageSignalledInterrupt)

    /// Two targets of one GSI are refused if they are of one kind.
    fileprivate var kind: Int {
        switch self {
        case .pic(let pin): pin < 8 ? 0 : 1
        case .ioapic: 2
        case .message: 3
        }
    }
}

/// One entry of the routing table.
///
/// The corresponding C structure is `kvm_irq_routing_entry`.
public struct InterruptRoute: Equatable, Sendable {
    public var gsi: UInt32
    public var target: InterruptTarget

    public init(gsi: UInt32, target: InterruptTarget) {
        self.gsi = gsi
        self.target = target
    }
}

/// An immutable table from GSI to targets and back.
final class InterruptRoutingTable: Sendable {
    /// The largest number of GSIs (`KVM_MAX_IRQ_ROUTES`).
    static let maximumCount: UInt32 = 4096

    private let targets: [[InterruptTarget]]
    private let gsiOfPICPin: [UInt32?]
    private let gsiOfIOAPICPin: [UInt32?]
    /// Vectors of level-triggered messages on lines of the client's IOAPIC.
    let levelVectors: VectorSet

    /// - Parameter reservedPinCount: how many lines, from 0 on, are pins of an IOAPIC that the client has.
    /// - Returns: nil if the routes contradict each other or name something that does not exist.
    init?(_ routes: [InterruptRoute], hasChips: Bool, reservedPinCount: UInt32) {
        var targets: [[InterruptTarget]] = []
        var levelVectors = VectorSet()
        var gsiOfPICPin = [UInt32?](repeating: nil, count: PIC.pinCount)
        var gsiOfIOAPICPin = [UInt32?](repeating: nil, count: IOAPIC.pinCount)
        for route in routes {
            guard route.gsi < Self.maximumCount else { return nil }
            let gsi = Int(route.gsi)
            while targets.count <= gsi { targets.append([]) }
            let messageKind = 3
            for other in targets[gsi] {
                guard other.kind != route.target.kind, other.kind != messageKind, route.target.kind != messageKind
                else { return nil }
            }
            switch route.target {
            case .pic(let pin):
                guard hasChips, pin >= 0, pin < PIC.pinCount else { return nil }
                gsiOfPICPin[pin] = gsiOfPICPin[pin] ?? route.gsi
            case .ioapic(let pin):
                guard hasChips, pin >= 0, pin < IOAPIC.pinCount else { return nil }
                gsiOfIOAPICPin[pin] = gsiOfIOAPICPin[pin] ?? route.gsi
            case .message(let message):
                let message = message.message(extendedDestination: false)
                if route.gsi < reservedPinCount, message.isLevelTriggered { levelVectors.insert(message.vector) }
            }
            targets[gsi].append(route.target)
        }
        self.targets = targets
        self.gsiOfPICPin = gsiOfPICPin
        self.gsiOfIOAPICPin = gsiOfIOAPICPin
        self.levelVectors = levelVectors
    }

    subscript(gsi: UInt32) -> [InterruptTarget] { gsi < targets.count ? targets[Int(gsi)] : [] }

    func gsi(ofPICPin pin: Int) -> UInt32? { gsiOfPICPin.indices.contains(pin) ? gsiOfPICPin[pin] : nil }

    func gsi(ofIOAPICPin pin: Int) -> UInt32? { gsiOfIOAPICPin.indices.contains(pin) ? gsiOfIOAPICPin[pin] : nil }

    /// What KVM sets up with its chips: GSIs 0–15 lead to both, 16–23 to the IOAPIC, with equal numbers.
    static var defaultRoutes: [InterruptRoute] {
        let shared = (0..<16).flatMap { pin in
            [
                InterruptRoute(gsi: UInt32(pin), target: .pic(pin: pin)),
                InterruptRoute(gsi: UInt32(pin), target: .ioapic(pin: pin))
            ]
        }
        return shared + (16..<IOAPIC.pinCount).map { InterruptRoute(gsi: UInt32($0), target: .ioapic(pin: $0)) }
    }
}
