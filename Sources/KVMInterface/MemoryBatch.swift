import CHost
import SystemPackage

/// The argument of `KVMRequest.setUserMemoryRegions`: this header, then `count` elements.
///
/// The changes are made in order and become visible by one switch: guest frames that are backed before and after never
/// miss. On an error nothing has changed. All changes are of one address space.
///
/// Errors: `E2BIG` for more changes than `KVMCapability.memoryRegionBatch` allows, or a bitmap without room; `EFAULT`;
/// `EINVAL` for flags, or slots of two address spaces; those of `KVM_SET_USER_MEMORY_REGION`.
public struct MemoryBatch: BitwiseCopyable, Sendable {
    /// The number of elements.
    public var count: UInt32
    /// None are defined.
    public var flags: UInt32

    public init(count: UInt32, flags: UInt32 = 0) {
        self.count = count
        self.flags = flags
    }

    /// One change.
    public struct Element {
        /// As for `KVM_SET_USER_MEMORY_REGION`.
        public var region: UserMemoryRegion
        /// Where the pages are reported, one bit each, that were written through the slot which this change removes or
        /// replaces; 0 if nobody wants to know. Left alone if that slot was not logged.
        public var dirtyBitmap: UInt64
        /// The bytes that there is room for: at least one bit for each page of that slot, in whole 64-bit words.
        public var dirtyBitmapByteCount: UInt64

        public init(_ region: UserMemoryRegion, dirtyBitmap: UInt64 = 0, dirtyBitmapByteCount: UInt64 = 0) {
            self.region = region
            self.dirtyBitmap = dirtyBitmap
            self.dirtyBitmapByteCount = dirtyBitmapByteCount
        }
    }
}

extension VirtualMachine {
    /// Whether ``setUserMemoryRegions(_:dirtyPageCounts:)`` can be used: the greatest number of changes of a call, or 0.
    public var memoryRegionBatchLimit: Int { (try? checkExtension(.memoryRegionBatch)) ?? 0 }

    /// Changes several memory slots at once. The corresponding C request is `KVMRequest.setUserMemoryRegions`, which only
    /// Martlet's own core has.
    ///
    /// - Parameter dirtyPageCounts: for each change, how many pages of the slot as it was are logged and wanted; 0, or
    ///   nothing at the end, if none.
    /// - Returns: for each change, one bit for each page that was written through the slot as it was; empty if none was
    ///   wanted.
    /// - Throws: as ``MemoryBatch`` says; nothing has changed then.
    @discardableResult
    public func setUserMemoryRegions(
        _ regions: [UserMemoryRegion], dirtyPageCounts: [Int] = []
    ) throws(Errno) -> [[UInt64]] {
        let wordCounts = regions.indices.map { $0 < dirtyPageCounts.count ? (dirtyPageCounts[$0] + 63) / 64 : 0 }
        let words = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: wordCounts.reduce(0, +))
        words.initialize(repeating: 0)
        defer { words.deallocate() }
        var start = 0
        let elements = zip(regions, wordCounts).map { region, count in
            defer { start += count }
            let address = UInt(bitPattern: words.baseAddress) + UInt(start * 8)
            return MemoryBatch.Element(
                region, dirtyBitmap: count > 0 ? UInt64(address) : 0, dirtyBitmapByteCount: UInt64(count * 8))
        }
        try backend.call(
            descriptor, .setUserMemoryRegions, headerByteCount: MemoryLayout<MemoryBatch>.size, elements: elements)
        start = 0
        return wordCounts.map { count in
            defer { start += count }
            return Array(words[start..<start + count])
        }
    }
}
