import CHost
import Glibc
import SystemPackage

/// An event counter (`eventfd`) that somebody else made, through a descriptor of its own.
///
/// The other descriptors of the counter may be closed meanwhile.
public struct EventDescriptor: ~Copyable, Sendable {
    /// Equal for two descriptors if, and only if, they are of one counter.
    public let identity: UInt64
    private let descriptor: OwnedDescriptor

    /// Duplicates a descriptor.
    ///
    /// - Throws: `Errno.badFileDescriptor` if there is no open file with that number, `Errno.invalidArgument` if it is no event
    ///   counter, `Errno.tooManyOpenFiles` (`EMFILE`).
    public init(duplicating rawValue: Int32) throws(Errno) {
        guard rawValue >= 0 else { throw .badFileDescriptor }
        // The copy is looked at: the number given may mean another file the next moment.
        let copy = OwnedDescriptor(owning: try retryingOnInterrupt { fcntl(rawValue, F_DUPFD_CLOEXEC, 0) })
        guard let identity = Self.identity(of: copy) else { throw .invalidArgument }
        self.identity = identity
        descriptor = copy
    }

    /// The number the kernel knows the descriptor by. Valid while this lives.
    public var rawValue: Int32 { descriptor.rawValue }

    /// The counter's number, which the kernel shows beside the descriptor; nil if that is of another kind.
    ///
    /// > Source: Documentation/filesystems/proc.rst, section 3.8.
    private static func identity(of descriptor: borrowing OwnedDescriptor) -> UInt64? {
        guard let file = try? OwnedDescriptor.open(path: "/proc/self/fdinfo/\(descriptor.rawValue)") else { return nil }
        let text = withUnsafeTemporaryAllocation(byteCount: 1024, alignment: 1) { buffer in
            let count = (try? file.read(into: buffer)) ?? 0
            return String(decoding: buffer[..<count], as: UTF8.self)
        }
        let label = "eventfd-id:"
        guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix(label) }) else { return nil }
        return UInt64(line.dropFirst(label.count).drop { $0 == " " || $0 == "\t" })
    }

    /// Adds 1 to the counter.
    public borrowing func signal() { Self.signal(descriptor.rawValue) }

    /// Adds 1 to the counter with that descriptor. A counter that is full stays so, or makes the caller wait for its reader if
    /// its maker has not set `EFD_NONBLOCK`.
    public static func signal(_ rawValue: Int32) {
        var one: UInt64 = 1
        // A failure tells of a full counter: its reader will be woken in any case.
        _ = Glibc.write(rawValue, &one, MemoryLayout<UInt64>.size)
    }

    /// Reads the counter, which takes it back to 0 (by 1 if it is a semaphore), without waiting.
    ///
    /// - Returns: whether it was not 0.
    public borrowing func take() -> Bool {
        var value: UInt64 = 0
        let size = MemoryLayout<UInt64>.size
        let result = martlet_read_without_waiting(descriptor.rawValue, &value, size)
        guard result == -Int(EOPNOTSUPP) else { return result == size }
        // Before Linux 5.8; another reader may come between the two calls, and then this one waits.
        var poll = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
        guard Glibc.poll(&poll, 1, 0) == 1, poll.revents & Int16(POLLIN) != 0 else { return false }
        return Glibc.read(descriptor.rawValue, &value, size) == size
    }
}
