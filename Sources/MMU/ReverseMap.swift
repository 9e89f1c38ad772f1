/// The name of one entry of a shadow page.
struct ShadowEntryReference: Hashable {
    private let rawValue: UInt

    init(_ page: ShadowPage.Pointer, _ index: Int) { rawValue = UInt(bitPattern: page) | UInt(index) }

    var page: ShadowPage.Pointer {
        // SAFETY: references are removed before their page is freed.
        ShadowPage.Pointer(bitPattern: rawValue & ~UInt(ShadowPage.alignment - 1)).unsafelyUnwrapped
    }

    var index: Int { Int(rawValue & UInt(ShadowPage.alignment - 1)) }
}

/// For each key the entries that belong to it: those that map a frame, or that lead to a page.
///
/// Most keys have one entry, which costs no array.
/// > Concurrency: the lock of the shadow MMU is held.
struct ReverseMap {
    private struct List {
        var first: ShadowEntryReference
        var others: [ShadowEntryReference] = []
    }

    private var lists: [UInt64: List] = [:]

    /// The number of entries.
    private(set) var count = 0

    /// The key of the frames that an entry of a level maps.
    static func key(frame: UInt64, level: Int) -> UInt64 {
        (frame >> UInt64(9 * (level - 1))) << 2 | UInt64(level - 1)
    }

    /// The first frame of a key, and how many there are.
    static func frames(ofKey key: UInt64) -> Range<UInt64> {
        let shift = 9 * (key & 3)
        let first = (key >> 2) << shift
        return first..<first + (1 << shift)
    }

    /// The number of keys.
    var keyCount: Int { lists.count }
    var keys: some Collection<UInt64> { lists.keys }

    func contains(_ key: UInt64) -> Bool { lists[key] != nil }

    /// The entries of a key.
    subscript(_ key: UInt64) -> [ShadowEntryReference] {
        guard let list = lists[key] else { return [] }
        return [list.first] + list.others
    }

    mutating func insert(_ entry: ShadowEntryReference, _ key: UInt64) {
        count += 1
        if lists[key]?.others.append(entry) == nil { lists[key] = List(first: entry) }
    }

    /// Removes an entry that is there.
    /// - Returns: whether it was the key's last.
    /// - Complexity: linear in the number of entries of the key.
    @discardableResult
    mutating func remove(_ entry: ShadowEntryReference, _ key: UInt64) -> Bool {
        guard let index = lists.index(forKey: key) else { preconditionFailure("an entry is not in its reverse map") }
        count -= 1
        if lists.values[index].first == entry {
            guard let last = lists.values[index].others.popLast() else {
                lists.remove(at: index)
                return true
            }
            lists.values[index].first = last
            return false
        }
        guard let place = lists.values[index].others.firstIndex(of: entry) else {
            preconditionFailure("an entry is not in its reverse map")
        }
        lists.values[index].others.swapAt(place, lists.values[index].others.count - 1)
        lists.values[index].others.removeLast()
        return false
    }
}
