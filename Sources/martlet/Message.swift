import Glibc
import SystemPackage

/// Lines for the user on standard error. Standard output belongs to the guest.
enum Message {
    static func progress(_ text: String) { line("martlet: \(text)") }

    static func error(_ text: String) { line("martlet: error: \(text)") }

    static func line(_ text: String) {
        // A message that cannot be written has nowhere else to go.
        _ = try? FileDescriptor.standardError.writeAll(Array((text + "\n").utf8))
    }
}

/// Text that was asked for, on standard output.
enum StandardOutput {
    /// Writes `text` and returns the status to leave with.
    static func write(_ text: String) -> ExitStatus {
        do {
            _ = try FileDescriptor.standardOutput.writeAll(Array(text.utf8))
            return .success
        } catch let error as Errno where error == .brokenPipe || error == .badFileDescriptor {
            Message.error("standard output is closed; open it or send it to a file or a pipe that is read to its end")
            return .badInput
        } catch {
            Message.error("cannot write to standard output: \(error)")
            return .hostFailure
        }
    }
}
