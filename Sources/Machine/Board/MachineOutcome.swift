import SystemPackage

/// How a machine's run ended.
public enum MachineOutcome: Equatable, Sendable {
    /// The guest turned the machine off.
    case poweredOff
    /// The guest asked for a reboot, which was not wanted.
    case rebooted
    /// The user typed Ctrl-A x.
    case left
    /// The process was asked to end by a signal.
    case signal(Int32)
    /// A processor shut down on a triple fault.
    case tripleFault(registers: String)
    /// The core cannot go on.
    case internalError(String, registers: String)
    /// The host denied something a running guest needs.
    case hostFailure(String)
    /// Nobody reads the guest's console any more.
    case consoleClosed
}

/// Why a machine cannot be started: a line for the user.
public enum MachineError: Error, Equatable, Sendable {
    /// What was given, what was expected and what to do.
    case badInput(String)
    /// What the host denied.
    case host(String)
}
