extension FlatView {
    /// What `root` shows from address 0 to the end of the address space.
    /// - Complexity: O(p + n²) for p paths through the regions and n ranges.
    init(rendering root: MemoryRegion) {
        var renderer = Renderer()
        renderer.render(root, at: 0, clip: 0..<(1 << 64), isReadOnly: false)
        self.init(renderer.mergedRanges())
    }
}

/// Draws regions from front to back: what is drawn later shows only where nothing is yet.
///
/// Positions are addresses in 128 bits with a sign, since the start of an alias' target may lie below address 0 and a
/// region may end at 2^64.
private struct Renderer {
    /// By address, not overlapping.
    private var ranges: [FlatRange] = []

    /// - Parameters:
    ///   - start: the address of the region's first byte.
    ///   - clip: what can be seen through the regions on the way here.
    mutating func render(_ region: MemoryRegion, at start: Int128, clip: Range<Int128>, isReadOnly: Bool) {
        guard region.isEnabled else { return }
        let visible = clip.clamped(to: start..<start + Int128(region.byteCount))
        guard !visible.isEmpty else { return }
        let isReadOnly = isReadOnly || region.isReadOnly
        if case .alias(let target, let offset) = region.content {
            render(target, at: start - Int128(offset), clip: visible, isReadOnly: isReadOnly)
            return
        }
        for subregion in region.subregions {
            render(subregion, at: start + Int128(subregion.offset), clip: visible, isReadOnly: isReadOnly)
        }
        if case .container = region.content { return }
        fill(visible, with: region, at: start, isReadOnly: isReadOnly)
    }

    /// Gives `region` what is free of `visible`.
    private mutating func fill(
        _ visible: Range<Int128>, with region: MemoryRegion, at start: Int128, isReadOnly: Bool
    ) {
        var position = visible.lowerBound
        var index = ranges.firstIndex { Int128($0.addresses.last) >= position } ?? ranges.count
        while position < visible.upperBound {
            if index < ranges.count, Int128(ranges[index].addresses.start) <= position {
                position = Int128(ranges[index].addresses.end)
                index += 1
                continue
            }
            var end = visible.upperBound
            if index < ranges.count { end = min(end, Int128(ranges[index].addresses.start)) }
            ranges.insert(
                FlatRange(
                    addresses: AddressRange(UInt64(position), through: UInt64(end - 1)), region: region,
                    offset: UInt64(position - start), isReadOnly: isReadOnly, logsDirtyPages: region.logsDirtyPages),
                at: index)
            index += 1
            position = end
        }
    }

    /// The ranges, of which neighbours that continue each other are one.
    func mergedRanges() -> [FlatRange] {
        var merged: [FlatRange] = []
        for range in ranges {
            if let both = merged.last?.merged(with: range) {
                merged[merged.count - 1] = both
            } else {
                merged.append(range)
            }
        }
        return merged
    }
}
