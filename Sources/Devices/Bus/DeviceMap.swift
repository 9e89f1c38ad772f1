/// Which device answers at which port.
///
/// Fixed when it is made, so lookups from any thread need no lock.
public struct DeviceMap: Sendable {
    /// A range of addresses and the device behind it.
    public struct Mount: Sendable {
        public let range: Range<UInt64>
        public let device: any Device
        /// Where in the device the range begins, for devices that are in several places.
        public let deviceOffset: Int

        public init(_ range: Range<UInt64>, _ device: any Device, deviceOffset: Int = 0) {
            self.range = range
            self.device = device
            self.deviceOffset = deviceOffset
        }

        fileprivate func offset(of address: UInt64) -> Int { Int(address - range.lowerBound) + deviceOffset }
    }

    /// Sorted by address.
    private let mounts: [Mount]

    /// - Parameter mounts: in any order; empty or overlapping ranges are a programming error.
    public init(_ mounts: [Mount]) {
        self.mounts = mounts.sorted { $0.range.lowerBound < $1.range.lowerBound }
        for (index, mount) in self.mounts.enumerated() {
            precondition(!mount.range.isEmpty, "a device without addresses")
            precondition(
                index == 0 || self.mounts[index - 1].range.upperBound <= mount.range.lowerBound,
                "two devices at address \(mount.range.lowerBound)")
        }
    }

    /// Reads `byteCount` (1…8) bytes at `address`; bytes that no device answers are all ones.
    /// - Complexity: O(log n) for each device that is touched.
    public func read(at address: UInt64, byteCount: Int) -> UInt64 {
        var value: UInt64 = 0
        forEachPart(of: address, byteCount) { partAddress, partByteCount, mount in
            let part =
                if let mount {
                    mount.device.read(at: mount.offset(of: partAddress), byteCount: partByteCount)
                } else {
                    UInt64.max
                }
            value |= (part & Self.mask(partByteCount)) << (8 * (partAddress &- address))
        }
        return value
    }

    /// Writes the lowest `byteCount` (1…8) bytes of `value`; bytes that no device takes are lost.
    public func write(at address: UInt64, byteCount: Int, value: UInt64) {
        forEachPart(of: address, byteCount) { partAddress, partByteCount, mount in
            guard let mount else { return }
            let part = value >> (8 * (partAddress &- address)) & Self.mask(partByteCount)
            mount.device.write(at: mount.offset(of: partAddress), byteCount: partByteCount, value: part)
        }
    }

    /// Splits an access into naturally aligned parts that one device takes at once, lowest first.
    private func forEachPart(
        of address: UInt64, _ byteCount: Int, _ body: (_ address: UInt64, _ byteCount: Int, Mount?) -> Void
    ) {
        precondition((1...8).contains(byteCount), "an access of \(byteCount) bytes")
        var offset = 0
        while offset < byteCount {
            let partAddress = address &+ UInt64(offset)
            let mount = mount(at: partAddress)
            var size = 1
            if let mount {
                size = min(mount.device.widestAccess, byteCount - offset)
                // The largest power of two that fits, is aligned, and stays inside the device.
                size = 1 << (Int.bitWidth - 1 - size.leadingZeroBitCount)
                while size > 1,
                    !partAddress.isMultiple(of: UInt64(size)) || mount.range.upperBound - partAddress < UInt64(size)
                {
                    size /= 2
                }
            }
            body(partAddress, size, mount)
            offset += size
        }
    }

    private func mount(at address: UInt64) -> Mount? {
        var low = 0
        var high = mounts.count
        while low < high {
            let middle = (low + high) / 2
            if mounts[middle].range.upperBound <= address { low = middle + 1 } else { high = middle }
        }
        return low < mounts.count && mounts[low].range.contains(address) ? mounts[low] : nil
    }

    private static func mask(_ byteCount: Int) -> UInt64 { .max >> UInt64(64 - 8 * byteCount) }
}
