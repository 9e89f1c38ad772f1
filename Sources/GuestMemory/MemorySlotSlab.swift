import Glibc

/// Memory for sixteen slots in one piece, so that slots lie close together: a look-up by frame reads one line of a slot, and
/// the fewer pages these lines are on, the faster.
///
/// Slabs with room for a slot are in a list, which is its owner's (`MemorySlotAllocator`).
struct MemorySlotSlab: Equatable {
    private static let slotCount = 16
    private static let headerByteCount = 64

    private struct Header {
        /// One bit for each place: whether it is free.
        var free = UInt16.max
        var previous: MemorySlotSlab?
        var next: MemorySlotSlab?
    }

    private let memory: UnsafeMutableRawPointer

    // SAFETY, below: `allocate` made the memory as a header and sixteen places behind it.

    private var header: UnsafeMutablePointer<Header> { memory.assumingMemoryBound(to: Header.self) }

    /// A slab without slots, in no list; nil if memory is short.
    static func allocate() -> MemorySlotSlab? {
        guard let memory = aligned_alloc(64, headerByteCount + slotCount * MemorySlot.Pointer.byteCount) else {
            return nil
        }
        memory.initializeMemory(as: Header.self, repeating: Header(), count: 1)
        for place in 0..<slotCount {
            (memory + headerByteCount + place * MemorySlot.Pointer.byteCount)
                .bindMemory(to: MemorySlot.self, capacity: 1)
        }
        return MemorySlotSlab(memory: memory)
    }

    /// The slab that holds a slot.
    init(of slot: MemorySlot.Pointer) {
        memory =
            UnsafeMutableRawPointer(slot)
            - (Self.headerByteCount + Int(slot.pointee.place) * MemorySlot.Pointer.byteCount)
    }

    private init(memory: UnsafeMutableRawPointer) { self.memory = memory }

    func free() { Glibc.free(memory) }

    var isFull: Bool { header.pointee.free == 0 }
    var isEmpty: Bool { header.pointee.free == .max }

    /// A place of a slab that is not full, and its number.
    func takePlace() -> (slot: MemorySlot.Pointer, place: UInt8) {
        let place = header.pointee.free.trailingZeroBitCount
        header.pointee.free &= ~(1 << place)
        let slot = memory + Self.headerByteCount + place * MemorySlot.Pointer.byteCount
        return (slot.assumingMemoryBound(to: MemorySlot.self), UInt8(place))
    }

    func givePlace(_ place: UInt8) { header.pointee.free |= 1 << place }

    // MARK: The list

    var isOnly: Bool { header.pointee.previous == nil && header.pointee.next == nil }

    /// Puts a slab that is in no list in front of another.
    func link(before first: inout MemorySlotSlab?) {
        header.pointee.next = first
        first?.header.pointee.previous = self
        first = self
    }

    /// Takes a slab out of a list.
    func unlink(from first: inout MemorySlotSlab?) {
        let (previous, next) = (header.pointee.previous, header.pointee.next)
        if let previous { previous.header.pointee.next = next } else { first = next }
        next?.header.pointee.previous = previous
        (header.pointee.previous, header.pointee.next) = (nil, nil)
    }
}
