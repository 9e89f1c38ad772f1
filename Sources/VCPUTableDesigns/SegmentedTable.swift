import Synchronization
import SystemPackage
import VCPUTables

// The table as a list of segments, each twice as long as the one before.
//
// Invariants:
// 1. A segment never moves and is freed with the table: readers need no read section.
// 2. A segment is linked, and a slot written, before the count that covers it (release); readers load the count first
//    (acquire).
// 3. Segment n holds 8 << n slots, from index (8 << n) - 8 on.

/// A vCPU table whose elements never move.
public final class SegmentedTable<Element: VCPUTableElement>: VCPUSlotTable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the directory is written below a count that is not yet published.

    @usableFromInline static var firstShift: Int {
        @inlinable @inline(__always) get { 3 }
    }

    /// The segments; those past the last are nil.
    @usableFromInline let directory: UnsafeMutablePointer<UnsafeMutableRawPointer?>
    private let directoryCount: Int
    @usableFromInline let publishedCount = Atomic<Int>(0)
    private let memory: TableMemory
    public let maximumCount: Int
    public let maximumID: UInt32

    /// - Throws: `ENOMEM`.
    public init(maximumCount: Int, maximumID: UInt32, memory: TableMemory = .system) throws(Errno) {
        self.maximumCount = maximumCount
        self.maximumID = maximumID
        self.memory = memory
        directoryCount = Self.segment(of: max(maximumCount - 1, 0)) + 1
        directory = try memory.allocate(byteCount: directoryCount * 8)
            .bindMemory(to: UnsafeMutableRawPointer?.self, capacity: directoryCount)
        directory.initialize(repeating: nil, count: directoryCount)
    }

    deinit {
        releaseElements()
        for segment in 0..<directoryCount {
            if let slots = directory[segment] { memory.free(slots) }
        }
        memory.free(directory)
    }

    // MARK: Readers

    @inlinable @inline(__always)
    static func segment(of index: Int) -> Int {
        let shifted = UInt(bitPattern: index &+ 1 << firstShift)
        return UInt.bitWidth - 1 - shifted.leadingZeroBitCount - firstShift
    }

    @inlinable @inline(__always)
    static func firstIndex(of segment: Int) -> Int { (1 << firstShift) &<< segment &- (1 << firstShift) }

    /// > Concurrency: the index is below a count that was read, or it is the writer's.
    @inlinable @inline(__always)
    func run(_ segment: Int) -> VCPUSlotRun<Element> {
        // SAFETY: segments below the count exist.
        VCPUSlotRun(directory[segment].unsafelyUnwrapped)
    }

    @inlinable @inline(__always)
    public func slot(at index: Int) -> VCPUSlot<Element> {
        let segment = Self.segment(of: index)
        return run(segment)[index &- Self.firstIndex(of: segment)]
    }

    @inlinable @inline(__always)
    public var count: Int {
        // ORDERING: acquire pairs with the release in `publish`.
        publishedCount.load(ordering: .acquiring)
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result? {
        guard UInt(bitPattern: index) < UInt(bitPattern: count) else { return nil }
        return slot(at: index).withElement(body)
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result? {
        let count = count
        if Int(id) < count {
            let result: Result?? = slot(at: Int(id)).withElement { $0.id == id ? body($0) : nil }
            if let result, let result { return result }
        }
        guard let slot = scan(for: id, count: count) else { return nil }
        return slot.withElement(body)
    }

    @inlinable @inline(never)
    func scan(for id: UInt32, count: Int) -> VCPUSlot<Element>? {
        var first = 0
        var segment = 0
        while first < count {
            let length = min(count &- first, (1 << Self.firstShift) &<< segment)
            let run = run(segment)
            if let index = run.scan(for: id, count: length) { return run[index] }
            first &+= length
            segment &+= 1
        }
        return nil
    }

    @inlinable @inline(__always)
    public func forEachIndexed(_ body: (_ index: Int, Element) -> Bool) {
        let count = count
        var first = 0
        var segment = 0
        while first < count {
            let length = min(count &- first, (1 << Self.firstShift) &<< segment)
            guard run(segment).forEach(count: length, first: first, body) else { return }
            first &+= length
            segment &+= 1
        }
    }

    public func makeReader() -> SegmentedTable { self }

    // MARK: The writer

    public func reserveSlot(at index: Int) throws(Errno) {
        let segment = Self.segment(of: index)
        guard directory[segment] == nil else { return }
        directory[segment] = try memory.allocate(byteCount: 8 << (segment + Self.firstShift))
    }

    public func publish(_ element: Element, at index: Int) {
        slot(at: index).publish(element)
        // ORDERING: release pairs with the acquire in `count`.
        publishedCount.store(index + 1, ordering: .releasing)
    }
}
