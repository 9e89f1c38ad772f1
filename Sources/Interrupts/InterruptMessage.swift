/// How a destination field is read.
public enum DestinationMode: UInt8, Sendable {
    /// An APIC identifier.
    case physical = 0
    /// A set of members of the logical destination model.
    case logical = 1
}

/// What a message asks of the APIC that receives it. The raw values are those of ICR, LVT and redirection entries.
public enum DeliveryMode: UInt8, Sendable {
    case fixed = 0
    case lowestPriority = 1
    /// System management interrupt.
    case smi = 2
    /// Reserved since remote reads vanished from the hardware; KVM's "kick a halted vCPU" hypercall travels as this.
    case unhalt = 3
    case nmi = 4
    case initialize = 5
    case startup = 6
    /// The vector comes from the 8259; never carried by the bus here.
    case external = 7
}

/// The destinations that an ICR can name without a destination field. The raw values are those of the ICR.
public enum DestinationShorthand: UInt8, Sendable {
    case none = 0
    case sender = 1
    case all = 2
    case allButSender = 3
}

/// An interrupt on the bus between IOAPIC, devices and local APICs.
public struct InterruptMessage: Equatable, Sendable {
    public var destination: UInt32
    public var destinationMode: DestinationMode
    public var shorthand: DestinationShorthand
    public var deliveryMode: DeliveryMode
    public var vector: UInt8
    /// The receiver reports the end of its service to the IOAPICs.
    public var isLevelTriggered: Bool
    /// False only for the obsolete "INIT level de-assert", which every receiver ignores.
    public var isAsserted: Bool
    /// The sender of a message-signalled interrupt lets the chipset choose one of the destinations.
    public var hasRedirectionHint: Bool

    public init(
        destination: UInt32, destinationMode: DestinationMode = .physical, shorthand: DestinationShorthand = .none,
        deliveryMode: DeliveryMode = .fixed, vector: UInt8, isLevelTriggered: Bool = false, isAsserted: Bool = true,
        hasRedirectionHint: Bool = false
    ) {
        self.destination = destination
        self.destinationMode = destinationMode
        self.shorthand = shorthand
        self.deliveryMode = deliveryMode
        self.vector = vector
        self.isLevelTriggered = isLevelTriggered
        self.isAsserted = isAsserted
        self.hasRedirectionHint = hasRedirectionHint
    }

    /// Whether one of the matching APICs is to be chosen, rather than all of them.
    public var choosesOne: Bool { deliveryMode == .lowestPriority || hasRedirectionHint }
}

/// A message-signalled interrupt: a write of `data` to `address`.
///
/// > Source: Intel SDM volume 3, section "Message Signalled Interrupts"; KVM's `struct kvm_msi`.
public struct MessageSignalledInterrupt: Equatable, Sendable {
    /// Bits 31–0 are the PCI address, bits 63–40 extend the destination where the client enabled that.
    public var address: UInt64
    public var data: UInt32

    public init(address: UInt64, data: UInt32) {
        self.address = address
        self.data = data
    }

    /// The bus message. With `extendedDestination`, bits 63–40 of the address are bits 31–8 of the destination.
    public func message(extendedDestination: Bool) -> InterruptMessage {
        var destination = UInt32(truncatingIfNeeded: address >> 12) & 0xFF
        if extendedDestination { destination |= UInt32(truncatingIfNeeded: address >> 32) & 0xFFFF_FF00 }
        return InterruptMessage(
            destination: destination,
            destinationMode: address & 1 << 2 != 0 ? .logical : .physical,
            deliveryMode: DeliveryMode(rawValue: UInt8(truncatingIfNeeded: data >> 8) & 7) ?? .fixed,
            vector: UInt8(truncatingIfNeeded: data),
            isLevelTriggered: data & 1 << 15 != 0,
            hasRedirectionHint: address & 1 << 3 != 0)
    }
}
