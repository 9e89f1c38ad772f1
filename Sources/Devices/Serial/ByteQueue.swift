/// Bytes that come out in the order they went in; both ends in O(1), amortized.
struct ByteQueue {
    private var bytes: [UInt8] = []
    private var start = 0

    var count: Int { bytes.count - start }
    var isEmpty: Bool { start == bytes.count }

    mutating func append(_ byte: UInt8) { bytes.append(byte) }

    mutating func append(contentsOf new: some Collection<UInt8>) { bytes.append(contentsOf: new) }

    mutating func popFirst() -> UInt8? {
        guard !isEmpty else { return nil }
        defer {
            start += 1
            if isEmpty { removeAll() }
        }
        // What was taken is dropped once it is the larger part.
        if start > 1024, start > bytes.count / 2 {
            bytes.removeFirst(start)
            start = 0
        }
        return bytes[start]
    }

    mutating func removeAll() {
        bytes.removeAll(keepingCapacity: true)
        start = 0
    }
}
