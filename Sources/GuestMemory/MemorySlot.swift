import Addressing
import Glibc
import Synchronization

/// A range of guest frames backed by a range of host memory.
///
/// Lives in raw memory, as readers follow it without reference counting; immutable while a reader can reach it, except
/// for the bits of the dirty bitmap. Behind it in memory are its links for the trees of both slot sets, which change while
/// the slot does not: those of the active set are readers', those of the inactive one the writer's.
public struct MemorySlot: ~Copyable {
    /// The slot's number within its address space.
    public let id: UInt16
    /// The number of the address space (0 normal, 1 system management).
    public let addressSpace: UInt8
    /// The first guest frame.
    public private(set) var baseFrame: GuestFrameNumber
    /// The number of guest frames.
    public let pageCount: UInt64
    /// The host address of the first frame.
    public let hostAddress: UInt
    public private(set) var flags: Flags

    /// One bit a page, set when it was written; nil while the slot is not logged. In whole words, owned by whoever frees
    /// the slot last.
    var dirtyBitmap: UnsafeMutablePointer<UInt64>?
    /// The heap order of the trees; the same in both sets.
    let priority: UInt64

    typealias Pointer = UnsafeMutablePointer<MemorySlot>

    /// The slot's place in a tree of one set.
    struct Links {
        var left: Pointer?
        var right: Pointer?
        var parent: Pointer?
    }

    public struct Flags: OptionSet, Hashable, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Writes are recorded page by page. The C flag is `KVM_MEM_LOG_DIRTY_PAGES`.
        public static let logDirtyPages = Flags(rawValue: 1 << 0)
        /// Writes are device accesses. The C flag is `KVM_MEM_READONLY`.
        public static let readOnly = Flags(rawValue: 1 << 1)
        /// On its way out: readers must not use the slot. Set by the core only.
        public static let invalid = Flags(rawValue: 1 << 16)

