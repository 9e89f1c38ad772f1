import Glibc
import SystemPackage

/// The command with somebody who types and reads, on a terminal or through pipes.
final class Session {
    private var typing: FileDescriptor
    private var reading: FileDescriptor
    /// The side the command runs on, for its terminal's mode; −1 with pipes.
    private let terminal: CInt
    private let process: pid_t
    private var hasEnded = false
    /// What has been printed and not matched yet.
    private var text: [UInt8] = []
    /// The terminal's mode before the command began.
    let modeBefore: termios

    /// Starts the command on a pseudo-terminal.
    init(onTerminal arguments: [String]) throws {
        var (user, program): (CInt, CInt) = (-1, -1)
        guard openpty(&user, &program, nil, nil, nil) == 0 else { throw Errno(rawValue: errno) }
        for descriptor in [user, program] { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
        (typing, reading) = (FileDescriptor(rawValue: user), FileDescriptor(rawValue: user))
        terminal = program
        modeBefore = Self.mode(program)
        process = try Self.start(arguments, [program, program, program])
    }

    /// Starts the command between two pipes; its messages go to our standard error.
    init(onPipes arguments: [String]) throws {
        signal(SIGPIPE, SIG_IGN)
        let input = try FileDescriptor.pipe()
        let output = try FileDescriptor.pipe()
        for end in [input.writeEnd, output.readEnd] { _ = fcntl(end.rawValue, F_SETFD, FD_CLOEXEC) }
        (typing, reading) = (input.writeEnd, output.readEnd)
        terminal = -1
        modeBefore = termios()
        process = try Self.start(arguments, [input.readEnd.rawValue, output.writeEnd.rawValue])
        try input.readEnd.close()
        try output.writeEnd.close()
    }

    deinit {
        if !hasEnded {
            kill(process, SIGKILL)
            _ = try? Command.wait(process)
        }
        try? typing.close()
        if reading != typing { try? reading.close() }
        if terminal >= 0 { close(terminal) }
    }

    /// The terminal's mode.
    var modeNow: termios { Self.mode(terminal) }

    func type(_ text: String) throws { _ = try typing.writeAll(Array(text.utf8)) }

    /// Ends the input of a command on pipes.
    func endInput() throws {
        try typing.close()
        typing = reading
    }

    /// Stops reading from a command on pipes, as a reader does that has seen enough.
    func stopReading() throws {
        try reading.close()
        reading = typing
    }

    func send(signal: Int32) { kill(process, signal) }

    /// Reads until `wanted` has been printed, and forgets everything up to its end.
    ///
    /// - Throws: ``Missing`` after `seconds` without it, or if the command ended first.
    func expect(_ wanted: String, seconds: Int = 120) throws {
        let deadline = time(nil) + seconds
        while !consume(Array(wanted.utf8)) {
            guard try readMore(milliseconds: 100) == false else { continue }
            var status: Int32 = 0
            if !hasEnded, waitpid(process, &status, WNOHANG) == process {
                hasEnded = true
                throw missing(wanted, "the command ended (wait status \(status))")
            }
            if time(nil) > deadline { throw missing(wanted, "\(seconds) seconds passed") }
        }
    }

    /// Waits for the end of the command, reading what it still prints, and returns the exit status.
    func end(seconds: Int = 120) throws -> Int32 {
        let deadline = time(nil) + seconds
        while true {
            var status: Int32 = 0
            if waitpid(process, &status, WNOHANG) == process {
                hasEnded = true
                return Command.exitStatus(status)
            }
            if reading != typing || terminal >= 0 { _ = try readMore(milliseconds: 10) } else { usleep(10_000) }
            if time(nil) > deadline { throw missing("the end", "\(seconds) seconds passed") }
        }
    }

    struct Missing: Error {
        var wanted: String
        var reason: String
        var text: String
    }

    private func missing(_ wanted: String, _ reason: String) -> Missing {
        Missing(wanted: wanted, reason: reason, text: String(decoding: text, as: UTF8.self))
    }

    /// - Returns: whether something came.
    private func readMore(milliseconds: Int32) throws -> Bool {
        var entry = pollfd(fd: reading.rawValue, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, milliseconds) > 0, entry.revents & Int16(POLLIN) != 0 else {
            // A hang-up is always ready.
            if entry.revents != 0 { usleep(10_000) }
            return false
        }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = try buffer.withUnsafeMutableBytes { try reading.read(into: $0) }
        text += buffer[..<count]
        return count > 0
    }

    /// Drops everything up to the end of `wanted`; false if it is not there.
    private func consume(_ wanted: [UInt8]) -> Bool {
        guard text.count >= wanted.count else { return false }
        for start in 0...(text.count - wanted.count) where text[start..<start + wanted.count].elementsEqual(wanted) {
            text.removeFirst(start + wanted.count)
            return true
        }
        return false
    }

    private static func start(_ arguments: [String], _ descriptors: [CInt]) throws -> pid_t {
        try Command.spawn(["env", "SWIFT_BACKTRACE=enable=no", Command.path] + arguments, descriptors: descriptors)
    }

    private static func mode(_ descriptor: CInt) -> termios {
        var mode = termios()
        tcgetattr(descriptor, &mode)
        return mode
    }
}
