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

        /// What runs guest code is told before anything else goes wrong, here the kernel that is none.
        @Test(arguments: [("user", "martlet: accel: user space: asked for\n"), ("auto", "martlet: accel: ")])
        func accelerator(name: String, line: String) throws {
            let child = try Boot.start(["run", "--accel", name, "--verbose", "--kernel", "/dev/null"])
            #expect(child.wait() == .exited(2), Boot.account(child))
            #expect(child.errorText.hasPrefix(line), "\(child.errorText)")
            #expect(child.errors.occurrences(of: "\n") == 2)
        }

        @Test func acceleratorThatIsNone() throws {
            let child = try Boot.start(["run", "--accel", "tcg"])
            #expect(child.wait() == .exited(2), Boot.account(child))
            for part in ["tcg", "--accel", "auto", "user", "kernel"] { #expect(child.errorText.contains(part)) }
        }

        /// Asked for, the kernel's KVM is used or it is an error; `auto` never is one.
        @Test func kernelAccelerator() throws {
            let report = try run(["doctor"]).outputText.split(separator: "\n")
            let verdict = try #require(report.first { $0.hasPrefix("    kernel ") && $0.contains("/dev/kvm") })
            let child = try Boot.start(["run", "--accel", "kernel", "--verbose", "--kernel", "/dev/null"])
            if verdict.contains(" no: ") {
                #expect(child.wait() == .exited(1), Boot.account(child))
                #expect(child.errorText.hasPrefix("martlet: error: /dev/kvm "), "\(child.errorText)")
                #expect(child.errorText.contains("--accel user"))
                #expect(child.errors.occurrences(of: "\n") == 1)
            } else {
                #expect(child.wait() == .exited(2), Boot.account(child))
                #expect(child.errorText.hasPrefix("martlet: accel: kernel: /dev/kvm "), "\(child.errorText)")
            }
        }

        @Test func doctor() throws {
            let child = try run(["doctor"])
            for part in ["bmi2", "avx2", "fsgsbase", "avx512f", "/dev/kvm", "packages", "cloud"] {
                #expect(child.outputText.contains(part), "\(part)")
            }
        }
    }
}
