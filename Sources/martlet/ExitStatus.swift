/// What the process tells its parent.
enum ExitStatus: Int32 {
    case success = 0
    /// Mapping, thread, input or output of the host.
    case hostFailure = 1
    case badInput = 2
    case tripleFault = 3
    case internalError = 4
}

/// Ends the command with a message for the user.
struct CommandFailure: Error {
    var status: ExitStatus
    /// What was given, what was expected and what to do, without a line break.
    var message: String

    static func badInput(_ message: String) -> Self { Self(status: .badInput, message: message) }
    static func hostFailure(_ message: String) -> Self { Self(status: .hostFailure, message: message) }
}
