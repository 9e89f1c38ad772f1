import Glibc

/// The host's monotonic time, on which every deadline in the program is expressed.
public enum MonotonicClock {
    /// Nanoseconds since an arbitrary start. The C function is `clock_gettime(CLOCK_MONOTONIC)`.
    @inline(__always)
    public static func nanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }

    /// The moment as the C library writes it.
    static func moment(nanoseconds: UInt64) -> timespec {
        timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
    }
}
