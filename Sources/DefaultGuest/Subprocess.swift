import Glibc
import SystemPackage

/// Runs other programs and waits for them.
enum Subprocess {
    /// What becomes of the program's standard output.
    enum Output {
        /// It is returned.
        case captured
        /// It goes to our standard error, as progress for the user.
        case progress
    }

    /// Runs `arguments[0]`, found in `PATH`, with the rest as its arguments, in `directory`; standard input is empty.
    ///
    /// - Returns: the captured output, without the last line's end.
    /// - Throws: ``GuestBuildError`` if the program cannot be started or fails.
    @discardableResult
    static func run(_ arguments: [String], in directory: FilePath? = nil, output: Output) throws(GuestBuildError)
        -> String
    {
        // `env` changes the directory: the C library's own way to do so is an extension Swift does not see.
        let all = directory.map { ["env", "--chdir=\($0)"] + arguments } ?? arguments
        var pipeEnds: [CInt] = [-1, -1]
        if output == .captured, pipe(&pipeEnds) != 0 { throw failure(arguments, errno) }
        defer { if pipeEnds[0] >= 0 { close(pipeEnds[0]) } }
        for end in pipeEnds where end >= 0 { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(
            &actions, output == .captured ? pipeEnds[1] : STDERR_FILENO, STDOUT_FILENO)

        var argumentPointers = all.map { strdup($0) } + [nil]
        defer { for pointer in argumentPointers { free(pointer) } }
        var process: pid_t = 0
        let error = posix_spawnp(&process, all[0], &actions, nil, &argumentPointers, environ)
        if pipeEnds[1] >= 0 { close(pipeEnds[1]) }
        guard error == 0 else { throw failure(arguments, error) }

        let text = output == .captured ? readToEnd(pipeEnds[0]) : ""
        var status: CInt = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { throw failure(arguments, errno) }
        }
        guard status == 0 else {
            let reason =
                status & 0x7F == 0 ? "failed with status \(status >> 8)" : "was ended by signal \(status & 0x7F)"
            throw GuestBuildError("'\(arguments.joined(separator: " "))' \(reason)")
        }
        return text.last == "\n" ? String(text.dropLast()) : text
    }

    private static func failure(_ arguments: [String], _ error: CInt) -> GuestBuildError {
        GuestBuildError("cannot run '\(arguments[0])': \(Errno(rawValue: error))")
    }

    private static func readToEnd(_ descriptor: CInt) -> String {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { break }
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
