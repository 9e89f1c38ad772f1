import Glibc
import Synchronization

/// The slots of both sets of an address space by id: a table of pages of 256 ids that exist only where there are, or were,
/// slots.
///
/// An entry of a set changes only while that set is inactive. A page, once there, stays, and an empty one says the same as
/// none: adding it changes no set.
///
/// Owned by `AddressSpaceSlots`, which calls `deallocate`.
struct MemorySlotIDs {
    private typealias Page = UnsafeMutablePointer<MemorySlot.Pointer?>

    private static let pageCount = 128
    private static let pageSize = 256
    private let pages: UnsafeMutablePointer<Atomic<UnsafeMutablePointer<MemorySlot.Pointer?>?>>

    init() {
        pages = .allocate(capacity: Self.pageCount)
        for index in 0..<Self.pageCount { (pages + index).initialize(to: Atomic(nil)) }
    }

    func deallocate() {
        for index in 0..<Self.pageCount { free(pages[index].load(ordering: .relaxed)) }
        pages.deinitialize(count: Self.pageCount)
        pages.deallocate()
    }

    private func page(of id: UInt16) -> Page? {
        // ORDERING: acquire pairs with the release in `reserve`: who sees a page sees it cleared.
        pages[Int(id >> 8)].load(ordering: .acquiring)
    }

    /// Whether `replace` can add the id.
    func isReserved(_ id: UInt16) -> Bool { page(of: id) != nil }

    /// Makes `replace` possible for the id.
    ///
    /// - Returns: false if memory is short.
    /// > Concurrency: the slots lock is held.
    func reserve(_ id: UInt16) -> Bool {
        if isReserved(id) { return true }
        let size = MemoryLayout<MemorySlot.Pointer?>.stride
        guard let memory = calloc(2 * Self.pageSize, size) else { return false }
        // A cleared pointer is nil.
        let page = memory.bindMemory(to: MemorySlot.Pointer?.self, capacity: 2 * Self.pageSize)
        // ORDERING: release, see `page`.
        pages[Int(id >> 8)].store(page, ordering: .releasing)
        return true
    }

    /// The slot of a set with an id below 32,768, or nil.
    func find(_ id: UInt16, set: Int) -> MemorySlot.Pointer? { page(of: id)?[Int(id & 255) * 2 + set] }

    /// Changes the entry of a set. The id was reserved.
    /// > Concurrency: the slots lock is held and the set is inactive.
    func replace(_ id: UInt16, set: Int, with slot: MemorySlot.Pointer?) {
        page(of: id)![Int(id & 255) * 2 + set] = slot
    }
}
