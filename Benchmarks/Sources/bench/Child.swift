import Glibc

/// A process whose standard output is read line by line, each line with the time at which it came.
///
/// Standard input is empty, and standard error is the runner's own.
struct Child: ~Copyable {
    struct Line {
        let text: String
        /// When the line's end was read, on the host's monotonic clock.
        let arrival: UInt64
    }

    /// How a process ended.
    enum End: Equatable {
        case exited(Int32)
        case signalled(Int32)
    }

    let processID: pid_t
    /// When the process was about to be started, on the host's monotonic clock.
    let start: UInt64
    private let output: Int32
    private var unfinished: [UInt8] = []
    private var lines: [Line] = []

    /// Starts `arguments[0]`, which is looked for in PATH.
    ///
    /// - Throws: ``BenchmarkError`` if it cannot be started.
    init(_ arguments: [String], environment: [String] = []) throws {
        var pipeEnds: [Int32] = [-1, -1]
        guard pipe(&pipeEnds) == 0 else { throw BenchmarkError("cannot make a pipe: \(errorText(errno))") }
        for end in pipeEnds { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        defer { close(pipeEnds[1]) }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, pipeEnds[1], 1)

        // SAFETY: both arrays end with nil, as posix_spawn expects, and outlive the call.
        var argumentPointers = arguments.map { strdup($0) } + [nil]
        var environmentPointers = environment.map { strdup($0) } + [nil]
        defer { for pointer in argumentPointers + environmentPointers { free(pointer) } }
        let started = hostNanoseconds()
        var identifier = pid_t()
        let error = posix_spawnp(
            &identifier, arguments[0], &actions, nil, &argumentPointers, &environmentPointers)
        guard error == 0 else {
            close(pipeEnds[0])
            throw BenchmarkError("cannot start \(arguments[0]): \(errorText(error))")
        }
        processID = identifier
        start = started
        output = pipeEnds[0]
    }

    /// The next line of standard output without its end, or nil at the end of the output or at `deadline`.
    mutating func nextLine(until deadline: UInt64) -> Line? {
        while lines.isEmpty {
            let time = hostNanoseconds()
            guard time < deadline else { return nil }
            var request = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            let milliseconds = min((deadline - time) / 1_000_000 + 1, 3_600_000)
            guard poll(&request, 1, Int32(milliseconds)) > 0 else { continue }
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = read(output, &buffer, buffer.count)
            guard count > 0 else { return nil }
            let arrival = hostNanoseconds()
            for byte in buffer[..<count] {
                if byte == UInt8(ascii: "\n") {
                    lines.append(Line(text: String(decoding: unfinished, as: UTF8.self), arrival: arrival))
                    unfinished.removeAll(keepingCapacity: true)
                } else if byte != UInt8(ascii: "\r") {
                    unfinished.append(byte)
                }
            }
        }
        return lines.removeFirst()
    }

    /// Waits for the process to end; one that still runs at `deadline` is killed.
    consuming func wait(until deadline: UInt64) -> End {
        var status: Int32 = 0
        while waitpid(processID, &status, WNOHANG) == 0 {
            if hostNanoseconds() >= deadline {
                Glibc.kill(processID, SIGKILL)
                waitpid(processID, &status, 0)
                break
            }
            usleep(1000)
        }
        close(output)
        let signal = status & 0x7f
        return signal == 0 ? .exited(status >> 8 & 0xff) : .signalled(signal)
    }

    /// Kills the process.
    consuming func kill() {
        _ = wait(until: 0)
    }
}

/// Something that stops the benchmarks, told to the user as it is.
struct BenchmarkError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The C library's words for an error number.
func errorText(_ number: Int32) -> String { String(cString: strerror(number)) }
