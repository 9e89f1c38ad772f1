import CHost
import Glibc
import Synchronization

/// Makes the client's signal handlers end `KVM_RUN`, as they end the system call.
///
/// A handler that returns lets the interrupted code go on, and leaves no trace that a vCPU could find. So every handler
/// that is there when a vCPU runs for the first time gets a wrapper: it tells the vCPU that the thread runs, if it runs
/// one, and calls the handler. Handlers installed after that, and actions that are no handlers, stay as they are.
///
/// > Concurrency: ``wrapHandlers()`` from any thread; the wrapper touches plain memory and what is async-signal-safe.
enum ClientSignals {
    /// Signals that the processor raises, or that end the process, belong to ``HostFaults`` and the client alone.
    private static let excluded: Set<CInt> = [
        SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGKILL, SIGSTOP
    ]
    private static let lock = Mutex(())
    /// The client's actions, indexed by signal. Never freed: a handler may run to the end of the process.
    private nonisolated(unsafe) static let actions: UnsafeMutablePointer<sigaction> = {
        let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)
        actions.initialize(repeating: sigaction(), count: 65)
        return actions
    }()

    static func wrapHandlers() {
        lock.withLock { _ in
            for signal in 1...CInt(64) where !excluded.contains(signal) { wrap(signal) }
        }
    }

    private static func wrap(_ signal: CInt) {
        var action = sigaction()
        // Fails for signals that the C library keeps for itself.
        guard sigaction(signal, nil, &action) == 0 else { return }
        let wrapper: martlet_signal_handler = { ClientSignals.handle($0, $1, $2) }
        let handler = UInt(bitPattern: unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self))
        // 0 and 1 are SIG_DFL and SIG_IGN.
        guard handler > 1, handler != unsafeBitCast(wrapper, to: UInt.self) else { return }
        // In place before the wrapper looks for it.
        actions[Int(signal)] = action
        _ = martlet_sigaction(signal, wrapper, action.sa_flags, &action.sa_mask, nil)
    }

    private static func handle(
        _ signal: CInt, _ information: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
    ) {
        if let vcpu = martlet_thread_context() {
            // SAFETY: the vCPU is alive while a thread runs it, and the place is emptied before that ends.
            Unmanaged<UserspaceVCPU>.fromOpaque(vcpu).takeUnretainedValue().didTakeHostSignal(signal)
        }
        let action = actions[Int(signal)]
        if action.sa_flags & SA_SIGINFO != 0 {
            action.__sigaction_handler.sa_sigaction?(signal, information, context)
        } else {
            action.__sigaction_handler.sa_handler?(signal)
        }
    }
}
