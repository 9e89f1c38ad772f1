import Synchronization

/// The parts of an APIC that decide whether a message is for it, packed in one word.
struct APICRouting: Sendable {
    var word: UInt32

    // Bits 7–0: xAPIC ID. Bits 15–8: logical ID.
    static let flatModel: UInt32 = 1 << 16
    static let clusterModel: UInt32 = 1 << 17
    static let enabled: UInt32 = 1 << 18
    static let x2APIC: UInt32 = 1 << 19
    static let softwareEnabled: UInt32 = 1 << 20
    static let acceptsExternal: UInt32 = 1 << 21

    func has(_ bit: UInt32) -> Bool { word & bit != 0 }
    var xAPICID: UInt32 { word & 0xFF }
    var logicalID: UInt32 { word >> 8 & 0xFF }
}

extension LocalAPIC {
    var routing: APICRouting {
        // ORDERING: acquire, pairs with `publishRouting`: who finds the APIC enabled finds it initialised.
        APICRouting(word: routingWord.load(ordering: .acquiring))
    }

    /// Mirrors the owner's registers for the other threads.
    func publishRouting() {
        var word = UInt32(xAPICID) | UInt32(logicalID) << 8
        switch destinationFormat >> 28 {
        case 0xF: word |= APICRouting.flatModel
        case 0x0: word |= APICRouting.clusterModel
        default: break
        }
        let lint0 = localVectors[.lint0]
        let isExternal =
            lint0 & LocalVectorEntry.masked == 0
            && lint0 & LocalVectorEntry.deliveryMode == UInt32(DeliveryMode.external.rawValue) << 8
        if base & APICBase.enable == 0 || isExternal { word |= APICRouting.acceptsExternal }
        if base & APICBase.enable != 0 {
            word |= APICRouting.enabled
            if base & APICBase.x2APIC != 0 { word |= APICRouting.x2APIC }
            if spurious & SpuriousRegister.softwareEnable != 0 { word |= APICRouting.softwareEnabled }
        }
        // ORDERING: release, pairs with the acquire in `routing`.
        routingWord.store(word, ordering: .releasing)
    }

    /// The APIC exists for the bus: bit 11 of the base register.
    /// > Concurrency: any thread.
    public var isEnabled: Bool { routing.has(APICRouting.enabled) }

    /// > Concurrency: any thread.
    public var isX2APICEnabled: Bool { routing.has(APICRouting.x2APIC) }

    /// Fixed interrupts are accepted: the APIC is enabled, and so by bit 8 of the spurious vector register.
    /// > Concurrency: any thread.
    public var isSoftwareEnabled: Bool { routing.has(APICRouting.softwareEnabled) }

    /// The 8259's interrupts go to this processor: the APIC is disabled, or LINT0 is unmasked in ExtINT mode.
    /// > Concurrency: any thread.
    public var acceptsExternalInterrupts: Bool { routing.has(APICRouting.acceptsExternal) }

    /// Whether a message to `destination` reaches this APIC.
    ///
    /// - Parameters:
    ///   - isFromProcessor: an IPI. The others come from the IOAPIC or are message-signalled, and their destinations
    ///     have 8 bits unless the client enabled more.
    ///   - broadcastQuirk: destination 0xFF of the latter means everybody in x2APIC mode also.
    /// > Concurrency: any thread.
    public func matches(
        destination: UInt32, mode: DestinationMode, isFromProcessor: Bool = true, broadcastQuirk: Bool = true
    ) -> Bool {
        let routing = routing
        guard routing.has(APICRouting.enabled) else { return false }
        if routing.has(APICRouting.x2APIC) {
            if destination == 0xFFFF_FFFF || (destination == 0xFF && broadcastQuirk && !isFromProcessor) { return true }
            switch mode {
            case .physical: return destination == initialID
            case .logical:
                return destination >> 16 == x2APICLogicalID >> 16 && destination & x2APICLogicalID & 0xFFFF != 0
            }
        }
        if destination == 0xFF { return true }
        switch mode {
        case .physical:
            // An identifier that needs more than 8 bits cannot be shown in xAPIC mode; it is still reachable.
            return destination > 0xFF ? destination == initialID : destination == routing.xAPICID
        case .logical:
            if routing.has(APICRouting.flatModel) { return destination & routing.logicalID != 0 }
            guard routing.has(APICRouting.clusterModel) else { return false }
            return destination >> 4 == routing.logicalID >> 4 && destination & routing.logicalID & 0xF != 0
        }
    }

    /// The logical identifier in x2APIC mode: cluster of 16 in the upper half, one bit in the lower.
    var x2APICLogicalID: UInt32 { (initialID >> 4) << 16 | 1 << (initialID & 0xF) }
}
