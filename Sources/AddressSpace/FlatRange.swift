import Addressing

/// Addresses at which one region is seen, and how.
///
/// Holds its region: a region lives while a flat view, or a listener that was told of it, has a range of it.
public struct FlatRange: Sendable {
    public let addresses: AddressRange
    /// Memory or a device.
    public let region: MemoryRegion
    /// Where in the region the range begins.
    public let offset: UInt64
    /// The guest's writes are kept from memory.
    public let isReadOnly: Bool
    public let logsDirtyPages: Bool

    /// Where the range lies in this process; nil if it is not memory.
    public var host: HostVirtualAddress? { region.host.map { HostVirtualAddress($0.value + UInt(offset)) } }

    /// The same bytes at the same addresses with the same access; dirty logging may differ.
    public func hasSameMapping(as other: Self) -> Bool {
        region === other.region && addresses == other.addresses && offset == other.offset
            && isReadOnly == other.isReadOnly
    }

    /// Nothing differs.
    public func isSame(as other: Self) -> Bool {
        hasSameMapping(as: other) && logsDirtyPages == other.logsDirtyPages
    }

    /// This range and `next`, if they are one.
    func merged(with next: Self) -> Self? {
        guard region === next.region, addresses.end == UInt128(next.addresses.start),
            UInt128(offset) + addresses.byteCount == UInt128(next.offset), isReadOnly == next.isReadOnly,
            logsDirtyPages == next.logsDirtyPages
        else { return nil }
        return FlatRange(
            addresses: AddressRange(addresses.start, through: next.addresses.last), region: region, offset: offset,
            isReadOnly: isReadOnly, logsDirtyPages: logsDirtyPages)
    }
}