        /// The flags a client may set.
        static let settable: Flags = [.logDirtyPages, .readOnly]
    }

    init(_ description: MemorySlotDescription, dirtyBitmap: UnsafeMutablePointer<UInt64>?) {
        id = description.id
        addressSpace = description.addressSpace
        baseFrame = description.baseFrame
        pageCount = description.pageCount
        hostAddress = description.hostAddress
        flags = description.flags
        self.dirtyBitmap = dirtyBitmap
        priority = Self.priority(of: description.id)
    }

    // MARK: Readers

    /// The frame behind the last one.
    @inline(__always)
    public var endFrame: GuestFrameNumber { baseFrame + pageCount }

    @inline(__always)
    public func contains(_ frame: GuestFrameNumber) -> Bool { frame.value &- baseFrame.value < pageCount }

    /// The host addresses of the slot.
    @inline(__always)
    public var hostRange: Range<UInt> {
        // Cannot overflow: requests with host addresses that wrap are refused.
        Range(uncheckedBounds: (hostAddress, hostAddress &+ UInt(pageCount << pageShift)))
    }

    /// The host address of a frame of the slot.
    @inline(__always)
    public func hostPointer(for frame: GuestFrameNumber) -> UnsafeMutableRawPointer {
        assert(contains(frame), "frame \(frame.value) is not in slot \(id)")
        let address = hostAddress &+ UInt((frame.value &- baseFrame.value) << pageShift)
        // SAFETY: host addresses of slots are page-aligned and may be 0 only if the client said so; then the access
        // faults as any other bad address of the client does.
        return UnsafeMutableRawPointer(bitPattern: address) ?? UnsafeMutableRawPointer(bitPattern: Self.nullPage)!
    }

    /// Records that a frame of the slot was, or is about to be, written. Does nothing while the slot is not logged.
    ///
    /// > Concurrency: inside the read section in which the slot was looked up, so that a change that waits for readers
    /// > also waits for the bit.
    ///
    /// - Parameter ring: where the vCPU that writes reports the page, if it was not marked already.
    @inline(__always)
    public func markDirty(frame: GuestFrameNumber, ring: DirtyRing? = nil) {
        guard let dirtyBitmap else { return }
        mark(frame, dirtyBitmap, ring)
    }

    @inline(never)
    private func mark(_ frame: GuestFrameNumber, _ dirtyBitmap: UnsafeMutablePointer<UInt64>, _ ring: DirtyRing?) {
        let page = frame.value &- baseFrame.value
        assert(page < pageCount, "frame \(frame.value) is not in slot \(id)")
        let word = Self.atomic(dirtyBitmap + Int(page / 64))
        let bit: UInt64 = 1 << (page % 64)
        if word.pointee.load(ordering: .relaxed) & bit != 0 { return }
        // ORDERING: release pairs with the acquiring exchange of `getDirtyLog`: whoever takes the bit sees what this
        // thread wrote to the page before.
        let old = word.pointee.bitwiseOr(bit, ordering: .releasing).oldValue
        if old & bit == 0, let ring { ring.push(slot: UInt32(addressSpace) << 16 | UInt32(id), offset: page) }
    }

    /// The slot's properties as a value that may leave the read section.
    public var description: MemorySlotDescription {
        MemorySlotDescription(
            id: id, addressSpace: addressSpace, baseFrame: baseFrame, pageCount: pageCount, hostAddress: hostAddress,
            flags: flags)
    }

    private static var nullPage: UInt { 0xdead_0000_0000_0000 }

    // MARK: Writers

    /// Gives the slot the place and flags of `description`, with no reader left.
    mutating func move(to description: MemorySlotDescription) {
        baseFrame = description.baseFrame
        flags = description.flags
    }

    /// The number of 64-bit words that hold one bit a page.
    static func bitmapWordCount(pageCount: UInt64) -> Int { Int((pageCount + 63) / 64) }

    /// Sets the bits of all pages in a bitmap that nobody else uses.
    static func fill(_ bitmap: UnsafeMutablePointer<UInt64>, pageCount: UInt64) {
        let count = bitmapWordCount(pageCount: pageCount)
        bitmap.update(repeating: ~0, count: count)
        if pageCount % 64 != 0 { bitmap[count - 1] = 1 << (pageCount % 64) - 1 }
    }

    @inline(__always)
    static func atomic(_ word: UnsafeMutablePointer<UInt64>) -> UnsafeMutablePointer<Atomic<UInt64>> {
        // SAFETY: `Atomic<UInt64>` has the size and alignment of `UInt64`; the words are accessed as atomics only.
        UnsafeMutableRawPointer(word).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// Scatters the numbers, which clients count up from 0 (the finaliser of SplitMix64).
    private static func priority(of id: UInt16) -> UInt64 {
        var z = (UInt64(id) &+ 1) &* 0x9e37_79b9_7f4a_7c15
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

extension UnsafeMutablePointer where Pointee == MemorySlot {
    /// Links by frame for two sets, links by host address for two sets, greatest host ends for two sets.
    fileprivate static var byteCount: Int {
        MemoryLayout<MemorySlot>.stride + 4 * MemoryLayout<MemorySlot.Links>.stride + 2 * MemoryLayout<UInt>.stride
    }

    /// Makes a slot that no set holds; nil if memory is short.
    static func make(_ slot: consuming MemorySlot) -> Self? {
        guard let memory = aligned_alloc(64, (byteCount + 63) & ~63) else { return nil }
        let pointer = memory.bindMemory(to: MemorySlot.self, capacity: 1)
        pointer.initialize(to: slot)
        let links = memory + MemoryLayout<MemorySlot>.stride
        links.initializeMemory(as: MemorySlot.Links.self, repeating: MemorySlot.Links(), count: 4)
        (links + 4 * MemoryLayout<MemorySlot.Links>.stride).initializeMemory(as: UInt.self, repeating: 0, count: 2)
        return pointer
    }

    /// Frees a slot that no set holds and no reader can reach; its bitmap is the caller's.
    func free() {
        deinitialize(count: 1)
        Glibc.free(self)
    }

    // SAFETY, of all three: `make` placed them behind the slot, whose stride is a multiple of their alignment.

    /// The slot's links in a set's (0 or 1) tree by guest frame.
    @inline(__always)
    func links(_ set: Int) -> UnsafeMutablePointer<MemorySlot.Links> {
        (UnsafeMutableRawPointer(self) + MemoryLayout<MemorySlot>.stride)
            .assumingMemoryBound(to: MemorySlot.Links.self) + set
    }

    /// The slot's links in a set's tree by host address.
    @inline(__always)
    func hostLinks(_ set: Int) -> UnsafeMutablePointer<MemorySlot.Links> { links(set) + 2 }

    /// The greatest end of host addresses in the subtree of which the slot is the root.
    @inline(__always)
    func greatestHostEnd(_ set: Int) -> UnsafeMutablePointer<UInt> {
        UnsafeMutableRawPointer(links(4)).assumingMemoryBound(to: UInt.self) + set
    }
}

/// A memory slot's properties, without the slot.
public struct MemorySlotDescription: Hashable, Sendable {
    public var id: UInt16
    public var addressSpace: UInt8
    public var baseFrame: GuestFrameNumber
    public var pageCount: UInt64
    public var hostAddress: UInt
    public var flags: MemorySlot.Flags

    public init(
        id: UInt16, addressSpace: UInt8, baseFrame: GuestFrameNumber, pageCount: UInt64, hostAddress: UInt,
        flags: MemorySlot.Flags
    ) {
        self.id = id
        self.addressSpace = addressSpace
        self.baseFrame = baseFrame
        self.pageCount = pageCount
        self.hostAddress = hostAddress
        self.flags = flags
    }

    /// The guest frames of the slot.
    public var frames: Range<GuestFrameNumber> { baseFrame..<baseFrame + pageCount }
}
