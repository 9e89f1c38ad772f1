import Glibc
import Synchronization
import SystemPackage

/// A program under test, with its standard streams on pipes unless given otherwise.
///
/// Every wait has a watchdog: a program that hangs is a result, not a hung test. The program is the leader of a process
/// group of its own, and the group is killed when the value goes.
///
/// > Concurrency: one thread at a time.
public final class ChildProcess {
    public enum Input: Sendable {
        /// At its end from the start.
        case empty
        case pipe
        /// Stays the caller's.
        case descriptor(CInt)
    }

    public enum Output: Sendable {
        case pipe
        case closed
        /// Stays the caller's.
        case descriptor(CInt)
    }

    /// How a program ended.
    public enum End: Equatable, Sendable {
        case exited(Int32)
        case signalled(Int32)
        /// It had not ended when the watchdog looked.
        case running
    }

    public let process: pid_t
    /// What it has written to standard output so far.
    public private(set) var output: [UInt8] = []
    /// What it has written to standard error so far.
    public private(set) var errors: [UInt8] = []

    private var inputDescriptor: CInt = -1
    private var outputDescriptor: CInt = -1
    private var errorDescriptor: CInt = -1
    private var end: End = .running

    /// Longer than anything here takes on a loaded machine.
    public static var patienceSeconds: Double { 120 }

    /// Between making a pipe and marking it close-on-exec no other program may be started.
    private static let starting = Mutex(())

    /// Starts `arguments[0]`, a path.
    ///
    /// - Parameter environment: variables to set; nil values are removed.
    /// - Parameter directory: the working directory; nil for this process's.
    public init(
        _ arguments: [String], environment: [String: String?] = [:], directory: String? = nil, input: Input = .empty,
        output: Output = .pipe, errors: Output = .pipe
    ) throws(Errno) {
        var ends: (input: CInt, output: CInt, errors: CInt) = (-1, -1, -1)
        var process: pid_t = 0
        let status = Self.starting.withLock { _ -> CInt in
            var actions = posix_spawn_file_actions_t()
            posix_spawn_file_actions_init(&actions)
            defer { posix_spawn_file_actions_destroy(&actions) }
            var childEnds: [CInt] = []
            defer { for descriptor in childEnds { close(descriptor) } }
            switch input {
            case .empty: posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
            case .descriptor(let descriptor): posix_spawn_file_actions_adddup2(&actions, descriptor, STDIN_FILENO)
            case .pipe:
                let pipe = Self.makePipe()
                ends.input = pipe.write
                childEnds.append(pipe.read)
                posix_spawn_file_actions_adddup2(&actions, pipe.read, STDIN_FILENO)
            }
            func connect(_ output: Output, to target: CInt, _ end: inout CInt) {
                switch output {
                case .closed: posix_spawn_file_actions_addclose(&actions, target)
                case .descriptor(let descriptor): posix_spawn_file_actions_adddup2(&actions, descriptor, target)
                case .pipe:
                    let pipe = Self.makePipe()
                    end = pipe.read
                    childEnds.append(pipe.write)
                    posix_spawn_file_actions_adddup2(&actions, pipe.write, target)
                }
            }
            connect(output, to: STDOUT_FILENO, &ends.output)
            connect(errors, to: STDERR_FILENO, &ends.errors)
            let all = directory.map { ["/usr/bin/env", "--chdir=\($0)"] + arguments } ?? arguments
            return Self.spawn(all, Self.variables(environment), &actions, &process)
        }
        guard status == 0 else {
            for descriptor in [ends.input, ends.output, ends.errors] where descriptor >= 0 { close(descriptor) }
            throw Errno(rawValue: status)
        }
        self.process = process
        (inputDescriptor, outputDescriptor, errorDescriptor) = ends
        for descriptor in [outputDescriptor, errorDescriptor] where descriptor >= 0 {
            _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
        }
    }

    deinit {
        kill(-process, SIGKILL)
        if end == .running { waitpid(process, nil, 0) }
        for descriptor in [inputDescriptor, outputDescriptor, errorDescriptor] where descriptor >= 0 {
            close(descriptor)
        }
    }

    private static func makePipe() -> (read: CInt, write: CInt) {
        var ends: [CInt] = [-1, -1]
        precondition(pipe(&ends) == 0, "no pipe: \(Errno(rawValue: errno))")
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        return (ends[0], ends[1])
    }

