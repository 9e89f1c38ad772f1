import Synchronization

/// A set of interrupt vectors: one of the 256-bit registers ISR, IRR and TMR.
public struct VectorSet: Equatable, Sendable {
    /// Bit `vector % 64` of word `vector / 64`.
    private var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

    public init() {}

    /// The 32 vectors from `32 * index` on, as the APIC's registers show them; `index` counts modulo 8.
    public subscript(register index: Int) -> UInt32 {
        get { UInt32(truncatingIfNeeded: self[word: index >> 1] >> (UInt64(index & 1) * 32)) }
        set {
            let shift = UInt64(index & 1) * 32
            let kept = self[word: index >> 1] & ~(0xFFFF_FFFF << shift)
            self[word: index >> 1] = kept | UInt64(newValue) << shift
        }
    }

    public func contains(_ vector: UInt8) -> Bool {
        self[word: Int(vector >> 6)] & Self.bit(vector) != 0
    }

    public mutating func insert(_ vector: UInt8) { self[word: Int(vector >> 6)] |= Self.bit(vector) }

    public mutating func remove(_ vector: UInt8) { self[word: Int(vector >> 6)] &= ~Self.bit(vector) }

    /// The largest vector; nil for the empty set.
    public var highest: UInt8? {
        if words.3 != 0 { return Self.highest(words.3, word: 3) }
        if words.2 != 0 { return Self.highest(words.2, word: 2) }
        if words.1 != 0 { return Self.highest(words.1, word: 1) }
        if words.0 != 0 { return Self.highest(words.0, word: 0) }
        return nil
    }

    public static func == (a: Self, b: Self) -> Bool { a.words == b.words }

    static func bit(_ vector: UInt8) -> UInt64 { 1 << UInt64(vector & 63) }

    static func highest(_ word: UInt64, word index: UInt8) -> UInt8 {
        index << 6 | UInt8(truncatingIfNeeded: 63 &- word.leadingZeroBitCount)
    }

    private subscript(word index: Int) -> UInt64 {
        get {
            switch index & 3 {
            case 0: words.0
            case 1: words.1
            case 2: words.2
            default: words.3
            }
        }
        set {
            switch index & 3 {
            case 0: words.0 = newValue
            case 1: words.1 = newValue
            case 2: words.2 = newValue
            default: words.3 = newValue
            }
        }
    }
}

/// A set of vectors that several threads change: each vector is atomic by itself, the set as a whole is not.
struct AtomicVectorSet: ~Copyable, Sendable {
    private let word0 = Atomic<UInt64>(0)
    private let word1 = Atomic<UInt64>(0)
    private let word2 = Atomic<UInt64>(0)
    private let word3 = Atomic<UInt64>(0)

    /// Adds `vector`; true if it was not there.
    @discardableResult
    func insert(_ vector: UInt8) -> Bool {
        let bit = VectorSet.bit(vector)
        // ORDERING: release, pairs with the acquire of `highest` and `contains`: who sees the vector sees what its
        // poster wrote before.
        let old =
            switch vector >> 6 {
            case 0: word0.bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
            case 1: word1.bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
            case 2: word2.bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
            default: word3.bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
            }
        return old & bit == 0
    }

    func remove(_ vector: UInt8) {
        let mask = ~VectorSet.bit(vector)
        // ORDERING: acquire and release, so that removal and a new insertion of the vector do not pass each other.
        switch vector >> 6 {
        case 0: word0.bitwiseAnd(mask, ordering: .acquiringAndReleasing)
        case 1: word1.bitwiseAnd(mask, ordering: .acquiringAndReleasing)
        case 2: word2.bitwiseAnd(mask, ordering: .acquiringAndReleasing)
        default: word3.bitwiseAnd(mask, ordering: .acquiringAndReleasing)
        }
    }

    func contains(_ vector: UInt8) -> Bool {
        let word =
            // ORDERING: acquire, pairs with `insert`.
            switch vector >> 6 {
            case 0: word0.load(ordering: .acquiring)
            case 1: word1.load(ordering: .acquiring)
            case 2: word2.load(ordering: .acquiring)
            default: word3.load(ordering: .acquiring)
            }
        return word & VectorSet.bit(vector) != 0
    }

    /// The largest vector; nil for the empty set.
    var highest: UInt8? {
        // ORDERING: acquire, pairs with `insert`.
        var word = word3.load(ordering: .acquiring)
        if word != 0 { return VectorSet.highest(word, word: 3) }
        word = word2.load(ordering: .acquiring)
        if word != 0 { return VectorSet.highest(word, word: 2) }
        word = word1.load(ordering: .acquiring)
        if word != 0 { return VectorSet.highest(word, word: 1) }
        word = word0.load(ordering: .acquiring)
        if word != 0 { return VectorSet.highest(word, word: 0) }
        return nil
    }

    /// A copy; vectors that change meanwhile are in it or not.
    var snapshot: VectorSet {
        var copy = VectorSet()
        for index in 0..<8 { copy[register: index] = self[register: index] }
        return copy
    }

    /// The 32 vectors from `32 * index` on; `index` counts modulo 8.
    subscript(register index: Int) -> UInt32 {
        let word =
            // ORDERING: acquire, pairs with `insert`.
            switch (index >> 1) & 3 {
            case 0: word0.load(ordering: .acquiring)
            case 1: word1.load(ordering: .acquiring)
            case 2: word2.load(ordering: .acquiring)
            default: word3.load(ordering: .acquiring)
            }
        return UInt32(truncatingIfNeeded: word >> (UInt64(index & 1) * 32))
    }

    /// Replaces the content. Insertions that race with this may be lost.
    func assign(_ set: VectorSet) {
        func word(_ index: Int) -> UInt64 {
            UInt64(set[register: 2 * index]) | UInt64(set[register: 2 * index + 1]) << 32
        }
        // ORDERING: release, pairs with the acquire of the readers.
        word0.store(word(0), ordering: .releasing)
        word1.store(word(1), ordering: .releasing)
        word2.store(word(2), ordering: .releasing)
        word3.store(word(3), ordering: .releasing)
    }
}
