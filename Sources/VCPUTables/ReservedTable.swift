import Host
import Synchronization
import SystemPackage

// The table as one array with room for every vCPU there may be, and one that tells where each id is, in address space and
// not in memory.
//
// Invariants:
// 1. The arrays never move: 8 bytes of address space for each possible vCPU and 4 for each possible id are reserved when the
//    machine is created. The kernel gives memory when a page is first written, so a machine pays for the vCPUs it has.
// 2. A slot, and the place of its id, are written before the count that covers it (release), and readers load the count
//    before the slot (acquire): an element is reachable, by index and by id, exactly when the count says so.
// 3. Nothing is freed while the table lives, so readers need no read section, and the writer never waits or allocates.

/// The vCPU table of the product: sized when the machine is created.
public final class ReservedTable<Element: VCPUTableElement>: VCPUSlotTable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the mapping does not change, its words are atomics.

    @usableFromInline let run: VCPUSlotRun<Element>
    /// For each id one more than the index of its element, or 0. Never changes back.
    @usableFromInline let places: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let publishedCount = Atomic<Int>(0)
    private let memory: MemoryMapping
    public let maximumCount: Int
    public let maximumID: UInt32

    /// - Parameters:
    ///   - maximumCount: how many elements there may be; at least 1.
    ///   - maximumID: the first id that is too large.
    /// - Throws: `ENOMEM` if the address space is not to be had.
    public init(maximumCount: Int, maximumID: UInt32) throws(Errno) {
        precondition(maximumCount > 0, "a vCPU table without room")
        let placeByteCount = Int(maximumID) * MemoryLayout<UInt32>.size
        let (slotByteCount, overflow) = maximumCount.multipliedReportingOverflow(by: VCPUSlot<Element>.byteCount)
        guard !overflow, maximumCount < UInt32.max else { throw .noMemory }
        memory = try .anonymous(byteCount: slotByteCount + placeByteCount)
        run = VCPUSlotRun(memory.baseAddress)
        // SAFETY: behind the slots; `Atomic<UInt32>` has the layout of `UInt32`, and fresh memory is zero.
        places = (memory.baseAddress + slotByteCount).assumingMemoryBound(to: Atomic<UInt32>.self)
        self.maximumCount = maximumCount
        self.maximumID = maximumID
    }

    deinit { releaseElements() }

    // MARK: Readers

    @inlinable @inline(__always)
    public var count: Int {
        // ORDERING: acquire pairs with the release in `publish`.
        publishedCount.load(ordering: .acquiring)
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result? {
        run.withElement(at: index, count: count, body)
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result? {
        let count = count
        // Mostly the index is the id, and then the second array need not be in the cache.
        if Int(id) < count {
            let result: Result?? = run[Int(id)].withElement { $0.id == id ? body($0) : nil }
            if let result, let result { return result }
        }
        return run.withElement(at: place(of: id), count: count, body)
    }

    /// The index of the element with that id: the count decides whether it is there yet. Negative if there is none.
    @inlinable @inline(__always)
    func place(of id: UInt32) -> Int {
        // ORDERING: relaxed; the slot is reached through the count.
        id < maximumID ? Int(places[Int(id)].load(ordering: .relaxed)) &- 1 : -1
    }

    @inlinable @inline(__always)
    public func forEachIndexed(_ body: (_ index: Int, Element) -> Bool) {
        _ = run.forEach(count: count, body)
    }

    @inlinable @inline(__always)
    public func makeReader() -> ReservedTable { self }

    // MARK: The writer

    @inlinable
    public func slot(at index: Int) -> VCPUSlot<Element> { run[index] }

    @inlinable
    public func reserveSlot(at index: Int) {}

    @inlinable
    public func publish(_ element: Element, at index: Int) {
        places[Int(element.id)].store(UInt32(index + 1), ordering: .relaxed)
        slot(at: index).publish(element)
        // ORDERING: release pairs with the acquire in `count`.
        publishedCount.store(index + 1, ordering: .releasing)
    }

    @inlinable
    public func find(id: UInt32) -> VCPUSlot<Element>? {
        let index = place(of: id)
        return index >= 0 ? slot(at: index) : nil
    }
}
