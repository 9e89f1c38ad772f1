import Glibc
import SystemPackage

/// An exclusive lock on a file.
///
/// The lock belongs to the open file description, so two holders in one process exclude each other as well, and it is
/// gone when the process ends.
enum FileLock {
    /// Runs `body` while holding the lock on the file at `path`, which is created if it is missing.
    ///
    /// - Parameter onWait: called once if somebody else holds the lock.
    /// - Throws: the error of opening or locking the file, as `Errno`, or what `body` throws.
    static func hold<Result>(
        _ path: FilePath, onWait: () -> Void, _ body: () throws -> Result
    ) throws -> Result {
        let descriptor = try FileDescriptor.open(
            path, .readWrite, options: [.create, .closeOnExec], permissions: [.ownerReadWrite])
        return try descriptor.closeAfter {
            if flock(descriptor.rawValue, LOCK_EX | LOCK_NB) != 0 {
                onWait()
                while flock(descriptor.rawValue, LOCK_EX) != 0 {
                    guard errno == EINTR else { throw Errno(rawValue: errno) }
                }
            }
            return try body()
        }
    }
}
