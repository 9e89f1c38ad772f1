import KVMInterface
import SystemPackage

/// Runs a guest from power-on to its end, through as many resets as it asks for.
///
/// Everything it does to the machine goes through `KVMInterface`; which backend is behind that is the caller's choice.
///
/// > Concurrency: belongs to the main thread.
public final class VirtualMachineMonitor {
    private let configuration: MachineConfiguration
    private let system: KVMSystem
    private let console: Console
    private let report: (String) -> Void

    /// - Parameter report: called with what a curious user wants to know about the start.
    public init(
        _ configuration: MachineConfiguration, system: KVMSystem, console: Console,
        report: @escaping (String) -> Void = { _ in }
    ) {
        self.configuration = configuration
        self.system = system
        self.console = console
        self.report = report
    }

    /// Runs the guest.
    ///
    /// - Parameter restartsOnReboot: a reboot starts the guest anew; otherwise it ends the run.
    /// - Throws: ``MachineError`` if it cannot be started.
    public func run(restartsOnReboot: Bool = true) throws(MachineError) -> MachineOutcome {
        let inspection = openInspection()
        defer { inspection?.stop() }
        while true {
            let board = try Board(configuration, system, console)
            describe(board.loadedGuest)
            let inspect = board.inspector(kernel: configuration.kernel.string)
            inspection?.source.withLock { $0 = inspect }
            defer { inspection?.source.withLock { $0 = nil } }
            try board.start()
            let end = console.run { board.serial.receive($0) }
            // Nobody takes output any more: threads that wait for that must not hold up the end.
            if end != .stopped { console.closeOutput() }
            let hasStopped = board.stop()
            // A thread that is still there uses the board: it stays until the process ends.
            if !hasStopped { _ = Unmanaged.passRetained(board) }

            if let outcome = outcome(of: end, board.event) {
                guard outcome == .rebooted, restartsOnReboot else { return outcome }
                guard hasStopped else { return .hostFailure("a vCPU did not stop for the reboot") }
                report("the guest reboots")
                continue
            }
            return .hostFailure("the console ended for no reason")
        }
    }

    /// A guest that cannot be inspected runs all the same.
    private func openInspection() -> InspectionServer? {
        do {
            return try InspectionServer()
        } catch {
            report("'martlet inspect' will find nothing: \(error)")
            return nil
        }
    }

    private func outcome(of end: Console.End, _ event: BoardEvents.Event?) -> MachineOutcome? {
        switch end {
        case .left: return .left
        case .signal(let signal): return .signal(signal)
        case .outputClosed: return .consoleClosed
        case .failed(let error): return .hostFailure("the console failed: \(error)")
        case .stopped: break
        }
        switch event {
        case .powerOff: return .poweredOff
        case .reset: return .rebooted
        case .tripleFault(let registers): return .tripleFault(registers: registers)
        case .internalError(let message, let registers): return .internalError(message, registers: registers)
        case .hostFailure(let message): return .hostFailure(message)
        case nil: return nil
        }
    }

    private func describe(_ guest: LoadedGuest) {
        report("kernel \(guest.kernelVersion ?? configuration.kernel.string)")
        if let compression = guest.compression { report("unpacked by the host (\(compression.rawValue))") }
        report("command line: \(configuration.commandLine)")
        let processors = configuration.processors
        report("\(processors.boot) of \(processors.maximum) vCPUs, \(configuration.memory) of memory")
    }
}