    private static func spawn(
        _ arguments: [String], _ variables: [String], _ actions: inout posix_spawn_file_actions_t,
        _ process: inout pid_t
    ) -> CInt {
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var set = sigset_t()
        sigemptyset(&set)
        posix_spawnattr_setsigmask(&attributes, &set)
        sigfillset(&set)
        posix_spawnattr_setsigdefault(&attributes, &set)
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP))
        var argumentPointers = arguments.map { strdup($0) } + [nil]
        var variablePointers = variables.map { strdup($0) } + [nil]
        defer { for pointer in argumentPointers + variablePointers { free(pointer) } }
        return posix_spawnp(&process, arguments[0], &actions, &attributes, &argumentPointers, &variablePointers)
    }

    private static func variables(_ changes: [String: String?]) -> [String] {
        var variables: [String] = []
        var pointer = environ
        while let entry = pointer.pointee {
            let text = String(cString: entry)
            if !changes.keys.contains(String(text.prefix { $0 != "=" })) { variables.append(text) }
            pointer += 1
        }
        for (name, value) in changes { if let value { variables.append("\(name)=\(value)") } }
        return variables
    }

    // MARK: Using it

    public var outputText: String { String(decoding: output, as: UTF8.self) }
    public var errorText: String { String(decoding: errors, as: UTF8.self) }

    /// Writes to its standard input, which is a pipe.
    public func send(_ text: String) {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(inputDescriptor, $0.baseAddress, $0.count) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    public func closeInput() {
        close(inputDescriptor)
        inputDescriptor = -1
    }

    /// Nobody reads its output any more.
    public func closeOutput() {
        close(outputDescriptor)
        outputDescriptor = -1
    }

    public func signal(_ number: CInt) { kill(process, number) }

    /// Waits until its output contains `text` at least `count` times.
    ///
    /// - Returns: false if it ended, or patience did, before that.
    public func waitForOutput(
        containing text: String, count: Int = 1, patienceSeconds: Double = ChildProcess.patienceSeconds
    ) -> Bool {
        wait(patienceSeconds) { self.output.occurrences(of: text) >= count }
    }

    /// Waits for its end and reads the rest of its output.
    public func wait(patienceSeconds: Double = ChildProcess.patienceSeconds) -> End {
        _ = wait(patienceSeconds) { false }
        return end
    }

    /// Whether any process of its group is left; after its end there should be none.
    public var hasLeftProcesses: Bool { kill(-process, 0) == 0 }

    private func wait(_ patienceSeconds: Double, until isDone: () -> Bool) -> Bool {
        let deadline = Self.now() + patienceSeconds
        while true {
            let hasEnded = end != .running || reap()
            // What it wrote before it ended is in the pipes by now.
            let hasRead = readWhatIsThere()
            if isDone() { return true }
            if hasEnded { return false }
            guard Self.now() < deadline else { return false }
            if hasRead { continue }
            var entries = [outputDescriptor, errorDescriptor].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            // Its end wakes the poll if the pipes are closed by it, and otherwise is seen in the next round.
            _ = poll(&entries, 2, 50)
            if entries.contains(where: { $0.revents & Int16(POLLHUP) != 0 }) { usleep(1000) }
        }
    }

    private func reap() -> Bool {
        var status: CInt = 0
        guard waitpid(process, &status, WNOHANG) == process else { return false }
        end = status & 0x7F == 0 ? .exited(status >> 8 & 0xFF) : .signalled(status & 0x7F)
        return true
    }

    private func readWhatIsThere() -> Bool {
        let outputCount = Self.read(outputDescriptor, into: &output)
        return Self.read(errorDescriptor, into: &errors) + outputCount > 0
    }

    private static func read(_ descriptor: CInt, into bytes: inout [UInt8]) -> Int {
        guard descriptor >= 0 else { return 0 }
        var buffer = [UInt8](repeating: 0, count: 65536)
        var total = 0
        while true {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            guard count > 0 else { return total }
            bytes += buffer[..<count]
            total += count
        }
    }

    public static func now() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}

extension [UInt8] {
    /// The offset behind the first `text` at `start` or later; nil if there is none.
    public func end(of text: String, from start: Int = 0) -> Int? {
        let pattern = Array(text.utf8)
        return withUnsafeBytes { bytes in
            var position = start
            while position + pattern.count <= bytes.count {
                // SAFETY: both calls stay inside `bytes` by the loop's condition and the count given.
                guard
                    let found = memchr(
                        bytes.baseAddress! + position, Int32(pattern[0]), bytes.count - position - pattern.count + 1)
                else { return nil }
                position = UnsafeRawPointer(found) - bytes.baseAddress!
                if memcmp(found, pattern, pattern.count) == 0 { return position + pattern.count }
                position += 1
            }
            return nil
        }
    }

    /// How often `text` occurs, without overlaps.
    public func occurrences(of text: String) -> Int {
        var (count, position) = (0, 0)
        while let end = end(of: text, from: position) {
            count += 1
            position = end
        }
        return count
    }
}
