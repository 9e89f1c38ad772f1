import GuestMemory
import SystemPackage

/// The slots as a plain array, with KVM's rules written down a second time.
struct Model: Equatable {
    private(set) var slots: [UserMemoryRegion] = []

    subscript(slot: UInt32) -> UserMemoryRegion? { slots.first { $0.slot == slot } }

    func owner(of frame: UInt64, addressSpace: Int) -> UserMemoryRegion? {
        slots.first {
            $0.slot >> 16 == addressSpace && $0.guestPhysicalAddress >> 12 <= frame
                && frame < ($0.guestPhysicalAddress + $0.memorySize) >> 12
        }
    }

    /// The slots of an address space in the order of guest frames.
    func slots(addressSpace: Int) -> [UserMemoryRegion] {
        slots.filter { $0.slot >> 16 == addressSpace }.sorted { $0.guestPhysicalAddress < $1.guestPhysicalAddress }
    }

    /// The slots of an address space that have host memory in a range, in the order of host addresses.
    func slots(overlapping range: Range<UInt64>, addressSpace: Int) -> [UserMemoryRegion] {
        slots.filter {
            $0.slot >> 16 == addressSpace && $0.userspaceAddress < range.upperBound
                && range.lowerBound < $0.userspaceAddress + $0.memorySize
        }.sorted { ($0.userspaceAddress, $0.slot) < ($1.userspaceAddress, $1.slot) }
    }

    /// Whether a request is refused whatever the slots are.
    static func isMalformed(_ region: UserMemoryRegion) -> Bool {
        let addresses = [region.guestPhysicalAddress, region.memorySize, region.userspaceAddress]
        if addresses.contains(where: { $0 % 4096 != 0 }) { return true }
        if region.flags > 3 || region.slot >> 16 > 1 || region.slot & 0xffff > 32763 { return true }
        if region.guestPhysicalAddress.addingReportingOverflow(region.memorySize).overflow { return true }
        let end = region.userspaceAddress.addingReportingOverflow(region.memorySize)
        return end.overflow || end.partialValue > 0x7fff_ffff_f000 || region.memorySize > (1 << 31 - 1) << 12
    }

    /// What a request comes to.
    func outcome(of region: UserMemoryRegion) -> Errno? {
        if Self.isMalformed(region) { return .invalidArgument }
        let old = self[region.slot]
        if region.memorySize == 0 { return old == nil ? .invalidArgument : nil }
        if let old {
            if old.memorySize != region.memorySize || old.userspaceAddress != region.userspaceAddress
                || (old.flags ^ region.flags) & 2 != 0
            {
                return .invalidArgument
            }
        }
        for other in slots where other.slot != region.slot && other.slot >> 16 == region.slot >> 16 {
            if other.guestPhysicalAddress < region.guestPhysicalAddress + region.memorySize
                && region.guestPhysicalAddress < other.guestPhysicalAddress + other.memorySize
            {
                return .fileExists
            }
        }
        return region.guestPhysicalAddress + region.memorySize > 1 << 52 ? .invalidArgument : nil
    }

    /// What a batch comes to, and the model afterwards.
    func outcome(of batch: [UserMemoryRegion]) -> (Errno?, Model) {
        if batch.contains(where: { Self.isMalformed($0) || $0.slot >> 16 != batch[0].slot >> 16 }) {
            return (.invalidArgument, self)
        }
        var model = self
        for region in batch {
            if let error = model.outcome(of: region) { return (error, self) }
            model.apply(region)
        }
        return (nil, model)
    }

    /// Applies a request that is possible.
    mutating func apply(_ region: UserMemoryRegion) {
        slots.removeAll { $0.slot == region.slot }
        if region.memorySize != 0 { slots.append(region) }
    }
}
