import RCU
import SystemPackage

/// What a vCPU table holds.
public protocol VCPUTableElement: AnyObject, Sendable {
    /// The number its client chose.
    var id: UInt32 { get }
}

/// The vCPUs of one machine: they are added while others run, and stay until the machine ends.
///
/// Readers neither lock nor write memory they share. A reader sees all of a vCPU or none of it, and the count goes with the
/// elements: they are one thing.
public protocol VCPUTable<Element>: AnyObject, Sendable {
    associatedtype Element: VCPUTableElement

    /// How many vCPUs there are.
    var count: Int { get }

    /// Calls `body` with the element at `index`; not at all past the count.
    func withElement(at index: Int, _ body: (Element) -> Void)

    /// Calls `body` with the element whose id is `id`; not at all if there is none.
    ///
    /// Tries the index equal to the id first, as ids mostly are handed out in order.
    func withElement(id: UInt32, _ body: (Element) -> Void)

    /// Calls `body` with one element after the other until it returns false.
    ///
    /// A snapshot, taken in one read section: vCPUs created meanwhile do not appear.
    func forEach(_ body: (Element) -> Bool)

    /// Builds an element and publishes it at the end.
    ///
    /// - Parameter make: is given the index; nothing is published if it throws.
    /// - Throws: `EINVAL` if `id` or the count is at its maximum, `EEXIST` if `id` is taken, and what `make` throws.
    /// > Concurrency: one caller at a time; never waits for readers.
    func append(id: UInt32, _ make: (_ index: Int) throws(Errno) -> Element) throws(Errno) -> Element
}

extension VCPUTable {
    /// The index of `element`; nil if it is not in the table.
    public func index(of element: Element) -> Int? {
        var index = 0
        var found = false
        forEach { candidate in
            found = candidate === element
            if !found { index += 1 }
            return !found
        }
        return found ? index : nil
    }
}
