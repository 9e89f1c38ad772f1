import Glibc
import SystemPackage

/// The user's terminal in raw mode: every key goes to the guest, and nothing is echoed.
///
/// The old mode comes back with ``restore()``, and when a signal or a crash ends the process while raw mode is on.
///
/// > Concurrency: one value at a time, on the main thread.
final class Terminal {
    private let descriptor: FileDescriptor

    /// Switches `descriptor` to raw mode; nil if it is no terminal.
    init?(_ descriptor: FileDescriptor) throws(Errno) {
        var mode = termios()
        guard tcgetattr(descriptor.rawValue, &mode) == 0 else { return nil }
        self.descriptor = descriptor
        SavedTerminal.save(mode, descriptor.rawValue)
        cfmakeraw(&mode)
        guard Self.set(mode, descriptor.rawValue) else { throw Errno(rawValue: errno) }
    }

    deinit { restore() }

    /// Brings the old mode back. Does nothing the second time.
    func restore() { SavedTerminal.restore() }

    private static func set(_ mode: termios, _ descriptor: CInt) -> Bool {
        var mode = mode
        while tcsetattr(descriptor, TCSADRAIN, &mode) != 0 {
            guard errno == EINTR else { return false }
        }
        return true
    }
}

/// The terminal mode to bring back, where signal handlers find it.
///
/// > Concurrency: written by the main thread, before `isSaved` is set and after it is cleared.
enum SavedTerminal {
    private nonisolated(unsafe) static var mode = termios()
    private nonisolated(unsafe) static var descriptor: CInt = -1
    private nonisolated(unsafe) static var isSaved: sig_atomic_t = 0

    static func save(_ mode: termios, _ descriptor: CInt) {
        self.mode = mode
        self.descriptor = descriptor
        isSaved = 1
    }

    /// May be called in a signal handler: it calls nothing but `tcsetattr`, which may be.
    static func restore() {
        guard isSaved != 0 else { return }
        isSaved = 0
        // The drain would wait for ever on a terminal that its other end has stopped.
        tcsetattr(descriptor, TCSANOW, &mode)
    }
}
