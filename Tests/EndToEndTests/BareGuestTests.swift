import Glibc
import Testing

/// The command with guests of a few instructions: exit statuses, console, signals.
@Suite struct BareGuestTests {
    private static func run(_ code: [UInt8], _ arguments: [String] = [], input: String = "") throws -> Command.Result {
        let kernel = try TemporaryFile(BareGuest.elf(code))
        return try Command.run(["run", "--kernel", kernel.path, "--memory", "16M"] + arguments, input: input)
    }

    @Test func powerOffIsSuccess() throws {
        let result = try Self.run(BareGuest.print("ok\n") + BareGuest.powerOff)
        #expect(result.status == 0)
        #expect(result.output == "ok\n")
        #expect(result.errors == "")
    }

    @Test func aTripleFaultShowsTheRegisters() throws {
        let result = try Self.run(BareGuest.print("x") + BareGuest.tripleFault)
        #expect(result.status == 3)
        #expect(result.output == "x")
        #expect(result.errors.contains("RIP="))
        #expect(result.errors.contains("CR3="))
        #expect(result.errors.contains("triple fault"))
    }

    @Test func aResetCanEndTheRun() throws {
        let result = try Self.run(BareGuest.print("r") + BareGuest.reset, ["--no-reboot"])
        #expect(result.status == 0)
        #expect(result.output == "r")
    }

    @Test func aPipeGoesThroughUnchangedAndItsEndEndsNothing() throws {
        let kernel = try TemporaryFile(BareGuest.elf(BareGuest.echo))
        let session = try Session(onPipes: ["run", "--kernel", kernel.path, "--memory", "16M"])
        try session.type("a\u{1}x\u{3}\u{0}b\n")
        try session.expect("a\u{1}x\u{3}\u{0}b\n")
        try session.type("last")
        try session.endInput()
        try session.expect("last")
        session.send(signal: SIGTERM)
        #expect(try session.end() == 128 + SIGTERM)
    }

    @Test(arguments: [SIGINT, SIGTERM, SIGHUP])
    func signalsEndTheRunAndRestoreTheTerminal(signal: Int32) throws {
        let kernel = try TemporaryFile(BareGuest.elf(BareGuest.print("up") + BareGuest.idle))
        let session = try Session(onTerminal: ["run", "--kernel", kernel.path, "--memory", "16M", "--cpus", "2"])
        try session.expect("up")
        #expect(session.modeNow.c_lflag & tcflag_t(ICANON | ECHO | ISIG) == 0)
        session.send(signal: signal)
        #expect(try session.end() == 128 + signal)
        #expect(session.modeNow.c_lflag == session.modeBefore.c_lflag)
        #expect(session.modeNow.c_iflag == session.modeBefore.c_iflag)
        #expect(session.modeNow.c_oflag == session.modeBefore.c_oflag)
    }

    @Test func theTerminalIsTheGuests() throws {
        let kernel = try TemporaryFile(BareGuest.elf(BareGuest.print("up") + BareGuest.echo))
        let session = try Session(onTerminal: ["run", "--kernel", kernel.path, "--memory", "16M"])
        try session.expect("up")
        try session.type("hello\u{3}\u{1}a!")
        try session.expect("hello\u{3}\u{1}!")
        try session.type("\u{1}x")
        #expect(try session.end() == 0)
        #expect(session.modeNow.c_lflag == session.modeBefore.c_lflag)
    }

    /// A guest in a tight loop with nobody to stop it but us.
    @Test func aBusyGuestCanBeLeft() throws {
        let kernel = try TemporaryFile(BareGuest.elf(BareGuest.print("up") + [0xEB, 0xFE]))
        let session = try Session(onTerminal: ["run", "--kernel", kernel.path, "--memory", "16M"])
        try session.expect("up")
        try session.type("\u{1}x")
        #expect(try session.end() == 0)
    }

    @Test func aReaderThatLeavesEndsTheRun() throws {
        // Prints for ever.
        let loop: [UInt8] = [0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x79, 0xEE, 0xEB, 0xFD]
        let kernel = try TemporaryFile(BareGuest.elf(loop))
        let session = try Session(onPipes: ["run", "--kernel", kernel.path, "--memory", "16M"])
        try session.expect("yyyy")
        try session.stopReading()
        #expect(try session.end() == 2)
    }

    /// A full pipe slows the guest down; a signal still ends the run.
    @Test func aReaderThatDoesNotReadHoldsUpNobodyWhoLeaves() throws {
        let loop: [UInt8] = [0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x79, 0xEE, 0xEB, 0xFD]
        let kernel = try TemporaryFile(BareGuest.elf(loop))
        let session = try Session(onPipes: ["run", "--kernel", kernel.path, "--memory", "16M"])
        try session.expect("y")
        usleep(200_000)
        session.send(signal: SIGINT)
        #expect(try session.end() == 128 + SIGINT)
    }
}
