import Glibc
import SystemPackage
import TestSupport
import Testing

/// The command on a terminal, with a user who types and reads.
final class TerminalSession {
    /// The user's end of the terminal.
    private let user: CInt
    /// The command's end.
    private let program: CInt
    let child: ChildProcess
    /// The terminal's settings before the command began.
    let settingsBefore: [UInt32]
    /// What has appeared, up to what ``waits(for:)`` found last.
    private(set) var screen: [UInt8] = []
    private var seenCount = 0

    init(_ arguments: [String]) throws {
        var (user, program): (CInt, CInt) = (-1, -1)
        guard openpty(&user, &program, nil, nil, nil) == 0 else { throw Errno(rawValue: errno) }
        for end in [user, program] { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        _ = fcntl(user, F_SETFL, O_NONBLOCK)
        (self.user, self.program) = (user, program)
        settingsBefore = Self.settings(of: program)
        child = try Boot.start(arguments, input: .descriptor(program), output: .descriptor(program))
    }

    deinit {
        close(user)
        close(program)
    }

    /// The terminal's settings now.
    var settings: [UInt32] { Self.settings(of: program) }

    /// Whether the terminal edits lines, echoes and sends signals; false in raw mode.
    var isCooked: Bool {
        let cooked = tcflag_t(ICANON | ECHO | ISIG)
        return Self.mode(of: program).c_lflag & cooked == cooked
    }

    /// The end of what has appeared.
    var account: Comment { "\(child.errorText)\n\(String(decoding: screen.suffix(1500), as: UTF8.self))" }

    func type(_ text: String) {
        let bytes = Array(text.utf8)
        let count = write(user, bytes, bytes.count)
        precondition(count == bytes.count, "the terminal does not take what is typed")
    }

    /// Waits until `text` appears after what was found before.
    ///
    /// - Returns: false if the command, or patience, ended before.
    func waits(for text: String) -> Bool {
        wait { self.find(text) } ?? find(text)
    }

    /// Waits for the end of the command; the screen goes on.
    func waitForEnd() -> ChildProcess.End {
        _ = wait { false }
        return child.wait(patienceSeconds: 0)
    }

    /// Nil if the command ended.
    private func wait(until isDone: () -> Bool) -> Bool? {
        let deadline = ChildProcess.now() + ChildProcess.patienceSeconds
        while ChildProcess.now() < deadline {
            read()
            if isDone() { return true }
            if child.wait(patienceSeconds: 0.02) != .running {
                read()
                return nil
            }
        }
        return false
    }

    private func find(_ text: String) -> Bool {
        guard let end = screen.end(of: text, from: seenCount) else { return false }
        seenCount = end
        return true
    }

    private func read() {
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = Glibc.read(user, &buffer, buffer.count)
            guard count > 0 else { return }
            screen += buffer[..<count]
        }
    }

    private static func mode(of descriptor: CInt) -> termios {
        var mode = termios()
        precondition(tcgetattr(descriptor, &mode) == 0, "the terminal has no settings")
        return mode
    }

    private static func settings(of descriptor: CInt) -> [UInt32] {
        let mode = mode(of: descriptor)
        return [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
            + withUnsafeBytes(of: mode.c_cc) { $0.map(UInt32.init) }
    }
}
