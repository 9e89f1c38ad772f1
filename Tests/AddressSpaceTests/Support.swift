import AddressSpace
import Addressing
import Glibc
import Synchronization
import SystemPackage

/// Reads as the number it was given; remembers writes.
final class Probe: MemoryDevice {
    struct Write: Equatable {
        var offset: UInt64
        var byteCount: Int
        var value: UInt64
    }

    let widestAccess: Int
    private let recorded = Mutex<[Write]>([])
    private let readAt = Mutex<[UInt64]>([])

    init(widestAccess: Int = 8) { self.widestAccess = widestAccess }

    var writes: [Write] { recorded.withLock { $0 } }
    var readOffsets: [UInt64] { readAt.withLock { $0 } }

    func read(at offset: UInt64, byteCount: Int) -> UInt64 {
        readAt.withLock { $0.append(offset) }
        return (0..<UInt64(byteCount)).reduce(0) { $0 | ((offset + $1) & 0x7F) << (8 * $1) }
    }

    func write(at offset: UInt64, byteCount: Int, value: UInt64) {
        recorded.withLock { $0.append(Write(offset: offset, byteCount: byteCount, value: value)) }
    }
}

/// Zeroed pages, unmapped by `unmap` or with the object; counts how many objects there are.
final class Pages: @unchecked Sendable {
    static let alive = Atomic<Int>(0)
    let base: UnsafeMutableRawPointer
    let byteCount: Int
    private var isMapped = true

    init(_ count: Int) {
        byteCount = count * 4096
        base = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        Self.alive.wrappingAdd(1, ordering: .relaxed)
    }

    deinit {
        unmap()
        Self.alive.wrappingSubtract(1, ordering: .relaxed)
    }

    func unmap() {
        if isMapped { munmap(base, byteCount) }
        isMapped = false
    }

    var host: HostVirtualAddress { HostVirtualAddress(UInt(bitPattern: base)) }
}

/// Keeps what it is told, as text and as the set of ranges that follows from it.
final class RecordingListener: MemoryListener {
    private(set) var log: [String] = []
    private(set) var ranges: [FlatRange] = []
    /// What was wrong with what it was told.
    private(set) var fault: String?
    /// What the next commits throw.
    var refusals: [Errno?] = []
    private var before: [FlatRange] = []
    private var isInside = false

    func begin() {
        check(!isInside, "begin twice")
        isInside = true
        before = ranges
        log = ["begin"]
    }

    func delete(_ range: FlatRange) {
        let places = ranges.indices.filter { ranges[$0].isSame(as: range) }
        check(places.count == 1, "a range is deleted that is there \(places.count) times")
        if let place = places.first { ranges.remove(at: place) }
        log.append("delete \(range.text)")
    }

    func add(_ range: FlatRange) {
        check(!ranges.contains { $0.addresses.overlaps(range.addresses) }, "a range is added over another")
        ranges.append(range)
        log.append("add \(range.text)")
    }

    func keep(_ range: FlatRange, changesDirtyLogging: Bool) {
        if let place = ranges.firstIndex(where: { $0.hasSameMapping(as: range) }) {
            check(
                (ranges[place].logsDirtyPages != range.logsDirtyPages) == changesDirtyLogging, "logging is not as told")
            ranges[place] = range
        } else {
            check(false, "a range is kept that is not there")
        }
        log.append("keep \(range.text)\(changesDirtyLogging ? " logging \(range.logsDirtyPages)" : "")")
    }

    func commit() throws(Errno) {
        check(isInside, "commit without begin")
        isInside = false
        ranges.sort { $0.addresses.start < $1.addresses.start }
        log.append("commit")
        if !refusals.isEmpty, let refusal = refusals.removeFirst() {
            ranges = before
            before = []
            throw refusal
        }
        before = []
    }

    /// Whether it knows exactly what the view shows.
    func agrees(with view: FlatView) -> Bool {
        ranges.count == view.ranges.count && zip(ranges, view.ranges).allSatisfy { $0.isSame(as: $1) }
    }

    private func check(_ isRight: Bool, _ message: String) { if !isRight && fault == nil { fault = message } }
}

extension FlatRange {
    /// Addresses, region and offset, and what is special.
    var text: String {
        let ends = [addresses.start, addresses.last].map { String($0, radix: 16) }.joined(separator: "-")
        return "\(ends) \(region.name)+\(String(offset, radix: 16))" + (isReadOnly ? " ro" : "")
            + (logsDirtyPages ? " log" : "")
    }
}

extension AddressSpace {
    var text: [String] { view.ranges.map(\.text) }
}

/// The error that `body` throws.
func errno(_ body: () throws(Errno) -> Void) -> Errno? {
    do throws(Errno) { try body() } catch { return error }
    return nil
}
