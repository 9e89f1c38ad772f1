import Synchronization

/// Where the bus finds the local APICs: the vCPU table.
public protocol LocalAPICDirectory: AnyObject, Sendable {
    /// Calls `body` with the APIC whose ``LocalAPIC/initialID`` is `id`; not at all if there is none.
    /// > Concurrency: any thread, also with interrupt controller locks held.
    func withLocalAPIC(id: UInt32, _ body: (LocalAPIC) -> Void)

    /// Calls `body` with one APIC after the other, until it returns false.
    /// > Concurrency: any thread, also with interrupt controller locks held.
    func forEachLocalAPIC(_ body: (LocalAPIC) -> Bool)
}

/// Carries messages to the local APICs they are meant for.
///
/// > Concurrency: every member may be used from any thread; nothing here blocks.
public final class InterruptBus: Sendable {
    // SAFETY: the directory outlives the bus; counting references to it would make every delivery write shared memory.
    private unowned(unsafe) let directory: any LocalAPICDirectory
    private let extendedDestinations = Atomic<Bool>(false)
    private let noBroadcastQuirk = Atomic<Bool>(false)

    /// The directory outlives the bus.
    public init(directory: any LocalAPICDirectory) { self.directory = directory }

    /// Message-signalled interrupts carry destinations of 32 bits (`KVM_X2APIC_API_USE_32BIT_IDS`).
    public var hasExtendedDestinations: Bool {
        get { extendedDestinations.load(ordering: .relaxed) }
        set { extendedDestinations.store(newValue, ordering: .relaxed) }
    }

    /// Destination 0xFF of devices is also a broadcast to APICs in x2APIC mode, unless the client gave that up
    /// (`KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`).
    public var hasBroadcastQuirk: Bool {
        get { !noBroadcastQuirk.load(ordering: .relaxed) }
        set { noBroadcastQuirk.store(!newValue, ordering: .relaxed) }
    }

    /// Delivers `message` to all APICs it matches, or to one of them if it says so.
    ///
    /// - Parameter sender: the APIC whose command register sent it; nil for devices.
    /// - Returns: -1 if nobody took it, 0 if everybody had it pending already, else how many took it: KVM's convention.
    @discardableResult
    public func deliver(_ message: InterruptMessage, from sender: LocalAPIC? = nil) -> Int {
        var outcome = DeliveryOutcome()
        if message.shorthand == .sender {
            if let sender { outcome.add(sender.accept(message)) }
            return outcome.status
        }
        if message.choosesOne {
            deliverToOne(message, from: sender, &outcome)
        } else if !deliverDirectly(message, from: sender, &outcome) {
            let quirk = hasBroadcastQuirk
            directory.forEachLocalAPIC { apic in
                if selects(apic, message, from: sender, quirk) { outcome.add(apic.accept(message)) }
                return true
            }
        }
        return outcome.status
    }

    /// Delivers a message-signalled interrupt. Returns as ``deliver(_:from:)`` does.
    @discardableResult
    public func deliver(_ interrupt: MessageSignalledInterrupt) -> Int {
        deliver(interrupt.message(extendedDestination: hasExtendedDestinations))
    }

    /// The hypercall `KVM_HC_SEND_IPI`: an IPI to the APICs `base` + n for each bit n of the two bitmaps.
    ///
    /// - Parameter command: vector and delivery mode, as the low half of the ICR has them.
    /// - Returns: the number of APICs that took it; nil for a delivery mode that the hypercall does not have.
    public func deliver(toBitmapLow low: UInt64, high: UInt64, base: UInt32, command: UInt32) -> Int? {
        let mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: command >> 8) & 7)
        guard mode == .fixed || mode == .nmi else { return nil }
        var count = 0
        for (word, first) in [(low, UInt32(0)), (high, 64)] {
            var rest = word
            while rest != 0 {
                let bit = UInt32(truncatingIfNeeded: rest.trailingZeroBitCount)
                rest &= rest &- 1
                let message = InterruptMessage(
                    destination: base &+ first &+ bit, deliveryMode: mode ?? .fixed,
                    vector: UInt8(truncatingIfNeeded: command))
                directory.withLocalAPIC(id: message.destination) { apic in
                    if apic.isEnabled, apic.accept(message) != .ignored { count += 1 }
                }
            }
        }
        return count
    }

    private func selects(
        _ apic: LocalAPIC, _ message: InterruptMessage, from sender: LocalAPIC?, _ quirk: Bool
    ) -> Bool {
        switch message.shorthand {
        case .none:
            apic.matches(
                destination: message.destination, mode: message.destinationMode, isFromProcessor: sender != nil,
                broadcastQuirk: quirk)
        case .sender: apic === sender
        case .all: apic.isEnabled
        case .allButSender: apic.isEnabled && apic !== sender
        }
    }

    /// Delivers without asking every APIC, where the destination says which ones to ask. False if it does not.
    private func deliverDirectly(
        _ message: InterruptMessage, from sender: LocalAPIC?, _ outcome: inout DeliveryOutcome
    ) -> Bool {
        let destination = message.destination
        guard message.shorthand == .none, destination & 0xFF != 0xFF else { return false }
        let quirk = hasBroadcastQuirk
        func offer(_ id: UInt32) -> Bool {
            var isTaken = false
            directory.withLocalAPIC(id: id) { apic in
                guard selects(apic, message, from: sender, quirk) else { return }
                isTaken = true
                outcome.add(apic.accept(message))
            }
            return isTaken
        }
        switch message.destinationMode {
        case .physical:
            // A guest may have given its APICs other xAPIC IDs: then the one found by number does not match.
            return offer(destination)
        case .logical:
            // In x2APIC mode the logical identifier follows from the physical one.
            guard let sender, sender.isX2APICEnabled else { return false }
            var rest = destination & 0xFFFF
            while rest != 0 {
                let member = UInt32(truncatingIfNeeded: rest.trailingZeroBitCount)
                rest &= rest &- 1
                _ = offer((destination >> 16) << 4 | member)
            }
            return true
        }
    }

    /// Lowest-priority delivery: to the one that had the fewest such interrupts so far, so they go round.
    private func deliverToOne(
        _ message: InterruptMessage, from sender: LocalAPIC?, _ outcome: inout DeliveryOutcome
    ) {
        let quirk = hasBroadcastQuirk
        var chosen: LocalAPIC?
        directory.forEachLocalAPIC { apic in
            guard apic.isSoftwareEnabled, selects(apic, message, from: sender, quirk) else { return true }
            if let best = chosen, best.lowestPriorityDeliveries <= apic.lowestPriorityDeliveries { return true }
            chosen = apic
            return true
        }
        guard let chosen else { return }
        chosen.countLowestPriorityDelivery()
        outcome.add(chosen.accept(message))
    }
}

extension LocalAPIC {
    var lowestPriorityDeliveries: UInt32 { lowestPriorityCount.load(ordering: .relaxed) }

    func countLowestPriorityDelivery() { lowestPriorityCount.wrappingAdd(1, ordering: .relaxed) }
}

/// The sum of what several receivers did with one interrupt.
struct DeliveryOutcome {
    /// -1 ignored by all, 0 coalesced by all who did not ignore it, else the number of receivers.
    private(set) var status = -1

    mutating func add(_ acceptance: Acceptance) {
        switch acceptance {
        case .ignored: break
        case .coalesced: status = max(status, 0)
        case .delivered: status = max(status, 0) + 1
        }
    }

    mutating func add(status other: Int) {
        guard other >= 0 else { return }
        status = max(status, 0) + other
    }
}
