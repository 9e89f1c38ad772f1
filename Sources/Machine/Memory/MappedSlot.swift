import AddressSpace
import KVMInterface

/// A memory slot of the accelerator and the part of a flat view that it maps.
struct MappedSlot {
    /// The most that one slot maps: slots hold fewer than 2³¹ pages.
    static var byteCountLimit: UInt128 { 4 << 40 }
    /// No processor has physical addresses from here on.
    /// > Source: Intel SDM, volume 3, section 4.1.4.
    static var addressLimit: UInt128 { 1 << 52 }

    let number: UInt32
    /// Whole pages.
    let addresses: AddressRange
    let range: FlatRange

    /// The parts of `range` that slots can map, lowest first: whole pages, in the guest as well as in this process. What
    /// is left is performed by the address space.
    static func parts(of range: FlatRange) -> [AddressRange] {
        guard let host = range.host, let pages = range.addresses.wholePages,
            (UInt64(host.value) &+ (pages.start - range.addresses.start)) & 4095 == 0
        else { return [] }
        var parts: [AddressRange] = []
        var start = UInt128(pages.start)
        let end = min(pages.end, addressLimit)
        while start < end {
            let byteCount = min(end - start, byteCountLimit)
            parts.append(AddressRange(UInt64(start), byteCount: byteCount))
            start += byteCount
        }
        return parts
    }

    var pageCount: Int { Int(addresses.byteCount / 4096) }

    /// The request that makes the slot what it is.
    var request: UserMemoryRegion {
        var flags: MemoryRegionFlags = []
        if range.isReadOnly { flags.insert(.readOnly) }
        if range.logsDirtyPages { flags.insert(.logDirtyPages) }
        return UserMemoryRegion(
            slot: number, flags: flags.rawValue, guest_phys_addr: addresses.start,
            memory_size: UInt64(addresses.byteCount), userspace_addr: UInt64(range.region.host?.value ?? 0) + offset)
    }

    /// The request that deletes it.
    var deletion: UserMemoryRegion {
        var request = request
        request.flags = 0
        request.memory_size = 0
        return request
    }

    /// Where in its region the slot begins.
    private var offset: UInt64 { range.offset + (addresses.start - range.addresses.start) }

    /// Enters pages written through the slot into its region's record.
    func record(_ bitmap: [UInt64]) {
        for (index, word) in bitmap.enumerated() {
            var word = word
            while word != 0 {
                let page = UInt64(index * 64 + word.trailingZeroBitCount)
                range.region.markDirty(offset: offset + page * 4096, byteCount: 4096)
                word &= word - 1
            }
        }
    }
}

/// The numbers that new slots can have, lowest first.
struct SlotNumbers {
    private let limit: Int
    private var used: Set<UInt32>
    private var next: UInt32 = 0

    init(limit: Int, used: some Sequence<UInt32>) {
        self.limit = limit
        self.used = Set(used)
    }

    /// A number that is not in use; nil if all are.
    mutating func take() -> UInt32? {
        while used.contains(next) { next += 1 }
        guard Int(next) < limit else { return nil }
        defer { next += 1 }
        return next
    }
}
