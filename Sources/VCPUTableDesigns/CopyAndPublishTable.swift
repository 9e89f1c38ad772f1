import RCU
import Synchronization
import SystemPackage
import VCPUTables

// The table as a block of memory that is copied to grow.
//
// Invariants:
// 1. A reader loads the pointer to the block once in its read section (acquire), and takes count and elements from that
//    block. The writer fills a block before it publishes it (release).
// 2. Where a block has room, an element is written before the count that covers it (release; readers: acquire).
// 3. The writer frees the block it replaced by a callback after a grace period, and never waits.
// 4. Room grows with the count, not with the maximum.

/// A vCPU table that readers enter with RCU: the seed's design.
public final class CopyAndPublishTable<Element: VCPUTableElement>: VCPUSlotTable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: blocks are reached through an RCU pointer and hold atomics.

    @usableFromInline let current: RCUPointer<TableBlock>
    private let memory: TableMemory
    private let growth: TableGrowth
    public let maximumCount: Int
    public let maximumID: UInt32

    /// - Throws: `ENOMEM`.
    public init(
        maximumCount: Int, maximumID: UInt32, growth: TableGrowth, memory: TableMemory = .system
    ) throws(Errno) {
        self.maximumCount = maximumCount
        self.maximumID = maximumID
        self.growth = growth
        self.memory = memory
        current = RCUPointer(try TableBlock.allocate(capacity: 0, copying: nil, memory))
    }

    deinit {
        releaseElements()
        memory.free(UnsafeMutableRawPointer(block))
    }

    // MARK: Readers

    @inlinable @inline(__always)
    func read<Result>(_ body: (_ run: VCPUSlotRun<Element>, _ count: Int) -> Result) -> Result {
        ThreadRCU.withReadSection { _ in
            let block = block
            // ORDERING: acquire pairs with the release in `publish`.
            return body(TableBlock.run(block, of: Element.self), block.pointee.count.load(ordering: .acquiring))
        }
    }

    /// > Concurrency: inside a read section, or the writer.
    @inlinable @inline(__always)
    var block: TableBlock.Pointer {
        // SAFETY: the pointer is set when the table is created and never nil.
        current.load().unsafelyUnwrapped
    }

    @inlinable
    public var count: Int { read { _, count in count } }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result? {
        read { run, count in run.withElement(at: index, count: count, body) }
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result? {
        read { run, count in run.withElement(id: id, count: count, body) }
    }

    @inlinable @inline(__always)
    public func forEachIndexed(_ body: (_ index: Int, Element) -> Bool) {
        _ = read { run, count in run.forEach(count: count, body) }
    }

    public func makeReader() -> CopyAndPublishTable { self }

    // MARK: The writer

    @inlinable
    public func slot(at index: Int) -> VCPUSlot<Element> { TableBlock.run(block, of: Element.self)[index] }

    public func reserveSlot(at index: Int) throws(Errno) {
        let old = block
        guard let new = try makeLargerBlock(for: index) else { return }
        current.publish(new)
        TableBlock.retire(old, memory)
    }

    /// A copy of the block that has room for `index`; nil if the block has.
    func makeLargerBlock(for index: Int) throws(Errno) -> TableBlock.Pointer? {
        let old = block
        guard index >= old.pointee.capacity else { return nil }
        let capacity = growth.capacity(for: index + 1, maximum: maximumCount)
        return try TableBlock.allocate(capacity: capacity, copying: old, memory)
    }

    public func publish(_ element: Element, at index: Int) {
        slot(at: index).publish(element)
        // ORDERING: release pairs with the acquire in `read`.
        block.pointee.count.store(index + 1, ordering: .releasing)
    }
}
