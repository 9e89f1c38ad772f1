import Glibc
import TestSupport
import Testing

extension QEMUTests {
    /// GDB at QEMU's stub: at the first instruction, then at a system call that the guest makes again and again.
    @Test(.enabled(if: Client.hasProgram("gdb"), "needs the package gdb"), arguments: [1, 2])
    func debugger(processors: Int) throws {
        let directory = QEMU.sharedDirectory()
        let stub = "\(directory.path)/gdb"
        let qemu = try QEMU.boot(
            "q35", processors: "\(processors)", kernelArguments: "nokaslr",
            running: """
                A=$(grep ' __x64_sys_sethostname$' /proc/kallsyms | cut -c1-16); \
                B=$(grep ' uts_sem$' /proc/kallsyms | cut -c1-16); echo addre''sses $A $B en''d; \
                (until [ -e /tmp/stop ]; do hostname one; done) & read x; touch /tmp/stop; wait; seq 1 20000 | md5sum
                """,
            options: ["-no-reboot", "-S", "-gdb", "unix:\(stub),server=on,wait=off"], input: .pipe, in: directory)
        _ = try qemu.perform("info status")

        let start = try debug(stub, "print/x $rip", "stepi", "print/x $rip", "detach")
        #expect(start.contains("$1 = 0xfff0\n") && start.contains("$2 = 0xe05b\n"), "\(start)")

        try #require(qemu.child.waitForOutput(containing: " end\r\n"), qemu.account)
        let line = try #require(qemu.child.outputText.components(after: "addresses ").first { $0.hasPrefix("ffff") })
        let addresses = line.split(separator: " ", maxSplits: 2)
        try #require(addresses.count == 3, qemu.account)
        let (function, semaphore) = ("0x\(addresses[0])", "0x\(addresses[1])")
        let session = try debug(
            stub, "break *\(function)", "continue", "print $rip == \(function)", "x/i $rip", "stepi",
            "print $rip > \(function) && $rip <= \(function) + 15", "delete", "hbreak *\(function)", "continue",
            "print $rip == \(function)", "delete", "watch *(long*)\(semaphore)", "continue", "continue", "delete",
            "info threads", "detach")
        for answer in [
            "$1 = 1\n", "$2 = 1\n", "$3 = 1\n", "Old value = 0\nNew value = 1\n", "Old value = 1\nNew value = 0\n"
        ] {
            #expect(session.contains(answer), "no \(answer) in:\n\(session)")
        }
        #expect(session.contains("CPU#\(processors - 1)"), "\(session)")

        qemu.child.send("\n")
        qemu.expectSuccess()
        #expect(qemu.child.outputText.contains("e071f707df7bbeee2a6a1eb48011ddd0  -\r\n"), qemu.account)
    }

    /// Runs GDB with commands.
    /// - Returns: what it said.
    private func debug(_ stub: String, _ commands: String...) throws -> String {
        let preparation = [
            "set pagination off", "set confirm off", "set architecture i386:x86-64", "target remote \(stub)"
        ]
        let gdb = try ChildProcess(
            ["gdb", "-nx", "-q", "-batch"] + (preparation + commands).flatMap { ["-ex", $0] })
        try #require(gdb.wait() == .exited(0), Client.account(gdb))
        return gdb.outputText
    }
}
