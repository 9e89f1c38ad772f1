/// Addresses from `start` to `last`, both included; never empty.
///
/// A half-open range of 64-bit addresses could not end at 2^64, where an address space ends.
public struct AddressRange: Hashable, Sendable {
    public let start: UInt64
    public let last: UInt64

    /// - Parameter last: not below `start`.
    public init(_ start: UInt64, through last: UInt64) {
        precondition(start <= last, "a range of addresses ends before it begins")
        self.start = start
        self.last = last
    }

    /// - Parameter byteCount: not 0; the range ends at 2^64 at the latest.
    public init(_ start: UInt64, byteCount: UInt128) {
        precondition(byteCount > 0 && UInt128(start) + byteCount <= 1 << 64, "a range of addresses that cannot be")
        self.init(start, through: UInt64(UInt128(start) + byteCount - 1))
    }

    /// The size in bytes, at most 2^64.
    public var byteCount: UInt128 { UInt128(last - start) + 1 }

    /// The first address behind the range, at most 2^64.
    public var end: UInt128 { UInt128(last) + 1 }

    public func contains(_ address: UInt64) -> Bool { start <= address && address <= last }

    public func overlaps(_ other: Self) -> Bool { start <= other.last && other.start <= last }

    /// The range's addresses that are whole pages: what is left when both ends are moved inwards to multiples of 4096.
    ///
    /// - Returns: nil if there is no whole page.
    public var wholePages: AddressRange? {
        let first = (UInt128(start) + 4095) & ~4095
        let behind = end & ~4095
        return first < behind ? AddressRange(UInt64(first), byteCount: behind - first) : nil
    }
}
