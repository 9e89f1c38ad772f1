import RCU
import SystemPackage

/// What the guest sees from one root region: the current flat view, for readers without locks, and its listeners.
///
/// Invariants:
///
/// 1. `current` points to a complete flat view that is never changed.
/// 2. A view is freed after it was replaced and a grace period of `ThreadRCU` has passed; inside a read section all that
///    `current` led to, regions and what they hold included, stays.
/// 3. Readers get the new view before the first listener hears of it. While an accelerator's map is not the new one yet, an
///    access it has no memory for is performed as the new view says, on memory too.
/// 4. When the commit of a change returns, no reader is inside a section that saw the old view: memory that the change took
///    away may be unmapped.
///
/// > Concurrency: lookups and accesses by any thread; listeners and changes by the topology's writer.
public final class AddressSpace: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `current` is an RCU pointer; the other variables are the writer's.

    public let name: String
    public let root: MemoryRegion
    /// Owns what it points to.
    private let current: RCUPointer<FlatView>
    /// Views that were published and replaced, to be freed after a grace period. The last one is the view before the change
    /// that is being committed.
    private var replaced: [UnsafeMutablePointer<FlatView>] = []
    private var listeners: [any MemoryListener] = []

    /// Shows what `root` shows; it may show it in other address spaces too.
    public init(_ name: String, root: MemoryRegion) {
        self.name = name
        self.root = root
        current = RCUPointer(Self.allocate(FlatView(rendering: root)))
        root.topology.register(self)
    }

    /// Readers and listeners keep the address space, so there are none.
    deinit {
        precondition(replaced.isEmpty, "an address space ends during its own change")
        if let view = current.load() { Self.free(view) }
    }

    /// Calls `body` with the current view in a read section, which delays changes: it must not block for long.
    /// > Concurrency: any thread.
    @available(*, noasync)
    public func withView<Result, Failure: Error>(
        _ body: (borrowing FlatView) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try ThreadRCU.withReadSection { section throws(Failure) in
            guard let view = current.load(in: section) else { fatalError("an address space without a view") }
            return try body(view.pointee)
        }
    }

    /// The current view, for as long as the caller likes.
    public var view: FlatView { withView { copy $0 } }

    // MARK: Listeners

    /// Adds a listener, which is told of all ranges.
    ///
    /// - Throws: what its commit throws; it is not added then.
    /// > Concurrency: the topology's writer, outside of transactions.
    public func add(_ listener: any MemoryListener) throws(Errno) {
        precondition(!root.topology.isInTransaction, "a listener is added in a transaction")
        try FlatViewDifference(from: FlatView([]), to: view).tell(listener)
        listeners.append(listener)
    }

    /// Removes a listener, which is told that all ranges go.
    ///
    /// - Throws: what its commit throws; it stays then.
    /// > Concurrency: the topology's writer, outside of transactions.
    public func remove(_ listener: any MemoryListener) throws(Errno) {
        precondition(!root.topology.isInTransaction, "a listener is removed in a transaction")
        try FlatViewDifference(from: view, to: FlatView([])).tell(listener)
        listeners.removeAll { $0 === listener }
    }

    // MARK: Changes

    /// Publishes the view that follows from the regions as they are now, and tells the listeners.
    ///
    /// - Returns: whether there was a change; the old view is then kept until ``retireViews(of:)``, as it is when this
    ///   throws.
    /// - Throws: the first error of a listener; the earlier view is then published again.
    func update() throws(Errno) -> Bool {
        let new = FlatView(rendering: root)
        let old = view
        guard !new.isSame(as: old) else { return false }
        publish(new)
        let difference = FlatViewDifference(from: old, to: new)
        for (index, listener) in listeners.enumerated() {
            do throws(Errno) {
                try difference.tell(listener)
            } catch {
                goBack(to: old, from: new, listeners[..<index])
                throw error
            }
        }
        return true
    }

    /// Takes a successful update back.
    func revert() {
        guard let old = replaced.last?.pointee else { return }
        goBack(to: old, from: view, listeners[...])
    }

    private func goBack(to old: FlatView, from new: FlatView, _ listeners: ArraySlice<any MemoryListener>) {
        publish(old)
        let difference = FlatViewDifference(from: new, to: old)
        // A listener that cannot go back has kept what it could; the error that is reported is the first.
        for listener in listeners.reversed() { try? difference.tell(listener) }
    }

    private func publish(_ view: FlatView) {
        if let old = current.exchange(Self.allocate(view)) { replaced.append(old) }
    }

    /// Waits until nobody reads replaced views any more, and frees them.
    static func retireViews(of spaces: [AddressSpace]) {
        guard spaces.contains(where: { !$0.replaced.isEmpty }) else { return }
        ThreadRCU.domain.synchronize()
        for space in spaces {
            for view in space.replaced { free(view) }
            space.replaced = []
        }
    }

    private static func allocate(_ view: FlatView) -> UnsafeMutablePointer<FlatView> {
        let pointer = UnsafeMutablePointer<FlatView>.allocate(capacity: 1)
        pointer.initialize(to: view)
        return pointer
    }

    private static func free(_ view: UnsafeMutablePointer<FlatView>) {
        // SAFETY: made by `allocate`, and invariant 2.
        view.deinitialize(count: 1)
        view.deallocate()
    }
}
