import CHost
import Interrupts
import KVMInterface
import SystemPackage

// Interrupt lines, messages and the routes between them.

extension UserspaceVM {
    /// - Throws: `ENXIO` without interrupt controllers.
    func setIRQLine(at argument: UInt, answersStatus: Bool) throws(Errno) {
        var request = kvm_irq_level()
        try ClientMemory.copyIn(&request, from: argument)
        guard let router else { throw .noSuchAddressOrDevice }
        let status = router.setLine(request.irq, level: request.level != 0)
        guard answersStatus else { return }
        request.status = Int32(clamping: status)
        try ClientMemory.copyOut(request, to: argument)
    }

    /// - Throws: `EINVAL` for flags, unknown kinds of routes, pins or GSIs that do not exist, destinations that the client has
    ///   not enabled.
    func setGSIRouting(at argument: UInt) throws(Errno) {
        var count: UInt32 = 0
        var flags: UInt32 = 0
        try ClientMemory.copyIn(&count, from: argument)
        try ClientMemory.copyIn(&flags, from: argument &+ 4)
        guard let router, flags == 0, count <= Limits.gsiCount else { throw .invalidArgument }
        let entries = try ClientMemory.copyIn(count: Int(count), of: IRQRoutingEntry(), from: argument &+ 8)
        var routes: [InterruptRoute] = []
        for entry in entries { routes.append(try decode(entry)) }
        try router.setRoutes(routes)
        interruptEvents.waitForDelivery()
    }

    private func decode(_ entry: IRQRoutingEntry) throws(Errno) -> InterruptRoute {
        let isMessage = Int32(bitPattern: entry.type) == KVM_IRQ_ROUTING_MSI
        guard entry.flags & ~(isMessage ? Self.knownMessageFlags : 0) == 0 else { throw .invalidArgument }
        switch Int32(bitPattern: entry.type) {
        case KVM_IRQ_ROUTING_IRQCHIP:
            guard let pin = Int(exactly: entry.u.irqchip.pin), let chip = IRQChip(rawValue: entry.u.irqchip.irqchip)
            else { throw .invalidArgument }
            switch chip {
            case .picMaster, .picSlave:
                guard pin < 8 else { throw .invalidArgument }
                return InterruptRoute(gsi: entry.gsi, target: .pic(pin: chip == .picSlave ? pin + 8 : pin))
            case .ioapic:
                return InterruptRoute(gsi: entry.gsi, target: .ioapic(pin: pin))
            }
        case KVM_IRQ_ROUTING_MSI:
            let message = entry.u.msi
            return InterruptRoute(
                gsi: entry.gsi,
                target: .message(try decode(low: message.address_lo, high: message.address_hi, data: message.data)))
        default:
            throw .invalidArgument
        }
    }

    /// `KVM_MSI_VALID_DEVID`: taken on every architecture, though none but Arm's looks at the device.
    private static var knownMessageFlags: UInt32 { UInt32(KVM_MSI_VALID_DEVID) }

    /// - Throws: `EINVAL` for bits of the address that no destination has, where destinations have 32 bits.
    private func decode(low: UInt32, high: UInt32, data: UInt32) throws(Errno) -> MessageSignalledInterrupt {
        guard !hasExtendedAPICIDs.load(ordering: .relaxed) || high & 0xFF == 0 else { throw .invalidArgument }
        return MessageSignalledInterrupt(address: UInt64(high) << 32 | UInt64(low), data: data)
    }

    /// - Returns: how many vCPUs took it, at least 1 if they had it pending; -1 turns into 0 as nobody being there is no error of
    ///   the client.
    /// - Throws: `EINVAL` without interrupt controllers, for flags, or for a destination that the client has not enabled.
    func signalMSI(at argument: UInt) throws(Errno) -> Int32 {
        var request = kvm_msi()
        try ClientMemory.copyIn(&request, from: argument)
        guard let router, request.flags & ~Self.knownMessageFlags == 0 else { throw .invalidArgument }
        let status = router.deliver(
            try decode(low: request.address_lo, high: request.address_hi, data: request.data))
        return status < 0 ? 0 : Int32(clamping: max(status, 1))
    }
}
