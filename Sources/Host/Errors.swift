import Glibc
import SystemPackage

/// The error the C library reported last on this thread.
@inline(__always)
func lastError() -> Errno { Errno(rawValue: Glibc.errno) }

/// Turns the `-1 and errno` convention into a typed error, repeating a call that a signal interrupted.
func retryingOnInterrupt<Result: SignedInteger & FixedWidthInteger>(
    _ call: () -> Result
) throws(Errno) -> Result {
    while true {
        let result = call()
        if result != -1 { return result }
        let error = lastError()
        if error != .interrupted { throw error }
    }
}
