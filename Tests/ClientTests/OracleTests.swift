import TestSupport
import Testing

/// What small clients are told by a real KVM, of which a transcript is kept, and by Martlet.
///
/// `Tools/oracle.sh clients --record` makes the transcript anew; `Oracle/accepted.txt` says which differences there are, and why.
@Suite(.serialized, .enabled(if: Client.isAvailable && Client.hasProgram("diff"), Client.missing))
struct OracleTests {
    @Test(arguments: [["--mmu", "walk"], ["--mmu", "shadow"]])
    func asOnARealKVM(options: [String]) throws {
        let folder = Client.oracleFolder
        let child = try Client.start([try Client.oracleProgram()], options: options)
        #expect(child.wait(patienceSeconds: 300) == .exited(0), Client.account(child))
        let scratch = ScratchDirectory()
        let martlet = scratch.write(Array(child.outputText.utf8), to: "martlet")
        let comparison = try ChildProcess(
            ["\(folder)/compare.sh", "\(folder)/real-kvm.txt", martlet, "\(folder)/accepted.txt"])
        #expect(comparison.wait() == .exited(0), Client.account(comparison))
    }
}
