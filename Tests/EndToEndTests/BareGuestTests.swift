import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// The command with guests of a few instructions: exit statuses, console, signals.
    @Suite struct BareGuests {
        /// Prints for ever.
        private static let chatter: [UInt8] = [0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x79, 0xEE, 0xEB, 0xFD]
        private static let busyLoop: [UInt8] = [0xEB, 0xFE]

        private let scratch = ScratchDirectory()

        private func arguments(_ code: [UInt8], _ more: [String] = []) -> [String] {
            let kernel = scratch.write(BareGuest.elf(code), to: "kernel")
            return ["run", "--kernel", kernel, "--memory", "16M"] + more
        }

        @Test func powerOffIsSuccess() throws {
            let child = try Boot.start(arguments(BareGuest.print("ok\n") + BareGuest.powerOff))
            #expect(child.wait() == .exited(0))
            #expect(child.outputText == "ok\n")
            #expect(child.errors.isEmpty, "\(child.errorText)")
        }

        /// No interrupt table, and an exception: the processor shuts down.
        @Test(arguments: [1, 2])
        func aTripleFaultShowsTheRegisters(cpus: Int) throws {
            // mov ebp, 0x12345678; lidt [0x200000]; int3
            let code: [UInt8] = [
                0xBD, 0x78, 0x56, 0x34, 0x12, 0x0F, 0x01, 0x1D, 0x00, 0x00, 0x20, 0x00, 0xCC
            ]
            let child = try Boot.start(arguments(BareGuest.print("x") + code, ["--cpus", "\(cpus)"]))
            #expect(child.wait() == .exited(3), Boot.account(child))
            #expect(child.outputText == "x")
            let rip = 0x10_0000 + BareGuest.print("x").count + 12
            for part in [
                "vCPU 0:", "RBP=0000000012345678", "CR0=0000000000000011", "CS =0010", "GDT=base",
                "IDT=base 0000000000000000 limit 0000",
                "RIP=0000000000\(String(rip, radix: 16))", "triple fault"
            ] {
                #expect(child.errorText.contains(part), "\(part): \(child.errorText)")
            }
            #expect(!child.hasLeftProcesses)
        }

        /// What cannot be executed is no fault of the host's: the guest jumps to where there is no memory.
        @Test func anInternalErrorShowsTheRegisters() throws {
            let code: [UInt8] = [0xB8, 0x00, 0x00, 0x00, 0xD0, 0xFF, 0xE0]  // mov eax, 0xD0000000; jmp eax
            let child = try Boot.start(arguments(BareGuest.print("x") + code, ["--cpus", "2"]))
            #expect(child.wait() == .exited(4), Boot.account(child))
            #expect(child.outputText == "x")
            for part in ["vCPU 0:", "RAX=00000000d0000000", "RIP=00000000d0000000", "internal error"] {
                #expect(child.errorText.contains(part), "\(part): \(child.errorText)")
            }
            #expect(!child.hasLeftProcesses)
        }

        /// Page tables where there is no memory.
        @Test func aGuestThatLosesItsPageTables() throws {
            // mov eax, 0xD0000000; mov cr3, eax; mov eax, 0x80000011; mov cr0, eax
            let code: [UInt8] = [
                0xB8, 0x00, 0x00, 0x00, 0xD0, 0x0F, 0x22, 0xD8, 0xB8, 0x11, 0x00, 0x00, 0x80, 0x0F, 0x22, 0xC0
            ]
            let child = try Boot.start(arguments(code))
            #expect(child.wait() == .exited(3), Boot.account(child))
            #expect(child.errorText.contains("CR3=00000000d0000000"), Boot.account(child))
        }

        /// The host fails while the guest runs: a full disk.
        @Test(.enabled(if: access("/dev/full", W_OK) == 0, "needs /dev/full"))
        func aFullDiskIsAHostFailure() throws {
            let full = open("/dev/full", O_WRONLY | O_CLOEXEC)
            defer { close(full) }
            let child = try Boot.start(arguments(Self.chatter), output: .descriptor(full))
            #expect(child.wait() == .exited(1), Boot.account(child))
            #expect(child.errors.occurrences(of: "\n") == 1, Boot.account(child))
            #expect(child.errorText.contains("No space left on device"), Boot.account(child))
        }

        /// The host has no room for the stacks of so many threads.
        @Test func noThreadsIsAHostFailure() throws {
            let command = try #require(MartletCommand.path)
            let kernel = scratch.write(BareGuest.elf(BareGuest.idle), to: "kernel")
            let child = try ChildProcess([
                "/bin/sh", "-c", "ulimit -v 1800000; exec \"$0\" run --kernel \"$1\" --memory 16M --cpus 254", command,
                kernel
            ])
            #expect(child.wait() == .exited(1), Boot.account(child))
            #expect(child.errors.occurrences(of: "\n") == 1, Boot.account(child))
            #expect(child.errorText.contains("fewer processors (--cpus)"), Boot.account(child))
            #expect(!child.hasLeftProcesses)
        }

        @Test func aResetCanEndTheRun() throws {
            let child = try Boot.start(arguments(BareGuest.print("r") + BareGuest.reset, ["--no-reboot"]))
            #expect(child.wait() == .exited(0))
            #expect(child.outputText == "r")
        }

        @Test func aResetStartsAgain() throws {
            let child = try Boot.start(arguments(BareGuest.print("r") + BareGuest.reset))
            #expect(child.waitForOutput(containing: "r", count: 5))
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        @Test func aPipeGoesThroughUnchangedAndItsEndEndsNothing() throws {
            let child = try Boot.start(arguments(BareGuest.echo), input: .pipe)
            child.send("a\u{1}x\u{3}\u{0}b\n")
            #expect(child.waitForOutput(containing: "a\u{1}x\u{3}\u{0}b\n"))
            child.send("last")
            child.closeInput()
            #expect(child.waitForOutput(containing: "last"))
            #expect(child.wait(patienceSeconds: 0.2) == .running)
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        @Test(arguments: [SIGINT, SIGTERM, SIGHUP], [BareGuest.idle, busyLoop])
        func signalsEndTheRunAndRestoreTheTerminal(signal: CInt, code: [UInt8]) throws {
            let session = try TerminalSession(arguments(BareGuest.print("up") + code, ["--cpus", "2"]))
            #expect(session.waits(for: "up"), session.account)
            #expect(!session.isCooked)
            session.child.signal(signal)
            #expect(session.waitForEnd() == .exited(128 + signal))
            #expect(session.settings == session.settingsBefore)
            #expect(!session.child.hasLeftProcesses)
        }

        @Test func theTerminalIsTheGuests() throws {
            let session = try TerminalSession(arguments(BareGuest.print("up") + BareGuest.echo))
            #expect(session.waits(for: "up"), session.account)
            session.type("hello\u{3}\u{1}a!")
            #expect(session.waits(for: "hello\u{3}\u{1}!"), session.account)
            session.type("\u{1}x")
            #expect(session.waitForEnd() == .exited(0))
            #expect(session.settings == session.settingsBefore)
        }

        /// A guest in a tight loop with nobody to stop it but us.
        @Test func aBusyGuestCanBeLeft() throws {
            let session = try TerminalSession(arguments(BareGuest.print("up") + Self.busyLoop))
            #expect(session.waits(for: "up"), session.account)
            session.type("\u{1}x")
            #expect(session.waitForEnd() == .exited(0))
        }

        /// The end of input is no end for the terminal either: it hangs up, and the guest runs on.
        @Test func withoutInputAtAll() throws {
            let command = try #require(MartletCommand.path)
            let kernel = scratch.write(BareGuest.elf(BareGuest.print("up") + BareGuest.powerOff), to: "kernel")
            let child = try ChildProcess([
                "/bin/sh", "-c", "exec \"$0\" run --kernel \"$1\" --memory 16M <&-", command, kernel
            ])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.outputText == "up")
        }

        @Test func aReaderThatLeavesEndsTheRun() throws {
            let child = try Boot.start(arguments(Self.chatter))
            #expect(child.waitForOutput(containing: "yyyy"))
            child.closeOutput()
            #expect(child.wait() == .exited(2), Boot.account(child))
            #expect(child.errors.occurrences(of: "\n") == 1 && child.errorText.contains("standard output"))
        }

        /// A full pipe slows the guest down; a signal still ends the run.
        @Test func aReaderThatDoesNotReadHoldsUpNobodyWhoLeaves() throws {
            let child = try Boot.start(arguments(Self.chatter))
            #expect(child.waitForOutput(containing: "y"))
            usleep(200_000)
            child.signal(SIGINT)
            #expect(child.wait() == .exited(128 + SIGINT))
        }
    }
}
