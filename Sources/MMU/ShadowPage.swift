import Glibc
import Synchronization

/// A shadow page: what stands for a table of the guest, or for a part of one.
///
/// Raw memory, because walkers follow it without reference counting: this header, two words for walkers, 512 entries, and a
/// copy of the guest's entries that these were made from, which direct pages do without. Walkers read the entries, `synced`
/// and `linked`; all else is the lock's.
struct ShadowPage: ~Copyable {
    typealias Pointer = UnsafeMutablePointer<ShadowPage>

    let role: ShadowRole
    /// The frame of the guest's table; of a direct page the first frame it maps.
    let frame: UInt64

    /// The next page of the same frame.
    var nextOfFrame: Pointer?
    /// Neighbours in the order in which pages are recycled. Behind the page's end, `newer` links pages to be freed.
    var older: Pointer?
    var newer: Pointer?
    /// One bit for each entry that is not empty.
    var used = InlineArray<8, UInt64>(repeating: 0)
    var usedCount = 0
    /// Comparisons in a row in which the guest's table had not changed.
    var cleanSyncCount = 0
    /// Stores to the guest's table are caught.
    var isTracked = false
    /// Caught stores since the page was last used.
    var storeCount = 0
    /// Walkers may start here.
    var isRoot = false
    /// Used since it was last considered for recycling.
    var wasUsed = true
    /// In use by the thread that holds the lock.
    var isPinned = false

    /// The value of `synced` that no requirement exceeds.
    static var always: UInt64 { .max }
    static var entryCount: Int { 512 }
    /// The address of an entry's page, with its index in the bits that alignment leaves free, names the entry.
    static var alignment: Int { 512 }

    /// Apart from the header, which is accessed as a whole, and on a cache line of their own.
    fileprivate static var wordsOffset: Int { 448 }
    private static var headerByteCount: Int { 512 }
    private static var tableByteCount: Int { 4096 }

    private init(role: ShadowRole, frame: UInt64) {
        self.role = role
        self.frame = frame
    }

    /// Makes an empty page; nil if memory is short.
    static func make(role: ShadowRole, frame: UInt64, synced: UInt64) -> Pointer? {
        assert(MemoryLayout<ShadowPage>.size <= wordsOffset)
        let byteCount = headerByteCount + tableByteCount * (role.isDirect ? 1 : 2)
        guard let memory = aligned_alloc(alignment, byteCount) else { return nil }
        // The guest's entries are written before they are read.
        memset(memory + headerByteCount, 0, tableByteCount)
        let page = memory.bindMemory(to: ShadowPage.self, capacity: 1)
        page.initialize(to: ShadowPage(role: role, frame: frame))
        page.synced.initialize(to: Atomic(synced))
        page.linked.initialize(to: Atomic(0))
        return page
    }
}

extension UnsafeMutablePointer where Pointee == ShadowPage {
    /// Frees the page. > Concurrency: no walker can reach it.
    func free() {
        deinitialize(count: 1)
        Glibc.free(self)
    }

    @inline(__always)
    private func word(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        // SAFETY: `make` put two words there; they are accessed as atomics only.
        (UnsafeMutableRawPointer(self) + ShadowPage.wordsOffset + index * 8)
            .assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// The entries agree with what the guest's table held at some moment after the epoch took this value, or later;
    /// ``ShadowPage/always`` if they are kept in agreement.
    @inline(__always)
    var synced: UnsafeMutablePointer<Atomic<UInt64>> { word(0) }

    /// The epoch at which the page, not being new, last got another parent: leaves below it that are older may have been
    /// flushed when no walk could lead to them.
    @inline(__always)
    var linked: UnsafeMutablePointer<Atomic<UInt64>> { word(1) }

    /// The entry at `index`, below 512.
    @inline(__always)
    func entry(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        // SAFETY: `make` put 512 words behind the header; they are accessed as atomics only.
        (UnsafeMutableRawPointer(self) + 512 + index * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// What walkers see at `index`. > Concurrency: the lock is held.
    func value(_ index: Int) -> ShadowEntry { ShadowEntry(rawValue: entry(index).pointee.load(ordering: .relaxed)) }

    /// Makes `value` visible. > Concurrency: the lock is held.
    func set(_ index: Int, _ value: ShadowEntry) {
        // ORDERING: release pairs with the walkers' acquire: who follows a link sees the page it leads to.
        entry(index).pointee.store(value.rawValue, ordering: .releasing)
        let bit: UInt64 = 1 << UInt64(index & 63)
        let isUsed = pointee.used[index >> 6] & bit != 0
        if isUsed == (value != .empty) { return }
        pointee.used[index >> 6] ^= bit
        pointee.usedCount += isUsed ? -1 : 1
    }

    /// The guest's entries from which the used ones were made; not of direct pages.
    var guestEntries: UnsafeMutablePointer<UInt64> {
        // SAFETY: `make` put 512 words behind those of the entries.
        (UnsafeMutableRawPointer(self) + 512 + 4096).assumingMemoryBound(to: UInt64.self)
    }

    /// Calls `body` with the index of each entry that is not empty; `body` may empty it.
    @inline(__always)
    func forEachUsed(_ body: (Int) -> Void) {
        for word in 0..<8 {
            var bits = pointee.used[word]
            while bits != 0 {
                body(word * 64 + bits.trailingZeroBitCount)
                bits &= bits - 1
            }
        }
    }
}
