import Synchronization

// Accesses as the flat view says. An access is split into parts that are as wide as a power of two, naturally aligned, and
// of one range; an aligned access to memory is one access.
extension AddressSpace {
    /// Reads `byteCount` (1…8) bytes at `address`, little-endian; where nothing is, bytes are all ones.
    /// > Concurrency: any thread; a device may block it.
    @available(*, noasync)
    public func read(at address: UInt64, byteCount: Int) -> UInt64 {
        precondition((1...8).contains(byteCount), "an access of \(byteCount) bytes")
        var value: UInt64 = 0
        var done = 0
        while done < byteCount {
            let part = performPart(at: address &+ UInt64(done), limit: byteCount - done, writing: nil)
            value |= (part.value & Self.mask(part.byteCount)) << UInt64(8 * done)
            done += part.byteCount
        }
        return value
    }

    /// Writes the lowest `byteCount` (1…8) bytes of `value`; where nothing is, bytes are lost.
    /// > Concurrency: as `read`.
    @available(*, noasync)
    public func write(at address: UInt64, byteCount: Int, value: UInt64) {
        precondition((1...8).contains(byteCount), "an access of \(byteCount) bytes")
        var done = 0
        while done < byteCount {
            done +=
                performPart(
                    at: address &+ UInt64(done), limit: byteCount - done, writing: value >> UInt64(8 * done)
                ).byteCount
        }
    }

    /// Performs the access of a memory-mapped exit: `data.count` (1…8) bytes.
    /// > Concurrency: as `read`.
    @available(*, noasync)
    public func transfer(at address: UInt64, isWrite: Bool, data: UnsafeMutableRawBufferPointer) {
        if isWrite {
            var value: UInt64 = 0
            for byte in data.reversed() { value = value << 8 | UInt64(byte) }
            write(at: address, byteCount: data.count, value: value)
        } else {
            let value = read(at: address, byteCount: data.count)
            for index in data.indices { data[index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
    }

    /// What a look at the view comes to.
    private enum Part {
        case done(byteCount: Int, value: UInt64)
        /// Left for the device, which may block and so is called outside of the section.
        case device(any MemoryDevice, offset: UInt64, byteCount: Int)
    }

    /// Performs the first part of an access of at most `limit` bytes.
    private func performPart(
        at address: UInt64, limit: Int, writing value: UInt64?
    ) -> (byteCount: Int, value: UInt64) {
        let part = withView { view -> Part in
            guard let index = view.index(containing: address) else { return .done(byteCount: 1, value: .max) }
            return Self.part(of: view.ranges[index], at: address, limit: limit, writing: value)
        }
        switch part {
        case .done(let byteCount, let value): return (byteCount, value)
        case .device(let device, let offset, let byteCount):
            guard let value else { return (byteCount, device.read(at: offset, byteCount: byteCount)) }
            device.write(at: offset, byteCount: byteCount, value: value & Self.mask(byteCount))
            return (byteCount, 0)
        }
    }

    /// > Concurrency: inside the section that found `range`.
    private static func part(
        of range: FlatRange, at address: UInt64, limit: Int, writing value: UInt64?
    ) -> Part {
        let offset = range.offset + (address - range.addresses.start)
        let room = Int(min(UInt64(limit - 1), range.addresses.last - address)) + 1
        switch range.region.content {
        case .memory(let host, let writes):
            if value != nil, range.isReadOnly {
                let byteCount = width(room, widest: writes?.widestAccess ?? 8, at: address)
                guard let writes else { return .done(byteCount: byteCount, value: 0) }
                return .device(writes, offset: offset, byteCount: byteCount)
            }
            let place = host.value + UInt(offset)
            let byteCount = width(room, widest: 8, at: address | UInt64(place))
            let result = HostAccess.perform(at: place, byteCount: byteCount, writing: value)
            if value != nil, range.logsDirtyPages {
                range.region.markDirty(offset: offset, byteCount: UInt64(byteCount))
            }
            return .done(byteCount: byteCount, value: result)
        case .device(let device):
            return .device(device, offset: offset, byteCount: width(room, widest: device.widestAccess, at: address))
        case .container, .alias:
            fatalError("a flat view shows a region that has nothing of its own")
        }
    }

    /// The largest power of two that is at most `room` and `widest`, and divides `address`.
    private static func width(_ room: Int, widest: Int, at address: UInt64) -> Int {
        let limit = min(room, widest)
        return 1 << min(Int.bitWidth - 1 - limit.leadingZeroBitCount, address.trailingZeroBitCount)
    }

    private static func mask(_ byteCount: Int) -> UInt64 { .max >> UInt64(64 - 8 * byteCount) }
}

/// Single accesses to memory that guests use at the same time.
private enum HostAccess {
    /// Reads, or writes the lowest bytes of `value` and returns 0.
    /// - Parameters:
    ///   - place: a multiple of `byteCount`, mapped.
    ///   - byteCount: 1, 2, 4 or 8.
    static func perform(at place: UInt, byteCount: Int, writing value: UInt64?) -> UInt64 {
        guard let address = UnsafeMutableRawPointer(bitPattern: place) else { return 0 }
        guard let value else {
            return switch byteCount {
            case 1: UInt64(word(UInt8.self, address).pointee.load(ordering: .relaxed))
            case 2: UInt64(word(UInt16.self, address).pointee.load(ordering: .relaxed))
            case 4: UInt64(word(UInt32.self, address).pointee.load(ordering: .relaxed))
            default: word(UInt64.self, address).pointee.load(ordering: .relaxed)
            }
        }
        switch byteCount {
        case 1: word(UInt8.self, address).pointee.store(UInt8(truncatingIfNeeded: value), ordering: .relaxed)
        case 2: word(UInt16.self, address).pointee.store(UInt16(truncatingIfNeeded: value), ordering: .relaxed)
        case 4: word(UInt32.self, address).pointee.store(UInt32(truncatingIfNeeded: value), ordering: .relaxed)
        default: word(UInt64.self, address).pointee.store(value, ordering: .relaxed)
        }
        return 0
    }

    private static func word<Word: AtomicRepresentable>(
        _ type: Word.Type, _ address: UnsafeMutableRawPointer
    ) -> UnsafeMutablePointer<Atomic<Word>> {
        // SAFETY: an atomic integer has the size and layout of the integer; the region's memory is mapped while a flat view
        // shows it, and the caller has aligned the place. ORDERING: relaxed; x86 orders the guest's accesses by itself.
        address.assumingMemoryBound(to: Atomic<Word>.self)
    }
}
