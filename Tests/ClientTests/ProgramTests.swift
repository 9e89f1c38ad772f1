import TestSupport
import Testing

/// Small programs that use KVM as clients do, each of which checks itself.
@Suite(.serialized, .enabled(if: Client.isAvailable, Client.missing))
struct ProgramTests {
    @Test(arguments: ["signals", "descriptors", "memory", "processor"], [["--mmu", "walk"], ["--mmu", "shadow"]])
    func passes(name: String, options: [String]) throws {
        let child = try Client.start([try Client.program(name)], options: options)
        #expect(child.wait() == .exited(0), Client.account(child))
        #expect(child.outputText == "passed\n", Client.account(child))
    }
}
