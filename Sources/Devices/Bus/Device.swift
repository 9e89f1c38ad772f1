/// A device that guest code reaches through I/O ports or memory-mapped registers.
///
/// A device knows neither where it is mounted nor what machine it is part of: it talks to the rest through the closures
/// it was given.
///
/// > Concurrency: called by all vCPU threads at once; each device has its own lock. Closures that a device calls may
/// > be called with that lock held, so they must not call back into the device.
public protocol Device: AnyObject, Sendable {
    /// The widest access the device takes, in bytes: 1, 2, 4 or 8. The bus splits wider ones.
    var widestAccess: Int { get }

    /// Reads `byteCount` bytes at `offset` from where the device is mounted; little-endian, upper bits 0.
    func read(at offset: Int, byteCount: Int) -> UInt64

    /// Writes the lowest `byteCount` bytes of `value`.
    func write(at offset: Int, byteCount: Int, value: UInt64)
}

/// Tells the interrupt controller the level of a device's line.
///
/// Called when the level changes, under the device's lock, so that changes arrive in order.
public typealias InterruptLine = @Sendable (_ isAsserted: Bool) -> Void
