import FoundationEssentials
import Glibc
import KVMInterface
import Machine
import TestSupport
import Testing

extension EndToEnd {
    /// `martlet inspect` of a running guest.
    @Suite(.needsGuests) struct Inspecting {
        private func inspect(_ guest: ChildProcess, _ more: [String] = []) throws -> ChildProcess {
            let child = try Boot.start(["inspect", "\(guest.process)"] + more)
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.errors.isEmpty, "\(child.errorText)")
            return child
        }

        @Test func aRunningGuestShowsItsParts() throws {
            let guest = try Boot.start(Boot.arguments(cpus: 2, memory: "256M") + ["--accel", "user"], input: .pipe)
            try #require(guest.waitForOutput(containing: "/root # "), Boot.account(guest))
            let text = try inspect(guest).outputText
            for part in ["flat view", "RAM", "memory slots", "(active)", "vCPU table: 2", "grace periods"] {
                #expect(text.contains(part), "\(part) in:\n\(text)")
            }
            let board = try JSONDecoder().decode(
                BoardInspection.self, from: Data(try inspect(guest, ["--json"]).output))
            #expect(board.process == guest.process)
            #expect(board.flatView.first?.address == 0)
            let core = try #require(board.core)
            #expect(core.vcpus.map(\.id) == [0, 1])
            #expect(core.vcpus.allSatisfy { ($0.statistics["io_exits"] ?? 0) > 0 })
            #expect(core.addressSpaces[0].sets[0] == core.addressSpaces[0].sets[1])
            #expect(core.addressSpaces[0].sets[0].reduce(0) { $0 + $1.byteCount } == 256 << 20)
            // The guest has noticed nothing.
            guest.send("echo $((6*7))-there\n")
            #expect(guest.waitForOutput(containing: "42-there"))
            guest.signal(SIGTERM)
            #expect(guest.wait() == .exited(143))
            let late = try Boot.start(["inspect", "\(guest.process)"])
            #expect(late.wait() == .exited(2), Boot.account(late))
            #expect(late.errorText.contains("does not answer"))
        }
    }
}
