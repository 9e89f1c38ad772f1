import Glibc
import TestSupport
import Testing

/// A program that uses KVM, run by `martlet kvm`.
///
/// Where the tests run as root, it runs as a user without privileges, in a mount namespace without `/dev/kvm`.
enum Client {
    /// What is in a client's environment besides the tests' own.
    static let environment: [String: String?] = ["SWIFT_BACKTRACE": "enable=no", "LD_PRELOAD": nil]

    private static let ordinaryUser = "65534"
    private static let folder = String(#filePath.prefix(upTo: #filePath.lastIndex(of: "/")!))

    /// Starts `martlet kvm OPTIONS -- COMMAND`.
    ///
    /// - Parameter asRoot: what some clients need, e.g. for userfaultfd; the tests must run as root then.
    static func start(
        _ command: [String], options: [String] = [], directory: String = "/", asRoot: Bool = false,
        input: ChildProcess.Input = .empty
    ) throws -> ChildProcess {
        let martlet = try #require(MartletCommand.path)
        var all = [martlet, "kvm"] + options + ["--"] + command
        if geteuid() == 0 { all = ["\(folder)/without-kvm.sh", asRoot ? "-" : ordinaryUser] + all }
        return try ChildProcess(all, environment: environment, directory: directory, input: input)
    }

    /// What a finished client said, for a failed expectation.
    static func account(_ child: ChildProcess) -> Comment {
        "standard output:\n\(child.outputText.suffix(4000))\nstandard error:\n\(child.errorText.suffix(2000))"
    }

    /// The path of one of the programs of these tests, built.
    static func program(_ name: String) throws -> String {
        try build(["\(folder)/Programs/\(name).c"], to: "\(built.path)/\(name)")
    }

    /// Where the cases are that are compared with a real KVM.
    static let oracleFolder = "\(folder)/Oracle"

    /// The path of the program that runs them, built.
    static func oracleProgram() throws -> String {
        let sources = ScratchDirectory.names(in: oracleFolder).filter { $0.hasSuffix(".c") }
        return try build(sources.map { "\(oracleFolder)/\($0)" }, to: "\(built.path)/oracle")
    }

    private static func build(_ sources: [String], to program: String) throws -> String {
        if access(program, X_OK) == 0 { return program }
        let options = ["-O1", "-g", "-Wall", "-Werror", "-D_GNU_SOURCE", "-o", program]
        let compiler = try ChildProcess(["gcc"] + options + sources + ["-lpthread"])
        try #require(compiler.wait(patienceSeconds: 120) == .exited(0), account(compiler))
        return program
    }

    /// Readable for the ordinary user; lives as long as the tests.
    private static let built: ScratchDirectory = {
        let directory = ScratchDirectory()
        chmod(directory.path, 0o755)
        return directory
    }()

    /// Whether a program is in the tests' `PATH`.
    static func hasProgram(_ name: String) -> Bool {
        let folders = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin"
        return folders.split(separator: ":").contains { access("\($0)/\(name)", X_OK) == 0 }
    }

    static var isAvailable: Bool { MartletCommand.path != nil && hasProgram("gcc") }
    static let missing: Comment = "needs the martlet command (make build) and gcc"
}
