/// What an address space shows: ranges by address, not overlapping, none of which could be one with the next.
public struct FlatView: Sendable {
    /// Lowest addresses first. Addresses in none of them have nothing.
    public let ranges: [FlatRange]

    init(_ ranges: [FlatRange]) { self.ranges = ranges }

    /// The place in ``ranges`` of the range that contains `address`.
    /// - Complexity: O(log n).
    public func index(containing address: UInt64) -> Int? {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].addresses.last < address { low = middle + 1 } else { high = middle }
        }
        return low < ranges.count && ranges[low].addresses.contains(address) ? low : nil
    }

    func isSame(as other: Self) -> Bool {
        ranges.count == other.ranges.count && zip(ranges, other.ranges).allSatisfy { $0.isSame(as: $1) }
    }
}
