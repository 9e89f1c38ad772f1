import CHost
import SystemPackage

/// A full memory barrier on every processor that runs a thread of this process. The C call is `membarrier`.
///
/// Lets one side of a store-load race do without a fence: what the others do often needs only a compiler barrier.
public struct ProcessBarrier: Sendable {
    private let command: Int32

    /// Announces to the kernel that this process will want such barriers.
    ///
    /// - Throws: `ENOSYS` if the kernel has no kind of them.
    public init() throws(Errno) {
        let available = martlet_membarrier(Int32(MEMBARRIER_CMD_QUERY.rawValue), 0)
        let known = available > 0 ? UInt32(available) : 0
        if known & MEMBARRIER_CMD_PRIVATE_EXPEDITED.rawValue != 0,
            martlet_membarrier(Int32(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED.rawValue), 0) == 0
        {
            command = Int32(MEMBARRIER_CMD_PRIVATE_EXPEDITED.rawValue)
        } else if known & MEMBARRIER_CMD_GLOBAL.rawValue != 0 {
            // Waits for milliseconds, and needs no announcement.
            command = Int32(MEMBARRIER_CMD_GLOBAL.rawValue)
        } else {
            throw .noFunction
        }
    }

    /// Returns after every other thread of the process has passed a full barrier since the call.
    ///
    /// - Complexity: one inter-processor interrupt for each processor that runs a thread of the process.
    public func run() {
        let result = martlet_membarrier(command, 0)
        precondition(result == 0, "membarrier failed: errno \(-result)")
    }
}
