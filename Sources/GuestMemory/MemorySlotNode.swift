import Glibc

/// A node of the order by guest frame: up to 32 entries, each a guest frame and what begins there, a slot or a node below.
///
/// The memory is 64-byte aligned raw memory of 1,088 bytes: a header, which only writers use, and two versions of the
/// entries, one for each slot set. A version is 32 keys, then 32 items. Unused keys are greater than every frame, so a
/// search needs no count.
struct MemorySlotNode: Equatable {
    /// Keys of a version, and items.
    static let capacity = 32
    /// The key of an entry that is not used. Greater than every frame of a slot, and still positive when signed.
    static let unusedKey = UInt64(Int64.max)

    private struct Header {
        /// The numbers of entries of both versions.
        var counts: (UInt32, UInt32) = (0, 0)
        var isLeaf = false
        /// Whether the node is in the list of changed nodes.
        var isChanged = false
        /// In that list, or in the list of free nodes.
        var next: MemorySlotNode?
    }

    private static let headerByteCount = 64
    private static let keysByteCount = capacity * MemoryLayout<UInt64>.stride
    private static let versionByteCount = 2 * keysByteCount

    private let memory: UnsafeMutableRawPointer

    @inline(__always)
    init(_ item: UnsafeMutableRawPointer) { memory = item }

    // MARK: Memory

    /// A node that no tree holds; nil if memory is short.
    static func allocate() -> MemorySlotNode? {
        guard let memory = aligned_alloc(64, headerByteCount + 2 * versionByteCount) else { return nil }
        memory.initializeMemory(as: Header.self, repeating: Header(), count: 1)
        for set in 0..<2 {
            let version = memory + headerByteCount + set * versionByteCount
            version.bindMemory(to: UInt64.self, capacity: capacity)
            (version + keysByteCount).bindMemory(to: UnsafeMutableRawPointer?.self, capacity: capacity)
        }
        return MemorySlotNode(memory)
    }

    func free() { Glibc.free(memory) }

    /// Makes a node that no tree holds an empty one of a set. The other version has no entries, but keys of any value.
    func clear(isLeaf: Bool, _ set: Int) {
        keys(set).update(repeating: Self.unusedKey, count: Self.capacity)
        header.pointee = Header(isLeaf: isLeaf)
    }

    // MARK: Readers

    // SAFETY, here and below: `allocate` made the memory as described above.

    @inline(__always)
    private func version(_ set: Int) -> UnsafeMutableRawPointer {
        memory + (Self.headerByteCount &+ set &* Self.versionByteCount)
    }

    /// The first frames of a set's version, in ascending order.
    @inline(__always)
    func keys(_ set: Int) -> UnsafeMutablePointer<UInt64> { version(set).assumingMemoryBound(to: UInt64.self) }

    /// What begins at these frames.
    @inline(__always)
    func items(_ set: Int) -> UnsafeMutablePointer<UnsafeMutableRawPointer?> {
        (version(set) + Self.keysByteCount).assumingMemoryBound(to: UnsafeMutableRawPointer?.self)
    }

    /// The node of an entry whose node is no leaf.
    @inline(__always)
    func child(_ index: Int, _ set: Int) -> MemorySlotNode { MemorySlotNode(items(set)[index].unsafelyUnwrapped) }

    /// The slot of an entry of a leaf.
    @inline(__always)
    func slot(_ index: Int, _ set: Int) -> MemorySlot.Pointer {
        items(set)[index].unsafelyUnwrapped.assumingMemoryBound(to: MemorySlot.self)
    }

    /// The number of keys up to and with `frame`, which is less than `unusedKey`.
    ///
    /// Without branches: three comparisons choose a cache line of eight keys, and there all are compared at once.
    @inline(__always)
    func rank(of frame: UInt64, _ set: Int) -> Int {
        let keys = keys(set)
        var line = keys[8] <= frame ? 8 : 0
        line &+= keys[16] <= frame ? 8 : 0
        line &+= keys[24] <= frame ? 8 : 0
        let eight = UnsafeRawPointer(keys + line).assumingMemoryBound(to: SIMD8<UInt64>.self).pointee
        // Both are positive when signed, so the sign of the difference is the comparison.
        let isBelow = (eight &- SIMD8(repeating: frame &+ 1)) &>> 63
        return line &+ Int(truncatingIfNeeded: isBelow.wrappedSum())
    }

    // MARK: Writers

    private var header: UnsafeMutablePointer<Header> { memory.assumingMemoryBound(to: Header.self) }

    /// The node as an item of another.
    var item: UnsafeMutableRawPointer { memory }

    var isLeaf: Bool { header.pointee.isLeaf }

    var isChanged: Bool {
        get { header.pointee.isChanged }
        nonmutating set { header.pointee.isChanged = newValue }
    }

    var next: MemorySlotNode? {
        get { header.pointee.next }
        nonmutating set { header.pointee.next = newValue }
    }

    /// The number of entries.
    func count(_ set: Int) -> Int { Int(set == 0 ? header.pointee.counts.0 : header.pointee.counts.1) }

    private func setCount(_ count: Int, _ set: Int) {
        if set == 0 { header.pointee.counts.0 = UInt32(count) } else { header.pointee.counts.1 = UInt32(count) }
    }

    /// Inserts an entry into a node that is not full.
    func insert(_ key: UInt64, _ item: UnsafeMutableRawPointer, at index: Int, _ set: Int) {
        let (keys, items, count) = (keys(set), items(set), count(set))
        assert(count < Self.capacity && index <= count)
        (keys + index + 1).update(from: keys + index, count: count - index)
        (items + index + 1).update(from: items + index, count: count - index)
        keys[index] = key
        items[index] = item
        setCount(count + 1, set)
    }

    func remove(at index: Int, _ set: Int) {
        let (keys, items, count) = (keys(set), items(set), count(set))
        assert(index < count)
        (keys + index).update(from: keys + index + 1, count: count - index - 1)
        (items + index).update(from: items + index + 1, count: count - index - 1)
        keys[count - 1] = Self.unusedKey
        setCount(count - 1, set)
    }

    /// Moves the entries from `index` on to the end of `other`, which has room for them.
    func move(from index: Int, to other: MemorySlotNode, _ set: Int) {
        let (count, end) = (count(set) - index, other.count(set))
        assert(end + count <= Self.capacity && isLeaf == other.isLeaf)
        (other.keys(set) + end).update(from: keys(set) + index, count: count)
        (other.items(set) + end).update(from: items(set) + index, count: count)
        (keys(set) + index).update(repeating: Self.unusedKey, count: count)
        setCount(index, set)
        other.setCount(end + count, set)
        if isLeaf { other.claim(from: end, set) }
    }

    /// Makes this the leaf of the slots from `index` on.
    func claim(from index: Int, _ set: Int) {
        for index in index..<count(set) { slot(index, set).leaf.pointee = self }
    }

    /// Makes the version of one set that of the other.
    func copy(from other: Int, to set: Int) {
        let count = count(other)
        keys(set).update(from: keys(other), count: Self.capacity)
        items(set).update(from: items(other), count: count)
        setCount(count, set)
    }
}
