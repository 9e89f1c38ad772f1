import Addressing
import Glibc
import Machine

/// Guest RAM on anonymous memory, as the board lays it out.
struct TestRAM {
    let ram: GuestRAM

    init(byteCount: UInt64) {
        var regions: [GuestRAM.Region] = []
        for range in BoardLayout.ramRanges(byteCount: byteCount) {
            let size = Int(range.upperBound.value - range.lowerBound.value)
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
            guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, flags, -1, 0), base != MAP_FAILED else {
                fatalError("no memory for the test's guest")
            }
            let host = HostVirtualAddress(UInt(bitPattern: base))
            regions.append(GuestRAM.Region(start: range.lowerBound, byteCount: UInt64(size), host: host))
        }
        ram = GuestRAM(regions: regions, owner: Mappings(regions))
    }

    /// Unmaps what the guest's RAM is mapped to.
    private final class Mappings: Sendable {
        private let regions: [GuestRAM.Region]

        init(_ regions: [GuestRAM.Region]) { self.regions = regions }

        deinit {
            for region in regions { munmap(region.host.pointer, Int(region.byteCount)) }
        }
    }

    func bytes(_ address: UInt64, _ count: Int) throws -> [UInt8] {
        try ram.read(at: GuestPhysicalAddress(address), byteCount: count)
    }

    func integer<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) throws -> T {
        try bytes(address, MemoryLayout<T>.size).integer(0)
    }

    /// The NUL-terminated string at `address`.
    func string(_ address: UInt64) throws -> String {
        String(decoding: try bytes(address, 0x1_0000).prefix { $0 != 0 }, as: UTF8.self)
    }
}

extension [UInt8] {
    /// The little-endian integer at `offset`.
    func integer<T: FixedWidthInteger>(_ offset: Int, as type: T.Type = T.self) -> T {
        self[offset..<offset + MemoryLayout<T>.size].reversed().reduce(0) { $0 << 8 | T(truncatingIfNeeded: $1) }
    }

    /// Writes `value` little-endian at `offset`.
    mutating func put<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        for index in 0..<MemoryLayout<T>.size {
            self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * T(index)))
        }
    }

    /// The pattern of a test's payload: recognisable, and different from page to page for 16 MiB.
    static func pattern(_ count: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count + 4096)
        let page = (0..<4096).map { UInt8(truncatingIfNeeded: $0 ^ ($0 >> 8)) }
        while bytes.count < count {
            let number = bytes.count / 4096
            bytes += page
            bytes[number * 4096 + 5] = UInt8(truncatingIfNeeded: number)
            bytes[number * 4096 + 6] = UInt8(truncatingIfNeeded: number >> 8)
        }
        return Array(bytes.prefix(count))
    }
}
