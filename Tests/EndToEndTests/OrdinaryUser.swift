import Glibc
import TestSupport
import Testing

/// The command as a user without privileges, whoever runs the tests.
enum OrdinaryUser {
    private static let id: uid_t = 65534

    /// Root can become another user; other users are ordinary already.
    static var isAvailable: Bool { geteuid() != 0 || access(program, X_OK) == 0 }
    static let missing: Comment = "needs setpriv, of the package util-linux"
    private static let program = "/usr/bin/setpriv"

    /// Starts a copy of the command: where the tests run need not be open to everybody.
    ///
    /// - Parameter home: becomes the user's own; the copy is there.
    static func start(
        _ arguments: [String], home: ScratchDirectory, prefix: [String] = [],
        input: ChildProcess.Input = .empty
    ) throws -> ChildProcess {
        let command = try #require(MartletCommand.path)
        var all: [String] = []
        var copy = command
        if geteuid() == 0 {
            copy = home.write(try #require(ScratchDirectory.contents(of: command)), to: "martlet")
            chmod(copy, 0o755)
            chown(home.path, id, id)
            all += [program, "--reuid=\(id)", "--regid=\(id)", "--clear-groups", "--inh-caps=-all"]
        }
        let environment: [String: String?] = [
            "HOME": home.path, "XDG_CACHE_HOME": nil, "TMPDIR": nil, "SWIFT_BACKTRACE": "enable=no"
        ]
        return try ChildProcess(
            all + prefix + [copy] + arguments, environment: environment, directory: "/", input: input)
    }
}
