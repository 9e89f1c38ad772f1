import CHost
import Glibc
import SystemPackage

/// A terminal without a screen: the test is the user at its other end.
final class PseudoTerminal {
    /// The user's end.
    let user: CInt
    /// The program's end.
    let program: CInt

    init() throws(Errno) {
        user = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK)
        guard user >= 0 else { throw Errno(rawValue: errno) }
        var (unlocked, number): (CInt, CInt) = (0, 0)
        // TIOCSPTLCK and TIOCGPTN, whose macros Swift does not see.
        guard martlet_ioctl(user, 0x4004_5431, &unlocked) == 0, martlet_ioctl(user, 0x8004_5430, &number) == 0 else {
            throw Errno(rawValue: errno)
        }
        program = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY | O_CLOEXEC)
        guard program >= 0 else { throw Errno(rawValue: errno) }
    }

    deinit {
        close(user)
        close(program)
    }

    /// Whether lines are edited and echoed, as a shell's user expects; false in raw mode.
    var isCooked: Bool { mode.c_lflag & tcflag_t(ICANON | ECHO) == tcflag_t(ICANON | ECHO) }

    /// The settings, for comparison.
    var settings: [UInt32] {
        let mode = mode
        return [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
            + withUnsafeBytes(of: mode.c_cc) { $0.map(UInt32.init) }
    }

    private var mode: termios {
        var mode = termios()
        precondition(tcgetattr(program, &mode) == 0, "the terminal has no settings")
        return mode
    }

    func type(_ text: String) {
        let bytes = Array(text.utf8)
        let count = write(user, bytes, bytes.count)
        precondition(count == bytes.count, "the terminal does not take what is typed")
    }

    /// Appends what has arrived on the screen.
    func read(into screen: inout [UInt8]) {
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = Glibc.read(user, &buffer, buffer.count)
            guard count > 0 else { return }
            screen += buffer[..<count]
        }
    }
}
