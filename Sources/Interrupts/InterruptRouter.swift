import Host
import SystemPackage

/// The interrupt controllers of one machine and the table that leads GSIs to them.
///
/// > Concurrency: every member may be used from any thread. The table is replaced as a whole: a delivery uses the one it
/// > found when it began.
public final class InterruptRouter: Sendable {
    /// Which controllers the core has.
    public enum Model: Sendable {
        /// PIC and IOAPIC (`KVM_CREATE_IRQCHIP`).
        case full
        /// The client has them; only message-signalled interrupts are routed (`KVM_CAP_SPLIT_IRQCHIP`).
        case split
    }

    public let bus: InterruptBus
    /// nil in the split model.
    public let ioapic: IOAPIC?
    /// nil in the split model.
    public let pic: PIC?

    private let table: RoutingTableHolder
    private let reservedPinCount: UInt32

    /// The directory outlives the router. In the full model the default routes are in place.
    ///
    /// - Parameter reservedPinCount: how many lines, from 0 on, are pins of the client's IOAPIC in the split model.
    public init(directory: any LocalAPICDirectory, model: Model, reservedPinCount: UInt32 = 0) {
        let bus = InterruptBus(directory: directory)
        let hasChips = model == .full
        let routes = hasChips ? InterruptRoutingTable.defaultRoutes : []
        guard
            let initial = InterruptRoutingTable(routes, hasChips: hasChips, reservedPinCount: reservedPinCount)
        else {
            preconditionFailure("the default routes are not valid")
        }
        let table = RoutingTableHolder(initial)
        self.bus = bus
        self.table = table
        self.reservedPinCount = reservedPinCount
        guard hasChips else {
            ioapic = nil
            pic = nil
            return
        }
        ioapic = IOAPIC(
            output: { bus.deliver($0) },
            acknowledged: { pin in table.notify { $0.gsi(ofIOAPICPin: pin) } })
        pic = PIC(
            output: { [unowned(unsafe) directory] isHigh in
                guard isHigh else { return }
                directory.forEachLocalAPIC { apic in
                    guard apic.acceptsExternalInterrupts else { return true }
                    apic.host.kick()
                    return false
                }
            },
            acknowledged: { pin in table.notify { $0.gsi(ofPICPin: pin) } })
    }

    /// Replaces the routing table (`KVM_SET_GSI_ROUTING`).
    ///
    /// - Throws: `Errno.invalidArgument` (`EINVAL`) if a GSI is 4096 or more, a pin or chip does not exist, or one GSI has
    ///   two targets of the same kind.
    public func setRoutes(_ routes: [InterruptRoute]) throws(Errno) {
        let new = InterruptRoutingTable(routes, hasChips: ioapic != nil, reservedPinCount: reservedPinCount)
        guard let new else { throw .invalidArgument }
        table.replace(with: new)
    }

    /// Sets the level that `source` gives to the line `gsi`. For a route to a message, a rising level sends it.
    ///
    /// - Returns: -1 if all targets ignored it, 0 if it was pending already, else how many took it: KVM's convention.
    @discardableResult
    public func setLine(_ gsi: UInt32, level: Bool, source: InterruptSource = .client) -> Int {
        var outcome = DeliveryOutcome()
        for target in table.current[gsi] {
            switch target {
            case .pic(let pin):
                if let pic { outcome.add(status: pic.setLine(pin: pin, level: level, source: source)) }
            case .ioapic(let pin):
                if let ioapic { outcome.add(status: ioapic.setLine(pin: pin, level: level, source: source)) }
            case .message(let message):
                if level { outcome.add(status: bus.deliver(message)) }
            }
        }
        return outcome.status
    }

    /// Delivers a message-signalled interrupt (`KVM_SIGNAL_MSI`). Returns as ``setLine(_:level:source:)`` does.
    @discardableResult
    public func deliver(_ message: MessageSignalledInterrupt) -> Int { bus.deliver(message) }

    /// Delivers what a local APIC's command register sent.
    public func deliver(_ message: InterruptMessage, from sender: LocalAPIC) { bus.deliver(message, from: sender) }

    /// The end of service of a level-triggered interrupt at a local APIC.
    ///
    /// - Returns: whether the client's IOAPIC has to be told.
    @discardableResult
    public func endOfInterrupt(vector: UInt8) -> Bool {
        guard let ioapic else { return table.current.levelVectors.contains(vector) }
        ioapic.endOfInterrupt(vector: vector)
        return false
    }

    /// Sets who is told when the service of a line's interrupt ended, before the line is looked at again: irqfds whose level
    /// falls then. The observer may set lines.
    public func setAcknowledgementObserver(_ observer: (@Sendable (_ gsi: UInt32) -> Void)?) {
        table.setObserver(observer)
    }
}

/// The current table and the observer, which the chips and the router share.
private final class RoutingTableHolder: Sendable {
    private let table: Locked<InterruptRoutingTable>
    private let observer = Locked<(@Sendable (UInt32) -> Void)?>(nil)

    init(_ table: InterruptRoutingTable) { self.table = Locked(table) }

    var current: InterruptRoutingTable { table.withLock { $0 } }

    func replace(with new: InterruptRoutingTable) { table.withLock { $0 = new } }

    func setObserver(_ new: (@Sendable (UInt32) -> Void)?) { observer.withLock { $0 = new } }

    func notify(_ gsi: (InterruptRoutingTable) -> UInt32?) {
        guard let observer = observer.withLock({ $0 }), let gsi = gsi(current) else { return }
        observer(gsi)
    }
}
