import ArgumentParser
import FoundationEssentials
import KVMInterface
import Machine
import SystemPackage

/// `martlet inspect`: a running guest from inside.
struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Print what a running guest's machine looks like from inside.",
        discussion: """
            Memory map, both sets of memory slots, shadow page tables, the vCPU table and the state of grace periods, while the \
            guest goes on. Guests answer at a socket in $XDG_RUNTIME_DIR/martlet (or /tmp/martlet-UID).
            """)

    @Argument(help: "Process number of the 'martlet run'; may be left out if only one runs.")
    var process: Int32?

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        let process = try process ?? onlyProcess()
        let answer: [UInt8]
        do {
            answer = try InspectionSocket.ask(process: process)
        } catch {
            throw CommandFailure.badInput(
                "process \(process) does not answer (\(error)); 'martlet run' of this user can be inspected\(Self.list())"
            )
        }
        guard !answer.isEmpty else {
            throw CommandFailure.hostFailure("the guest of process \(process) is just starting or ending; try again")
        }
        let text: String
        if json {
            text = String(decoding: answer, as: UTF8.self)
        } else {
            do {
                text = InspectionText(try JSONDecoder().decode(BoardInspection.self, from: Data(answer))).text
            } catch {
                throw CommandFailure.hostFailure(
                    "process \(process) is another version of martlet; print its answer with --json")
            }
        }
        let status = StandardOutput.write(text)
        if status != .success { throw ExitCode(status.rawValue) }
    }

    private func onlyProcess() throws -> Int32 {
        let processes = InspectionSocket.processes()
        guard processes.count <= 1 else {
            throw CommandFailure.badInput("several guests run; name one\(Self.list())")
        }
        guard let process = processes.first else {
            throw CommandFailure.badInput("no guest runs; start one with 'martlet run'")
        }
        return process
    }

    private static func list() -> String {
        let processes = InspectionSocket.processes()
        return processes.isEmpty ? "; none runs" : ": \(processes.map(String.init).joined(separator: ", "))"
    }
}
