/// Slots by id: a table of pages of 256 that exist only where there are, or were, slots.
struct MemorySlotIDs: ~Copyable {
    private typealias Page = UnsafeMutablePointer<MemorySlot.Pointer?>

    private static let pageCount = 128
    private static let pageSize = 256
    private let pages: UnsafeMutablePointer<Page?>

    init() {
        pages = .allocate(capacity: Self.pageCount)
        pages.initialize(repeating: nil, count: Self.pageCount)
    }

    deinit {
        for index in 0..<Self.pageCount { pages[index]?.deallocate() }
        pages.deallocate()
    }

    /// The slot with an id below 32,768, or nil.
    subscript(id: UInt16) -> MemorySlot.Pointer? {
        get { pages[Int(id >> 8)]?[Int(id & 255)] }
        set {
            if let page = pages[Int(id >> 8)] {
                page[Int(id & 255)] = newValue
            } else if newValue != nil {
                let page = Page.allocate(capacity: Self.pageSize)
                page.initialize(repeating: nil, count: Self.pageSize)
                page[Int(id & 255)] = newValue
                pages[Int(id >> 8)] = page
            }
        }
    }
}
