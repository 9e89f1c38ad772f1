import Host
import Synchronization
import SystemPackage

// The table as one array with room for every vCPU there may be, in address space and not in memory.
//
// Invariants:
// 1. The array never moves: 8 bytes of address space for each possible vCPU are reserved when the machine is created. The
//    kernel gives memory when a slot is first written, a page for each 512, so a machine pays for the vCPUs it has.
// 2. A slot is written before the count that covers it (release), and readers load the count first (acquire): an element
//    is reachable exactly when the count says so.
// 3. Nothing is freed while the table lives, so readers need no read section, and the writer never waits or allocates.

/// The vCPU table of the product: sized when the machine is created.
public final class ReservedTable<Element: VCPUTableElement>: VCPUSlotTable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the mapping does not change, its words are atomics.

    @usableFromInline let run: VCPUSlotRun<Element>
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
        let (byteCount, overflow) = maximumCount.multipliedReportingOverflow(by: VCPUSlot<Element>.byteCount)
        guard !overflow else { throw .noMemory }
        memory = try .anonymous(byteCount: byteCount)
        run = VCPUSlotRun(memory.baseAddress)
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
        run.withElement(id: id, count: count, body)
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
    public func publish(count: Int) {
        // ORDERING: release pairs with the acquire in `count`.
        publishedCount.store(count, ordering: .releasing)
    }
}
