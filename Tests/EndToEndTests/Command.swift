import Glibc
import SystemPackage

/// The built command as a process of its own.
enum Command {
    /// The command beside the test's executable, which the same build has made; `MARTLET_COMMAND` names another.
    static let path: String = {
        if let given = getenv("MARTLET_COMMAND") { return String(cString: given) }
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = FilePath(String(decoding: buffer.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self))
        return own.removingLastComponent().appending("martlet").string
    }()

    struct Result {
        var status: Int32
        var output: String
        var errors: String
    }

    /// Runs the command to its end; standard input is a pipe that holds `input`.
    ///
    /// - Parameters:
    ///   - environment: `NAME=value`, in addition to our own.
    ///   - redirection: shell text behind the command, for example `>&-`.
    static func run(
        _ arguments: [String], input: String = "", environment: [String] = [], redirection: String = ""
    ) throws -> Result {
        let (output, errors, typed) = (
            try TemporaryFile([]), try TemporaryFile([]), try TemporaryFile(Array(input.utf8))
        )
        let quoted = (environment + ["SWIFT_BACKTRACE=enable=no", path] + arguments).map { "'\($0)'" }
        let script =
            "cat '\(typed.path)' | env \(quoted.joined(separator: " ")) >'\(output.path)' 2>'\(errors.path)' \(redirection)"
        let process = try spawn(["sh", "-c", script], descriptors: nil)
        return Result(status: try wait(process), output: try read(output.path), errors: try read(errors.path))
    }

    /// Starts a program with its standard descriptors on `descriptors`, in a session of its own.
    static func spawn(_ arguments: [String], descriptors: [CInt]?) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for (standard, descriptor) in (descriptors ?? []).enumerated() {
            posix_spawn_file_actions_adddup2(&actions, descriptor, CInt(standard))
        }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // The tests ignore SIGPIPE, and threads of the test library block signals; a shell's child would not.
        var signals = sigset_t()
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        let setSession: Int16 = 0x80
        posix_spawnattr_setflags(
            &attributes, setSession | Int16(POSIX_SPAWN_SETSIGDEF) | Int16(POSIX_SPAWN_SETSIGMASK))
        var pointers = arguments.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        var process: pid_t = 0
        let error = posix_spawnp(&process, arguments[0], &actions, &attributes, &pointers, environ)
        guard error == 0 else { throw Errno(rawValue: error) }
        return process
    }

    /// The exit status, or 128 and the signal, as a shell counts.
    static func wait(_ process: pid_t) throws -> Int32 {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { throw Errno(rawValue: errno) }
        }
        return exitStatus(status)
    }

    static func exitStatus(_ status: Int32) -> Int32 {
        status & 0x7F == 0 ? status >> 8 & 0xFF : 128 + (status & 0x7F)
    }

    private static func read(_ path: String) throws -> String {
        let file = try FileDescriptor.open(FilePath(path), .readOnly)
        return try file.closeAfter {
            var bytes: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 65536)
            while true {
                let count = try buffer.withUnsafeMutableBytes { try file.read(into: $0) }
                if count == 0 { return String(decoding: bytes, as: UTF8.self) }
                bytes += buffer[..<count]
            }
        }
    }
}
