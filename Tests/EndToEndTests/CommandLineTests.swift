import TestSupport
import Testing

extension EndToEnd {
    /// What the command says when no guest runs.
    @Suite struct CommandLine {
        private func run(_ arguments: [String]) throws -> ChildProcess {
            let child = try Boot.start(arguments)
            #expect(child.wait() == .exited(0), "\(arguments): \(Boot.account(child))")
            return child
        }

        @Test func version() throws {
            let child = try run(["--version"])
            #expect(child.outputText.hasPrefix("martlet ") && child.output.occurrences(of: "\n") == 1)
            #expect(child.errors.isEmpty)
        }

        @Test(arguments: [["--help"], ["help", "run"], ["run", "--help"], ["guest", "--help"], ["doctor", "--help"], []]
        )
        func help(arguments: [String]) throws {
            let child = try run(arguments)
            #expect(child.outputText.contains("USAGE"))
            #expect(child.errors.isEmpty)
        }

        @Test(arguments: ["bash", "zsh", "fish"])
        func completions(shell: String) throws {
            let child = try run(["--generate-completion-script", shell])
            #expect(child.outputText.contains("martlet"))
            #expect(child.outputText.contains("no-reboot"))
        }

        @Test func doctor() throws {
            let child = try run(["doctor"])
            for part in ["bmi2", "avx2", "fsgsbase", "avx512f", "/dev/kvm", "packages", "cloud"] {
                #expect(child.outputText.contains(part), "\(part)")
            }
        }
    }
}
