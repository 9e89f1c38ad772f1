import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// The guest's serial console on terminals and pipes.
    @Suite(.needsGuests) struct Consoles {
        /// The prompt of busybox's shell in the default guest.
        private static let prompt = "~ # "

        /// A guest on a terminal, and what its user sees.
        private final class Session {
            let terminal: PseudoTerminal
            let settings: [UInt32]
            let child: ChildProcess
            var screen: [UInt8] = []

            init(_ arguments: [String]) throws {
                let terminal = try PseudoTerminal()
                self.terminal = terminal
                settings = terminal.settings
                child = try Boot.start(
                    arguments, input: .descriptor(terminal.program), output: .descriptor(terminal.program))
            }

            var text: String { String(decoding: screen, as: UTF8.self) }

            /// Waits until the screen shows `text`, `count` times.
            func waits(for text: String, count: Int = 1) -> Bool {
                let deadline = ChildProcess.now() + ChildProcess.patienceSeconds
                while ChildProcess.now() < deadline {
                    terminal.read(into: &screen)
                    if screen.occurrences(of: text) >= count { return true }
                    if child.wait(patienceSeconds: 0.02) != .running {
                        terminal.read(into: &screen)
                        return screen.occurrences(of: text) >= count
                    }
                }
                return false
            }

            /// Waits for the end of the command, reading the screen meanwhile.
            func waitForEnd() -> ChildProcess.End {
                let deadline = ChildProcess.now() + ChildProcess.patienceSeconds
                while ChildProcess.now() < deadline {
                    terminal.read(into: &screen)
                    let end = child.wait(patienceSeconds: 0.02)
                    if end != .running { return end }
                }
                return .running
            }
        }

        @Test func aShellOnATerminal() throws {
            let session = try Session(Boot.arguments())
            #expect(session.terminal.isCooked)
            try #require(session.waits(for: Self.prompt), "\(session.text.suffix(2000))")
            #expect(!session.terminal.isCooked)
            session.terminal.type("echo $((6*7))\r")
            // The guest echoes what is typed; the answer stands on a line of its own.
            #expect(session.waits(for: "\r\n42\r\n"), "\(session.text.suffix(500))")
            // Ctrl-C interrupts the guest's program, not ours.
            session.terminal.type("sleep 1000\r")
            #expect(session.waits(for: "sleep 1000\r\n"))
            session.terminal.type("\u{3}")
            #expect(session.waits(for: Self.prompt, count: 3), "\(session.text.suffix(500))")
            session.terminal.type("\u{1}x")
            #expect(session.waitForEnd() == .exited(0))
            #expect(session.terminal.settings == session.settings)
            #expect(session.child.errors.isEmpty, "\(session.child.errorText)")
            #expect(!session.child.hasLeftProcesses)
        }

        @Test func leavingTheShellPowersOff() throws {
            let session = try Session(Boot.arguments(cpus: 2))
            try #require(session.waits(for: Self.prompt), "\(session.text.suffix(2000))")
            session.terminal.type("exit\r")
            #expect(session.waitForEnd() == .exited(0))
            #expect(session.text.contains("reboot: Power down"))
            #expect(session.terminal.settings == session.settings)
        }

        @Test(arguments: [SIGTERM, SIGINT, SIGHUP])
        func signalsRestoreTheTerminal(signal: CInt) throws {
            let session = try Session(Boot.arguments(cpus: 2))
            try #require(session.waits(for: "Linux version"), "\(session.text)")
            #expect(!session.terminal.isCooked)
            session.child.signal(signal)
            #expect(session.waitForEnd() == .exited(128 + signal))
            #expect(session.terminal.settings == session.settings)
            #expect(!session.child.hasLeftProcesses)
        }

        @Test func signalsWithoutATerminal() throws {
            let child = try Boot.start(Boot.arguments())
            try #require(child.waitForOutput(containing: "Linux version"), Boot.account(child))
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        /// Commands in a pipe are typed; its end does not end the guest; Ctrl-A means nothing there.
        @Test func aPipeTypes() throws {
            let child = try Boot.start(Boot.arguments(), input: .pipe)
            try #require(child.waitForOutput(containing: Self.prompt), Boot.account(child))
            child.send("echo $((6*7)) | sed s/^/answer=/\n")
            #expect(child.waitForOutput(containing: "\nanswer=42"), Boot.account(child))
            child.send("\u{1}x\u{15}sleep 1; echo still''here; exit\n")
            child.closeInput()
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.outputText.contains("\nstillhere"), Boot.account(child))
        }

        /// A guest without input runs on.
        @Test func theEndOfInputEndsNothing() throws {
            let child = try Boot.start(Boot.arguments(), input: .empty)
            try #require(child.waitForOutput(containing: Self.prompt), Boot.account(child))
            #expect(child.wait(patienceSeconds: 1) == .running)
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        /// Everything the guest has written arrives, however slowly it is read.
        @Test func longOutputArrives() throws {
            let child = try Boot.start(Boot.arguments(running: "stty -onlcr; seq 1 20000; echo end"))
            #expect(child.wait() == .exited(0), Boot.account(child))
            let numbers = child.outputText.split(separator: "\n").compactMap { Int($0) }
            #expect(numbers == Array(1...20000))
        }
    }
}
