import Synchronization

/// One place of a vCPU table: an element, present or parked.
///
/// The word is 0 or the element's address, whose lowest bit says that it is parked. The table retains each element once, in
/// its word, until the table ends, so readers count no references.
public struct VCPUSlot<Element: VCPUTableElement> {
    @usableFromInline static var parkedBit: UInt {
        @inlinable @inline(__always) get { 1 }
    }

    @usableFromInline let word: UnsafeMutablePointer<Atomic<UInt>>

    /// - Parameter word: zeroed memory of the table, 8-byte aligned.
    @inlinable @inline(__always)
    public init(_ word: UnsafeMutableRawPointer) {
        // SAFETY: `Atomic<UInt>` has the size and layout of `UInt`.
        self.word = word.assumingMemoryBound(to: Atomic<UInt>.self)
    }

    /// The bytes of a slot.
    @inlinable @inline(__always)
    public static var byteCount: Int { 8 }

    // MARK: Readers

    /// Calls `body` with the element; returns nil if it is parked.
    ///
    /// > Concurrency: the slot is below a count that was read before.
    @inlinable @inline(__always)
    public func withElement<Result>(_ body: (Element) -> Result) -> Result? {
        // ORDERING: acquire pairs with the releases below: the element is complete.
        let value = word.pointee.load(ordering: .acquiring)
        return value & Self.parkedBit == 0 ? Self.withElement(value, body) : nil
    }

    /// SAFETY: `value` is the address of an element, which the table keeps alive.
    @inlinable @inline(__always)
    static func withElement<Result>(_ value: UInt, _ body: (Element) -> Result) -> Result {
        Unmanaged<Element>.fromOpaque(UnsafeRawPointer(bitPattern: value).unsafelyUnwrapped)
            ._withUnsafeGuaranteedRef(body)
    }

    // MARK: The writer

    /// Whether the element is parked.
    @inlinable
    public var isParked: Bool { word.pointee.load(ordering: .relaxed) & Self.parkedBit != 0 }

    /// The element, parked or not.
    @inlinable
    public var element: Element? {
        let value = word.pointee.load(ordering: .relaxed) & ~Self.parkedBit
        return value == 0 ? nil : Self.withElement(value) { $0 }
    }

    @inlinable
    public func publish(_ element: Element) {
        // ORDERING: release pairs with the acquire in `withElement`.
        word.pointee.store(UInt(bitPattern: Unmanaged.passRetained(element).toOpaque()), ordering: .releasing)
    }

    @inlinable
    func setParked(_ isParked: Bool) {
        let value = word.pointee.load(ordering: .relaxed) & ~Self.parkedBit
        // ORDERING: release pairs with the acquire in `withElement`.
        word.pointee.store(isParked ? value | Self.parkedBit : value, ordering: .releasing)
    }

    /// Gives back the table's reference, when nobody reads any more.
    func release() {
        let value = word.pointee.exchange(0, ordering: .relaxed) & ~Self.parkedBit
        if let pointer = UnsafeRawPointer(bitPattern: value) { Unmanaged<Element>.fromOpaque(pointer).release() }
    }
}

/// Slots one behind the other.
public struct VCPUSlotRun<Element: VCPUTableElement> {
    public let base: UnsafeMutableRawPointer

    @inlinable @inline(__always)
    public init(_ base: UnsafeMutableRawPointer) { self.base = base }

    @inlinable @inline(__always)
    public subscript(index: Int) -> VCPUSlot<Element> { VCPUSlot(base + index &* VCPUSlot<Element>.byteCount) }

    /// `VCPUTableReader.withElement(at:_:)` among `count` slots.
    @inlinable @inline(__always)
    public func withElement<Result>(at index: Int, count: Int, _ body: (Element) -> Result) -> Result? {
        guard UInt(bitPattern: index) < UInt(bitPattern: count) else { return nil }
        return self[index].withElement(body)
    }

    /// `VCPUTableReader.withElement(id:_:)` among `count` slots.
    @inlinable @inline(__always)
    public func withElement<Result>(id: UInt32, count: Int, _ body: (Element) -> Result) -> Result? {
        if Int(id) < count {
            let result: Result?? = self[Int(id)].withElement { $0.id == id ? body($0) : nil }
            if let result, let result { return result }
        }
        guard let index = scan(for: id, count: count) else { return nil }
        return self[index].withElement(body)
    }

    /// The index of the element with that id, unless it is parked.
    /// - Complexity: linear in `count`.
    @inlinable @inline(never)
    public func scan(for id: UInt32, count: Int) -> Int? {
        for index in 0..<count where self[index].withElement({ $0.id == id }) ?? false { return index }
        return nil
    }

    /// Calls `body` as `VCPUTableReader.forEachIndexed`, with indices that begin at `first`.
    /// - Returns: false if `body` ended it.
    @inlinable @inline(__always)
    public func forEach(count: Int, first: Int = 0, _ body: (_ index: Int, Element) -> Bool) -> Bool {
        for index in 0..<count where !(self[index].withElement { body(first + index, $0) } ?? true) { return false }
        return true
    }
}
