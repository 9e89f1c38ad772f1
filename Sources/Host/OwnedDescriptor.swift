import CHost
import Glibc
import SystemPackage

/// A file descriptor with one owner, closed when the owner ends.
///
/// Does not track offsets or buffer: each call is one system call, repeated where a signal interrupted it.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The number the kernel knows the descriptor by. Valid while the owner lives.
    public let rawValue: Int32

    /// Takes ownership of an open descriptor.
    public init(owning rawValue: Int32) {
        precondition(rawValue >= 0, "a descriptor is not negative: \(rawValue)")
        self.rawValue = rawValue
        martlet_note_descriptor(rawValue, true)
    }

    deinit {
        martlet_note_descriptor(rawValue, false)
        _ = Glibc.close(rawValue)
    }

    /// Opens a file, close-on-exec. The C function is `open`.
    public static func open(
        path: String, flags: Int32 = O_RDONLY, mode: mode_t = 0o644
    ) throws(Errno) -> OwnedDescriptor {
        let fd = try retryingOnInterrupt { Glibc.open(path, flags | O_CLOEXEC, mode) }
        return OwnedDescriptor(owning: fd)
    }

    /// Creates anonymous memory that can be mapped several times. The C function is `memfd_create`.
    ///
    /// - Parameter sealedSize: forbids every later change of size, and of seals.
    public static func memoryFile(
        name: String, byteCount: Int, sealedSize: Bool = false
    ) throws(Errno) -> OwnedDescriptor {
        let flags = UInt32(bitPattern: Int32(MARTLET_MFD_CLOEXEC | (sealedSize ? MARTLET_MFD_ALLOW_SEALING : 0)))
        let fd = martlet_memfd_create(name, flags)
        guard fd >= 0 else { throw Errno(rawValue: -fd) }
        let file = OwnedDescriptor(owning: fd)
        try file.resize(byteCount: byteCount)
        if sealedSize {
            let seals = MARTLET_F_SEAL_SEAL | MARTLET_F_SEAL_SHRINK | MARTLET_F_SEAL_GROW
            _ = try retryingOnInterrupt { fcntl(fd, Int32(MARTLET_F_ADD_SEALS), Int32(seals)) }
        }
        return file
    }

    /// Creates an event counter, close-on-exec. The C function is `eventfd`.
    public static func eventCounter(initial: UInt32 = 0, nonBlocking: Bool = true) throws(Errno) -> OwnedDescriptor {
        let flags = Int32(EFD_CLOEXEC) | (nonBlocking ? Int32(EFD_NONBLOCK) : 0)
        return OwnedDescriptor(owning: try retryingOnInterrupt { eventfd(initial, flags) })
    }

    /// A second descriptor of the same open file, close-on-exec. The C function is `fcntl(F_DUPFD_CLOEXEC)`.
    public borrowing func duplicate() throws(Errno) -> OwnedDescriptor {
        let fd = rawValue
        return OwnedDescriptor(owning: try retryingOnInterrupt { fcntl(fd, F_DUPFD_CLOEXEC, 0) })
    }

    /// Gives the number up without closing it.
    public consuming func release() -> Int32 {
        let fd = rawValue
        martlet_note_descriptor(fd, false)
        discard self
        return fd
    }

    /// Sets the file's size in bytes. The C function is `ftruncate`.
    public borrowing func resize(byteCount: Int) throws(Errno) {
        let fd = rawValue
        _ = try retryingOnInterrupt { ftruncate(fd, byteCount) }
    }

    /// The file's size in bytes. The C function is `fstat`.
    public borrowing func byteCount() throws(Errno) -> Int {
        let fd = rawValue
        var status = stat()
        _ = try retryingOnInterrupt { fstat(fd, &status) }
        return Int(status.st_size)
    }

    /// Reads at the current offset; fewer bytes than asked for, and 0 at the end, are normal. The C function is `read`.
    public borrowing func read(into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
        let fd = rawValue
        return try retryingOnInterrupt { Glibc.read(fd, buffer.baseAddress, buffer.count) }
    }

    /// Reads at `offset`, which moves no file offset. The C function is `pread`.
    public borrowing func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(Errno) -> Int {
        let fd = rawValue
        return try retryingOnInterrupt { pread(fd, buffer.baseAddress, buffer.count, offset) }
    }

    /// Writes at the current offset; fewer bytes than given are normal. The C function is `write`.
    public borrowing func write(_ buffer: UnsafeRawBufferPointer) throws(Errno) -> Int {
        let fd = rawValue
        return try retryingOnInterrupt { Glibc.write(fd, buffer.baseAddress, buffer.count) }
    }

    /// Writes at `offset`, which moves no file offset. The C function is `pwrite`.
    public borrowing func write(_ buffer: UnsafeRawBufferPointer, at offset: Int) throws(Errno) -> Int {
        let fd = rawValue
        return try retryingOnInterrupt { pwrite(fd, buffer.baseAddress, buffer.count, offset) }
    }

    /// One device request with a pointer argument. The C function is `ioctl`.
    ///
    /// - Throws: `Errno.interrupted` as any other error: whether to repeat is the caller's decision.
    @discardableResult
    public borrowing func request(_ number: UInt32, _ argument: UnsafeMutableRawPointer?) throws(Errno) -> Int32 {
        let result = martlet_ioctl(rawValue, UInt(number), argument)
        if result == -1 { throw lastError() }
        return result
    }

    /// One device request with an integer argument. The C function is `ioctl`.
    @discardableResult
    public borrowing func request(_ number: UInt32, value: UInt = 0) throws(Errno) -> Int32 {
        let result = martlet_ioctl_value(rawValue, UInt(number), value)
        if result == -1 { throw lastError() }
        return result
    }
}
