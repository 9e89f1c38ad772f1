/// The time as devices see it.
public protocol DeviceClock: Sendable {
    /// Nanoseconds since 1970-01-01 00:00 UTC. May jump when the host's clock is set.
    var realTimeNanoseconds: Int64 { get }

    /// Nanoseconds since an arbitrary moment; never goes back.
    var monotonicNanoseconds: UInt64 { get }

    /// Calls `body` on another thread once `nanoseconds` have passed. There is no way to call that off: `body` has to
    /// find out by itself whether it still has something to do.
    func wake(afterNanoseconds nanoseconds: Int64, _ body: @escaping @Sendable () -> Void)
}
