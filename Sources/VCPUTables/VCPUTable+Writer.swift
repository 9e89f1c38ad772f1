import SystemPackage

/// A table in terms of its slots: what a design gives, for its writer to be the same in all of them.
///
/// > Concurrency: one writer at a time.
public protocol VCPUSlotTable: VCPUTable {
    /// How many elements there may be.
    var maximumCount: Int { get }
    /// The first id that is too large.
    var maximumID: UInt32 { get }

    /// The slot at `index`, below the count or reserved.
    func slot(at index: Int) -> VCPUSlot<Element>

    /// Makes room for a slot at `index`, which is the count.
    /// - Throws: `ENOMEM`; readers notice nothing then.
    func reserveSlot(at index: Int) throws(Errno)

    /// Puts `element` into the reserved slot at `index` and lets readers see it.
    func publish(_ element: Element, at index: Int)

    /// The slot of the element with that id, parked or not.
    func find(id: UInt32) -> VCPUSlot<Element>?
}

extension VCPUSlotTable {
    @inlinable
    public func append(id: UInt32, _ make: (_ index: Int) throws(Errno) -> Element) throws(Errno) -> Element {
        let index = count
        guard id < maximumID, index < maximumCount else { throw .invalidArgument }
        guard find(id: id) == nil else { throw .fileExists }
        try reserveSlot(at: index)
        let element = try make(index)
        precondition(element.id == id, "a vCPU with another id than asked for")
        publish(element, at: index)
        return element
    }

    @inlinable
    public func park(id: UInt32) throws(Errno) {
        guard let slot = find(id: id), !slot.isParked else { throw .noSuchFileOrDirectory }
        slot.setParked(true)
    }

    @inlinable
    public func unpark(id: UInt32, _ prepare: (Element) throws(Errno) -> Void) throws(Errno) -> Element {
        guard let slot = find(id: id), slot.isParked, let element = slot.element else { throw .noSuchFileOrDirectory }
        try prepare(element)
        slot.setParked(false)
        return element
    }

    /// Gives back all elements, when the table ends.
    public func releaseElements() {
        for index in 0..<count { slot(at: index).release() }
    }

    /// - Complexity: linear in the count, unless the element is where its id says.
    @inlinable
    public func find(id: UInt32) -> VCPUSlot<Element>? {
        let count = count
        if id < count, slot(at: Int(id)).element?.id == id { return slot(at: Int(id)) }
        for index in 0..<count where slot(at: index).element?.id == id { return slot(at: index) }
        return nil
    }
}
