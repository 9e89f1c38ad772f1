import ArgumentParser
import Glibc

/// The command line.
@main
struct Martlet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "martlet",
        abstract: "A virtual machine that needs no virtualization hardware.",
        discussion: """
            Martlet runs an unmodified x86-64 Linux kernel in an ordinary process. It needs neither /dev/kvm nor any \
            privilege; where /dev/kvm works well, it is used.

            Exit status: 0 the guest powered off or was left; 1 the host failed; 2 bad input; 3 the guest's processor \
            shut down (triple fault); 4 internal error; 128 + n ended by signal n.
            """,
        version: "martlet \(version)",
        subcommands: [RunCommand.self, KVMCommand.self, InspectCommand.self, GuestCommand.self, DoctorCommand.self])

    static let version = "0.1.0"

    /// Runs the command that the arguments name and leaves the process with its status.
    static func main() {
        reserveStandardStreams()
        // Writing to a closed pipe is reported where it happens.
        signal(SIGPIPE, SIG_IGN)
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let failure as CommandFailure {
            Message.error(failure.message)
            Glibc.exit(failure.status.rawValue)
        } catch {
            let status = exitCode(for: error)
            if status == .success {
                // Help, version and completion scripts arrive as errors.
                Glibc.exit(StandardOutput.write(fullMessage(for: error) + "\n").rawValue)
            }
            if let exitCode = error as? ExitCode { Glibc.exit(exitCode.rawValue) }
            Message.error(message(for: error))
            Glibc.exit(ExitStatus.badInput.rawValue)
        }
    }

    /// Puts something in the place of standard streams that are closed, so that no other file gets their numbers. What is
    /// written there fails as on a closed one (`EBADF`); what is read is empty.
    private static func reserveStandardStreams() {
        for stream in STDIN_FILENO...STDERR_FILENO where fcntl(stream, F_GETFD) < 0 {
            // The lowest free number is this one.
            _ = open("/dev/null", O_RDONLY)
        }
    }
}
