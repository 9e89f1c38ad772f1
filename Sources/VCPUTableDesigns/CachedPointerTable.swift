import Host
import RCU
import Synchronization
import SystemPackage
import VCPUTables

// The table as a block that moves to grow, with a copy of its address in each vCPU.
//
// Invariants:
// 1. A vCPU's reader uses the block it caches. When the table moves, the writer publishes the larger block and then sets
//    every reader's `isMoveRequested`; a lookup looks at that flag first, so none that begins after the writer has returned
//    uses the old block.
// 2. A block counts its users: the table while the block is current, and the readers that cache it. Whoever is last frees
//    it, so the writer never waits. Other threads go through the table itself, in a read section, so it is freed by a
//    callback after a grace period.
// 3. A reader does not move while it is iterating; lookups inside the iteration then go through the table.
// 4. A reader takes the new block, and the list of readers changes, under `lock`; whoever holds it does not wait.

/// A vCPU table whose vCPUs cache where it is and are asked to look again after it has moved.
public final class CachedPointerTable<Element: VCPUTableElement>: VCPUSlotTable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: blocks hold atomics; `readers` is guarded by `lock`.

    @usableFromInline let shared: CopyAndPublishTable<Element>
    private let memory: TableMemory
    private let lock = FutexLock()
    /// They take themselves off when they end.
    private var readers: [Unmanaged<CachedPointerReader<Element>>] = []

    /// - Throws: `ENOMEM`.
    public init(maximumCount: Int, maximumID: UInt32, memory: TableMemory = .system) throws(Errno) {
        self.memory = memory
        shared = try CopyAndPublishTable(
            maximumCount: maximumCount, maximumID: maximumID, growth: .doubling, memory: memory)
    }

    public var maximumCount: Int { shared.maximumCount }
    public var maximumID: UInt32 { shared.maximumID }

    // MARK: Threads that are no vCPUs

    @inlinable
    public var count: Int { shared.count }

    @inlinable
    @discardableResult
    public func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result? {
        outside.withElement(at: index, body)
    }

    @inlinable
    @discardableResult
    public func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result? {
        outside.withElement(id: id, body)
    }

    @inlinable
    public func forEachIndexed(_ body: (_ index: Int, Element) -> Bool) { outside.forEachIndexed(body) }

    /// The table for those that cache nothing.
    @inlinable @inline(__always)
    var outside: CopyAndPublishTable<Element> { shared }

    // MARK: vCPUs

    public func makeReader() -> CachedPointerReader<Element> {
        lock.withLock {
            let reader = CachedPointerReader(self, takeBlock())
            readers.append(Unmanaged.passUnretained(reader))
            return reader
        }
    }

    /// The current block, with one more user. The lock is held.
    private func takeBlock() -> TableBlock.Pointer {
        let block = shared.block
        block.pointee.users.wrappingAdd(1, ordering: .relaxed)
        return block
    }

    fileprivate func leave(_ block: TableBlock.Pointer) {
        // ORDERING: release, and acquire for the last: all accesses of users happen before the block is freed.
        if block.pointee.users.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0 {
            TableBlock.retire(block, memory)
        }
    }

    fileprivate func move(from old: TableBlock.Pointer) -> TableBlock.Pointer {
        let block = lock.withLock { takeBlock() }
        leave(old)
        return block
    }

    fileprivate func remove(_ reader: CachedPointerReader<Element>, _ block: TableBlock.Pointer) {
        lock.withLock { readers.removeAll { $0.toOpaque() == Unmanaged.passUnretained(reader).toOpaque() } }
        leave(block)
    }

    // MARK: The writer

    @inlinable
    public func slot(at index: Int) -> VCPUSlot<Element> { shared.slot(at: index) }

    public func reserveSlot(at index: Int) throws(Errno) {
        let old = shared.block
        guard let new = try shared.makeLargerBlock(for: index) else { return }
        lock.withLock {
            shared.current.publish(new)
            for reader in readers { reader._withUnsafeGuaranteedRef { $0.requestMove() } }
        }
        leave(old)
    }

    public func publish(_ element: Element, at index: Int) { shared.publish(element, at: index) }
}

/// A vCPU's view of a `CachedPointerTable`.
///
/// > Concurrency: one thread at a time.
public final class CachedPointerReader<Element: VCPUTableElement>: VCPUTableReader {
    @usableFromInline let table: CachedPointerTable<Element>
    @usableFromInline var block: TableBlock.Pointer
    /// The "move" request.
    @usableFromInline let isMoveRequested = Atomic<Bool>(false)
    /// How many iterations are in progress.
    @usableFromInline var iterationCount = 0

    init(_ table: CachedPointerTable<Element>, _ block: TableBlock.Pointer) {
        self.table = table
        self.block = block
    }

    deinit { table.remove(self, block) }

    func requestMove() {
        // ORDERING: release pairs with the acquire in `isCurrent`: the new block is seen.
        isMoveRequested.store(true, ordering: .releasing)
    }

    /// Follows a request to move.
    /// - Returns: false if the table has moved and the reader cannot follow while it is iterating.
    @inlinable @inline(__always)
    func follow() -> Bool {
        // ORDERING: acquire pairs with the release in `requestMove`.
        !isMoveRequested.load(ordering: .acquiring) || move()
    }

    @usableFromInline @inline(never)
    func move() -> Bool {
        guard iterationCount == 0 else { return false }
        // Before the block is read: a move after that sets the flag again.
        // ORDERING: the lock in `table.move` orders the rest.
        isMoveRequested.store(false, ordering: .relaxed)
        block = table.move(from: block)
        return true
    }

    @inlinable @inline(__always)
    var run: VCPUSlotRun<Element> { TableBlock.run(block, of: Element.self) }

    @inlinable @inline(__always)
    var cachedCount: Int {
        // ORDERING: acquire pairs with the release in `CachedPointerTable.publish`.
        block.pointee.count.load(ordering: .acquiring)
    }

    @inlinable @inline(__always)
    var outside: CopyAndPublishTable<Element> { table.outside }

    @inlinable
    public var count: Int { follow() ? cachedCount : outside.count }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result? {
        guard follow() else { return outside.withElement(at: index, body) }
        return run.withElement(at: index, count: cachedCount, body)
    }

    @inlinable @inline(__always)
    @discardableResult
    public func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result? {
        guard follow() else { return outside.withElement(id: id, body) }
        return run.withElement(id: id, count: cachedCount, body)
    }

    @inlinable @inline(__always)
    public func forEachIndexed(_ body: (_ index: Int, Element) -> Bool) {
        guard follow() else { return outside.forEachIndexed(body) }
        iterationCount &+= 1
        defer { iterationCount &-= 1 }
        _ = run.forEach(count: cachedCount, body)
    }
}
