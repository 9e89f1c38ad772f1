import Glibc
import Synchronization

/// Which pages of a memory region were written, one bit for each 4 KiB from the region's start.
///
/// > Concurrency: any thread. A page that is marked while the record is taken is in what is taken or stays for the next
/// > time.
final class DirtyRecord: Sendable {
    private let wordCount: Int
    // SAFETY: `wordCount` zeroed words, which `Atomic<UInt64>` may be; freed by `deinit`. Changed by atomic operations only.
    nonisolated(unsafe) private let words: UnsafeMutablePointer<Atomic<UInt64>>

    /// A record without marks; memory is committed when marks are made.
    /// - Returns: nil if there is no memory.
    init?(byteCount: UInt64) {
        let pageCount = byteCount / 4096 + (byteCount % 4096 == 0 ? 0 : 1)
        wordCount = Int((pageCount + 63) / 64)
        guard let memory = calloc(max(wordCount, 1), 8) else { return nil }
        words = memory.bindMemory(to: Atomic<UInt64>.self, capacity: max(wordCount, 1))
    }

    deinit { free(words) }

    /// Marks the pages of `byteCount` bytes at `offset`; what lies behind the record's end is ignored.
    func mark(offset: UInt64, byteCount: UInt64) {
        guard byteCount > 0, wordCount > 0 else { return }
        let (sum, isTooFar) = offset.addingReportingOverflow(byteCount - 1)
        let last = min((isTooFar ? .max : sum) / 4096, UInt64(wordCount) * 64 - 1)
        var page = offset / 4096
        while page <= last {
            // ORDERING: release pairs with the acquire in `take`: who takes the mark sees the bytes.
            words[Int(page / 64)].bitwiseOr(1 << (page % 64), ordering: .releasing)
            page += 1
        }
    }

    /// Returns the marks, 64 pages in each element, and clears them.
    func take() -> [UInt64] {
        (0..<wordCount).map { index in
            // Most words have no mark; those are only looked at.
            guard words[index].load(ordering: .relaxed) != 0 else { return 0 }
            // ORDERING: acquire pairs with the release in `mark`.
            return words[index].exchange(0, ordering: .acquiring)
        }
    }
}
