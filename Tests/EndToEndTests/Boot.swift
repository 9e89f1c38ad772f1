import DefaultGuest
import SystemPackage
import TestSupport
import Testing

/// The suites of this target: they run one after the other, because a boot takes whole processors.
@Suite(
    .serialized, .timeLimit(.minutes(20)),
    .enabled(if: MartletCommand.path != nil, Comment(rawValue: MartletCommand.missing)))
struct EndToEnd {}

/// `martlet run` with a guest of the cache.
enum Boot {
    /// Starts the command with `arguments`.
    static func start(
        _ arguments: [String], environment: [String: String?] = [:], directory: String? = nil,
        input: ChildProcess.Input = .empty, output: ChildProcess.Output = .pipe, errors: ChildProcess.Output = .pipe
    ) throws -> ChildProcess {
        let command = try #require(MartletCommand.path)
        let crashes: [String: String?] = ["SWIFT_BACKTRACE": "enable=no"]
        return try ChildProcess(
            [command] + arguments, environment: environment.merging(crashes) { own, _ in own }, directory: directory,
            input: input, output: output,
            errors: errors)
    }

    /// The arguments that boot the guest of `flavour`.
    ///
    /// - Parameter command: what the guest's shell runs before it powers off; nil leaves the guest at its prompt. It has
    ///   no double quotes.
    static func arguments(
        _ flavour: GuestFlavour = .cloud, cpus: Int = 1, memory: String = "256M", running command: String? = nil,
        kernel: String? = nil
    ) throws -> [String] {
        let guest = try #require(MartletCommand.guest(flavour))
        var arguments = [
            "run", "--kernel", kernel ?? guest.kernel.string, "--initramfs", guest.initramfs.string,
            "--cpus", "\(cpus)", "--memory", memory
        ]
        if let command { arguments += ["--append", "martlet.run=\"\(command)\""] }
        return arguments
    }

    /// What a test says when a guest did not do what it should.
    static func account(_ child: ChildProcess) -> Comment {
        "standard error: \(child.errorText)\nend of the console: \(child.outputText.suffix(2000))"
    }
}

extension Trait where Self == ConditionTrait {
    /// Skips what boots Debian's kernels where there are none.
    static var needsGuests: Self {
        .enabled(if: MartletCommand.hasGuests, Comment(rawValue: MartletCommand.missingGuests))
    }
}
