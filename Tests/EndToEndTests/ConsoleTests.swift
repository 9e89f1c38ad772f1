import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// The guest's serial console on terminals and pipes.
    @Suite(.needsGuests) struct Consoles {
        /// The prompt of busybox's shell in the default guest.
        private static let prompt = "/root # "

        @Test func aShellOnATerminal() throws {
            let session = try TerminalSession(Boot.arguments())
            try #require(session.waits(for: Self.prompt), session.account)
            #expect(!session.isCooked)
            // The guest echoes what is typed; the answer stands on a line of its own.
            session.type("echo $((6*7))-$(tty)\r")
            #expect(session.waits(for: "\r\n42-/dev/ttyS0\r\n"), session.account)
            #expect(session.waits(for: Self.prompt), session.account)
            // Ctrl-C interrupts the guest's program, not ours.
            session.type("sleep 1000\r")
            #expect(session.waits(for: "sleep 1000\r\n"))
            session.type("\u{3}")
            #expect(session.waits(for: Self.prompt), session.account)
            session.type("\u{1}x")
            #expect(session.waitForEnd() == .exited(0))
            #expect(session.settings == session.settingsBefore)
            #expect(session.child.errors.isEmpty, "\(session.child.errorText)")
            #expect(!session.child.hasLeftProcesses)
        }

        @Test func leavingTheShellPowersOff() throws {
            let session = try TerminalSession(Boot.arguments(cpus: 2))
            try #require(session.waits(for: Self.prompt), session.account)
            session.type("exit\r")
            #expect(session.waitForEnd() == .exited(0))
            #expect(session.screen.occurrences(of: "reboot: Power down") == 1, session.account)
            #expect(session.settings == session.settingsBefore)
        }

        @Test func aSignalRestoresTheTerminal() throws {
            let session = try TerminalSession(Boot.arguments(cpus: 2))
            try #require(session.waits(for: "Linux version"), session.account)
            #expect(!session.isCooked)
            session.child.signal(SIGTERM)
            #expect(session.waitForEnd() == .exited(143))
            #expect(session.settings == session.settingsBefore)
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
            #expect(child.output.occurrences(of: "\nstillhere") == 1, Boot.account(child))
        }

        /// What is in the pipe before the guest is there waits for it.
        @Test func aPipeTypesAhead() throws {
            let child = try Boot.start(Boot.arguments(), input: .pipe)
            child.send((1...300).map { "echo $((1000*\($0)))\n" }.joined() + "exit\n")
            child.closeInput()
            #expect(child.wait() == .exited(0), Boot.account(child))
            let numbers = child.outputText.split(whereSeparator: \.isNewline).compactMap { Int($0) }
            #expect(numbers == (1...300).map { 1000 * $0 }, Boot.account(child))
            #expect(child.errors.isEmpty, "\(child.errorText)")
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
            let expected = (1...20000).map { "\n\($0)" }.joined() + "\nend\n"
            #expect(child.output.occurrences(of: expected) == 1, Boot.account(child))
        }
    }
}
