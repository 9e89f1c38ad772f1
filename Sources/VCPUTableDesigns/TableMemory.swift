import Glibc
import Synchronization
import SystemPackage

/// Where the designs get memory from, so that tests can let it run out.
public final class TableMemory: Sendable {
    public static let system = TableMemory()

    /// How many allocations are still given; negative for no limit.
    public let remaining = Atomic<Int>(-1)
    private let live = Atomic<Int>(0)

    public init() {}

    /// How many allocations have not been freed.
    public var liveCount: Int { live.load(ordering: .relaxed) }

    /// Zeroed memory on cache lines of its own.
    /// - Throws: `ENOMEM`.
    func allocate(byteCount: Int) throws(Errno) -> UnsafeMutableRawPointer {
        let left = remaining.load(ordering: .relaxed)
        guard left != 0 else { throw .noMemory }
        if left > 0 { remaining.store(left - 1, ordering: .relaxed) }
        let rounded = (byteCount + 63) & ~63
        guard let memory = aligned_alloc(64, rounded) else { throw .noMemory }
        memset(memory, 0, rounded)
        live.wrappingAdd(1, ordering: .relaxed)
        return memory
    }

    func free(_ memory: UnsafeMutableRawPointer) {
        Glibc.free(memory)
        live.wrappingSubtract(1, ordering: .relaxed)
    }
}
