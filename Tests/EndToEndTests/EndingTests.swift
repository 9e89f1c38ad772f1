import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// The ways a guest ends, and their statuses.
    @Suite struct Endings {
        @Test(.needsGuests) func aRebootCanEndTheRun() throws {
            let child = try Boot.start(Boot.arguments(running: "reboot -f") + ["--no-reboot"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "Linux version") == 1)
            #expect(child.outputText.contains("reboot: Restarting system"), Boot.account(child))
        }

        @Test(.needsGuests) func aRebootStartsAgain() throws {
            let child = try Boot.start(Boot.arguments(cpus: 2, running: "reboot -f"))
            #expect(child.waitForOutput(containing: "Run /init", count: 2), Boot.account(child))
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        /// A kernel that panics reboots, by the default command line.
        @Test(.needsGuests) func aPanicReboots() throws {
            let child = try Boot.start(
                Boot.arguments(running: "echo c > /proc/sysrq-trigger") + ["--no-reboot"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.outputText.contains("Kernel panic"), Boot.account(child))
        }

        /// No interrupt table, and a breakpoint: the processor shuts down.
        @Test(
            .enabled(if: GuestAssembler.isAvailable, Comment(rawValue: GuestAssembler.missing)), arguments: [1, 2])
        func aTripleFaultDumpsTheRegisters(cpus: Int) throws {
            let scratch = ScratchDirectory()
            let kernel = try GuestAssembler.kernel(
                """
                start:  mov $0x3F8, %edx
                        mov $'!', %al
                        out %al, %dx
                        mov $0x12345678, %ebp
                        lidt none
                stop:   int3
                none:   .word 0
                        .long 0
                """, name: "triple", in: scratch)
            let child = try Boot.start(["run", "--kernel", kernel, "--memory", "16M", "--cpus", "\(cpus)"])
            #expect(child.wait() == .exited(3), Boot.account(child))
            #expect(child.outputText == "!")
            for part in [
                "RBP=0000000012345678", "CR0=0000000000000011", "IDT=base 0000000000000000 limit 0000",
                "RIP=00000000001000"
            ] {
                #expect(child.errorText.contains(part), "\(part): \(child.errorText)")
            }
            #expect(child.errorText.contains("triple fault"))
            #expect(!child.hasLeftProcesses)
        }

        @Test(.needsGuests) func aReaderThatGoesAwayEndsTheRun() throws {
            let child = try Boot.start(Boot.arguments())
            try #require(child.waitForOutput(containing: "Linux version"), Boot.account(child))
            child.closeOutput()
            #expect(child.wait() == .exited(2), Boot.account(child))
            #expect(child.errors.occurrences(of: "\n") == 1, "\(child.errorText)")
            #expect(child.errorText.contains("standard output"))
        }
    }
}
