/// What answers accesses to a region that is not memory, or takes writes to one that is read-only.
///
/// > Concurrency: called by all vCPU threads at once, outside of any read section, so it may block. A call may come late:
/// > the region can have left its address space since the address was looked up.
public protocol MemoryDevice: AnyObject, Sendable {
    /// The widest access the device takes, in bytes: 1, 2, 4 or 8. Wider ones are split.
    var widestAccess: Int { get }

    /// Reads `byteCount` bytes at `offset` from the region's start; little-endian, upper bits 0. The access is as wide as a
    /// power of two and naturally aligned in the address space.
    func read(at offset: UInt64, byteCount: Int) -> UInt64

    /// Writes the lowest `byteCount` bytes of `value`.
    func write(at offset: UInt64, byteCount: Int, value: UInt64)
}
