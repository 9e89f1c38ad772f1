import SystemPackage

/// What a vCPU table holds.
public protocol VCPUTableElement: AnyObject, Sendable {
    /// The number its client chose.
    var id: UInt32 { get }
}

/// The reading half of a vCPU table.
///
/// Readers neither lock nor write memory they share. A reader sees all of a vCPU or none of it, and the count goes with the
/// elements: an element is reachable only below the count. Elements live as long as the table.
public protocol VCPUTableReader<Element>: AnyObject {
    associatedtype Element: VCPUTableElement

    /// How many vCPUs have been created; parked ones are among them.
    var count: Int { get }

    /// Calls `body` with the element at `index`.
    /// - Returns: its result; nil past the count, or if the element is parked.
    @discardableResult
    func withElement<Result>(at index: Int, _ body: (Element) -> Result) -> Result?

    /// Calls `body` with the element whose id is `id`.
    ///
    /// Fast where the ids are handed out in order; some designs search the elements otherwise.
    /// - Returns: its result; nil if there is no such element, or it is parked.
    @discardableResult
    func withElement<Result>(id: UInt32, _ body: (Element) -> Result) -> Result?

    /// Calls `body` with one index and element after the other, but parked ones, until it returns false.
    ///
    /// A snapshot: vCPUs created meanwhile do not appear. One that is parked or comes back meanwhile may or may not.
    func forEachIndexed(_ body: (_ index: Int, Element) -> Bool)
}

extension VCPUTableReader {
    /// Calls `body` with one element after the other until it returns false; see ``forEachIndexed(_:)``.
    @inlinable @inline(__always)
    public func forEach(_ body: (Element) -> Bool) {
        forEachIndexed { _, element in body(element) }
    }

    /// The index of `element`; nil if it is not in the table, or parked.
    @inlinable
    public func index(of element: Element) -> Int? {
        var found: Int?
        forEachIndexed { index, candidate in
            if candidate === element { found = index }
            return found == nil
        }
        return found
    }
}

/// The vCPUs of one machine: they are added while others run, and stay until the machine ends.
///
/// The table itself is a reader for any thread. A thread that looks up often, as a vCPU's does, makes a reader of its own:
/// in some designs that is cheaper.
public protocol VCPUTable<Element>: VCPUTableReader, Sendable {
    associatedtype Reader: VCPUTableReader where Reader.Element == Element

    /// A reader for one thread at a time.
    func makeReader() -> Reader

    /// Builds an element and publishes it at the end.
    ///
    /// - Parameter make: is given the index; nothing is published if it throws.
    /// - Throws: `EINVAL` if `id` or the count is at its maximum, `EEXIST` if `id` is taken, also by a parked element,
    ///   `ENOMEM`, and what `make` throws.
    /// > Concurrency: one writer at a time; never waits for readers.
    func append(id: UInt32, _ make: (_ index: Int) throws(Errno) -> Element) throws(Errno) -> Element

    /// Takes an element out of readers' sight: its vCPU was unplugged. It keeps its slot, and is not freed.
    ///
    /// Readers that have found it before go on with it, so its vCPU must not run.
    /// - Throws: `ENOENT` if there is no such element, or it is parked.
    /// > Concurrency: as `append`.
    func park(id: UInt32) throws(Errno)

    /// Brings a parked element back into its slot: its vCPU was plugged in again.
    ///
    /// - Parameter prepare: makes the element ready before readers see it; it stays parked if this throws.
    /// - Throws: `ENOENT` if no element with that id is parked, and what `prepare` throws.
    /// > Concurrency: as `append`.
    func unpark(id: UInt32, _ prepare: (Element) throws(Errno) -> Void) throws(Errno) -> Element
}
