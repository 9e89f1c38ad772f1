import Glibc
import SystemPackage

/// What the process does on signals while a guest runs.
///
/// SIGINT, SIGTERM and SIGHUP ask for an orderly end; the same once more ends at once. Signals of a crash give the
/// terminal its mode back and then do what they would have done. A signal that was ignored when the process began, as
/// SIGHUP under `nohup`, stays ignored.
///
/// > Concurrency: handlers run on whatever thread has the signal unblocked; they touch only plain memory.
enum ProcessSignals {
    private static let terminating = [SIGINT, SIGTERM, SIGHUP]
    private static let crashing = [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS, SIGQUIT]

    /// The signal that asked for the end; 0 if none has.
    private nonisolated(unsafe) static var requested: CInt = 0
    /// A descriptor to which a handler writes to wake the console; −1 if there is none.
    private nonisolated(unsafe) static var wakeDescriptor: CInt = -1
    /// What crash signals did before, indexed by signal. Never freed: handlers may run to the end.
    private nonisolated(unsafe) static let previous: UnsafeMutablePointer<sigaction> = {
        let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)
        actions.initialize(repeating: sigaction(), count: 65)
        return actions
    }()
    private nonisolated(unsafe) static var isInstalled = false

    /// Installs the handlers, once per process, before anything else that handles crash signals: it may pass on to these.
    static func install(wakeDescriptor: CInt) {
        self.wakeDescriptor = wakeDescriptor
        guard !isInstalled else { return }
        isInstalled = true
        for signal in terminating {
            var action = sigaction()
            sigaction(signal, nil, &action)
            if unsafeBitCast(action.__sigaction_handler.sa_handler, to: UInt.self) == 1 { continue }  // SIG_IGN
            action = sigaction()
            action.__sigaction_handler.sa_handler = { ProcessSignals.terminate($0) }
            sigaction(signal, &action, nil)
        }
        for signal in crashing {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { ProcessSignals.crash($0) }
            action.sa_flags = SA_ONSTACK | SA_NODEFER
            sigaction(signal, &action, previous + Int(signal))
        }
    }

    /// The signal that asked for the end, if one has.
    static var terminationRequest: CInt? { requested == 0 ? nil : requested }

    /// Lets the calling thread, in which all signals are blocked, take those of a crash.
    static func unblockCrashSignals() {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in crashing where signal != SIGQUIT { sigaddset(&set, signal) }
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
    }

    private static func terminate(_ signal: CInt) {
        if requested != 0 {
            SavedTerminal.restore()
            _exit(128 + signal)
        }
        requested = signal
        let error = errno
        var one: UInt64 = 1
        _ = write(wakeDescriptor, &one, 8)
        errno = error
    }

    private static func crash(_ signal: CInt) {
        SavedTerminal.restore()
        // Back in place, the previous action follows: the instruction faults again, or the signal is raised again.
        sigaction(signal, previous + Int(signal), nil)
        raise(signal)
    }
}
