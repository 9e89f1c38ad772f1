import Addressing
import Glibc

/// The guest's RAM as the loader sees it: regions of guest memory with their place in this process, and checked writes.
///
/// It keeps alive whoever owns the mappings, but frees nothing itself. It does not know slots, holes or devices, and
/// an access never crosses from one region into the next.
public struct GuestRAM: Sendable {
    public struct Region: Sendable {
        public let start: GuestPhysicalAddress
        public let byteCount: UInt64
        public let host: HostVirtualAddress

        /// - Parameter host: `byteCount` readable and writable bytes that stay mapped while the owner lives.
        public init(start: GuestPhysicalAddress, byteCount: UInt64, host: HostVirtualAddress) {
            precondition(start.value.addingReportingOverflow(byteCount).overflow == false, "a region wraps around")
            precondition(host.value != 0 && byteCount <= UInt64(Int.max), "a region without memory")
            self.start = start
            self.byteCount = byteCount
            self.host = host
        }

        /// The guest's addresses of the region.
        public var range: Range<GuestPhysicalAddress> { start..<start + byteCount }
    }

    /// A range that is not wholly inside one region.
    public struct OutsideRAM: Error, Equatable {
        public let start: GuestPhysicalAddress
        public let byteCount: UInt64
    }

    /// The regions, lowest first.
    public let regions: [Region]

    private let owner: (any AnyObject & Sendable)?

    /// - Parameter owner: unmaps the regions when it goes; nil if they are never unmapped.
    public init(regions: [Region], owner: (any AnyObject & Sendable)?) {
        self.owner = owner
        self.regions = regions.sorted { $0.start < $1.start }
        for (lower, upper) in zip(self.regions, self.regions.dropFirst()) {
            precondition(lower.range.upperBound <= upper.start, "regions of RAM overlap")
        }
    }

    /// The size of all regions.
    public var byteCount: UInt64 { regions.reduce(0) { $0 + $1.byteCount } }

    /// The end of the region at address 0; 0 if there is none.
    public var lowEnd: GuestPhysicalAddress {
        guard let first = regions.first, first.start.value == 0 else { return GuestPhysicalAddress(0) }
        return first.range.upperBound
    }

    public func write(_ bytes: RawSpan, at start: GuestPhysicalAddress) throws(OutsideRAM) {
        let target = try host(start, UInt64(bytes.byteCount))
        // SAFETY: `host` checked that the range is inside one mapped region.
        bytes.withUnsafeBytes { source in
            if let base = source.baseAddress { Self.copy(base, source.count, to: target) }
        }
    }

    /// Copies, but leaves pages alone that hold what they should already: those of fresh memory are zero, as much of a
    /// kernel is, and only looking at them costs the host no memory.
    private static func copy(_ source: UnsafeRawPointer, _ byteCount: Int, to target: UnsafeMutableRawPointer) {
        var done = 0
        while done < byteCount {
            let part = min(byteCount - done, 4096 - Int(UInt(bitPattern: target + done) & 4095))
            if memcmp(target + done, source + done, part) != 0 { memcpy(target + done, source + done, part) }
            done += part
        }
    }

    public func write(_ bytes: [UInt8], at start: GuestPhysicalAddress) throws(OutsideRAM) {
        try write(bytes.span.bytes, at: start)
    }

    /// Writes `value` little-endian; `start` needs no alignment.
    public func write<T: FixedWidthInteger & BitwiseCopyable>(
        _ value: T, at start: GuestPhysicalAddress
    ) throws(OutsideRAM) {
        let target = try host(start, UInt64(MemoryLayout<T>.size))
        // SAFETY: as in `write(_:at:)`; storing bytes needs no alignment.
        target.storeBytes(of: value.littleEndian, as: T.self)
    }

    public func zero(at start: GuestPhysicalAddress, byteCount: UInt64) throws(OutsideRAM) {
        let target = try host(start, byteCount)
        // SAFETY: as in `write(_:at:)`.
        var done = 0
        while done < Int(byteCount) {
            let part = min(Int(byteCount) - done, 4096 - Int(UInt(bitPattern: target + done) & 4095))
            let bytes = UnsafeRawBufferPointer(start: target + done, count: part)
            if bytes.contains(where: { $0 != 0 }) { memset(target + done, 0, part) }
            done += part
        }
    }

    /// A copy of `byteCount` bytes of guest memory.
    public func read(at start: GuestPhysicalAddress, byteCount: Int) throws(OutsideRAM) -> [UInt8] {
        precondition(byteCount >= 0, "a negative size")
        let source = try host(start, UInt64(byteCount))
        // SAFETY: as in `write(_:at:)`.
        return [UInt8](UnsafeRawBufferPointer(start: source, count: byteCount))
    }

    private func host(
        _ start: GuestPhysicalAddress, _ byteCount: UInt64
    ) throws(OutsideRAM) -> UnsafeMutableRawPointer {
        for region in regions where region.start <= start {
            let offset = start.value - region.start.value
            guard offset <= region.byteCount, byteCount <= region.byteCount - offset else { continue }
            // SAFETY: the region's mapping covers offset…offset + byteCount by the checks above.
            if let base = region.host.pointer { return base + Int(offset) }
        }
        throw OutsideRAM(start: start, byteCount: byteCount)
    }
}
