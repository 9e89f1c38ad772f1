import Glibc

/// An append-only array whose elements never move, so that readers need no lock.
///
/// > Concurrency: appending needs the owner's lock; an index handed out before may be read by any thread.
final class ChunkedArray<Element> {
    private static var chunkBits: Int { 8 }
    private static var chunkCount: Int { 1 << chunkBits }

    private let chunks: UnsafeMutablePointer<UnsafeMutablePointer<Element>?>
    private let maximumChunks: Int
    private(set) var count = 0

    /// - Parameter capacity: elements beyond this do not fit.
    init(capacity: Int) {
        maximumChunks = (capacity + Self.chunkCount - 1) >> Self.chunkBits
        guard let memory = calloc(maximumChunks, MemoryLayout<UnsafeMutablePointer<Element>?>.stride) else {
            fatalError("no memory for an array")
        }
        // SAFETY: zero is nil. Pages of a large allocation take memory when a chunk is added.
        chunks = memory.assumingMemoryBound(to: UnsafeMutablePointer<Element>?.self)
    }

    deinit {
        removeAll()
        free(chunks)
    }

    /// Whether `additional` more elements fit.
    func hasRoom(for additional: Int) -> Bool { count + additional <= maximumChunks << Self.chunkBits }

    func append(_ element: Element) {
        let chunk = count >> Self.chunkBits
        precondition(chunk < maximumChunks, "chunked array is full")
        if chunks[chunk] == nil { chunks[chunk] = .allocate(capacity: Self.chunkCount) }
        chunks[chunk]?.advanced(by: count & (Self.chunkCount - 1)).initialize(to: element)
        count += 1
    }

    /// The element at `index`, which must be below `count`.
    func pointer(at index: Int) -> UnsafeMutablePointer<Element> {
        guard let chunk = chunks[index >> Self.chunkBits] else { preconditionFailure("index out of range") }
        return chunk + (index & (Self.chunkCount - 1))
    }

    /// > Concurrency: nobody reads.
    func removeAll() {
        for i in 0..<maximumChunks {
            guard let chunk = chunks[i] else { break }
            chunk.deinitialize(count: min(Self.chunkCount, count - i << Self.chunkBits))
            chunk.deallocate()
            chunks[i] = nil
        }
        count = 0
    }
}
