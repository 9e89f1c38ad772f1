import DefaultGuest
import Glibc
import TestSupport
import Testing

extension EndToEnd {
    /// The ways a guest ends, and their statuses.
    @Suite(.needsGuests) struct Endings {
        @Test func aRebootCanEndTheRun() throws {
            let child = try Boot.start(Boot.arguments(running: "reboot -f") + ["--no-reboot"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.output.occurrences(of: "Linux version") == 1)
            #expect(child.outputText.contains("reboot: Restarting system"), Boot.account(child))
        }

        @Test func aRebootStartsAgain() throws {
            let child = try Boot.start(Boot.arguments(cpus: 2, running: "reboot -f"))
            #expect(child.waitForOutput(containing: "Run /init", count: 2), Boot.account(child))
            child.signal(SIGTERM)
            #expect(child.wait() == .exited(143))
        }

        /// A kernel that panics reboots, by the default command line.
        @Test func aPanicReboots() throws {
            let child = try Boot.start(
                Boot.arguments(running: "echo c > /proc/sysrq-trigger") + ["--no-reboot"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.outputText.contains("Kernel panic"), Boot.account(child))
        }
    }
}
