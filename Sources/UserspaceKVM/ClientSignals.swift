import CHost
import Glibc
import Host
import Synchronization
import Translator

/// Makes the client's signals end `KVM_RUN`, as they end the system call.
///
/// A handler that returns lets the interrupted code go on, and leaves no trace that a vCPU could find. So every handler gets
/// a wrapper. Outside the core it does what the client's action says. Inside, the thread holds locks or stands in guest code,
/// where a handler must neither issue requests nor jump away; so there the wrapper makes `KVM_RUN` end, blocks the signal and
/// sends it to the thread once more. It is pending then until the thread leaves the core: the handler runs at the call's
/// end, with the information that came with the signal.
///
/// Signals that `KVM_SET_SIGNAL_MASK` lets through may have no handler at all, because the client blocks them and takes them
/// with `sigwait`. They get the wrapper too; what it does about them outside `KVM_RUN` is the default action.
///
/// Actions that change after that are seen if the client's `sigaction` comes here (``replaceAction(_:_:_:)``).
///
/// > Concurrency: every function from any thread; the wrapper touches plain memory and what is async-signal-safe.
public enum ClientSignals {
    /// Those of ``HostFaults`` have handlers of their own; the others end the process, or cannot be handled.
    private static let excluded: Set<CInt> = Set(HostFaults.signals + [SIGTRAP, SIGABRT, SIGSYS, SIGKILL, SIGSTOP])
    /// Signals whose default action is to do nothing: the system call does not notice them.
    private static let ignoredByDefault: Set<CInt> = [SIGCHLD, SIGURG, SIGWINCH, SIGCONT]
    private static let lock = FutexLock()
    /// The client's actions, indexed by signal. Never freed: a handler may run to the end of the process.
    private nonisolated(unsafe) static let actions: UnsafeMutablePointer<sigaction> = {
        let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)
        actions.initialize(repeating: sigaction(), count: 65)
        return actions
    }()
    /// The signals that have the wrapper, one bit each from signal 1 on. Guarded by `lock`.
    private nonisolated(unsafe) static var wrapped: UInt64 = 0
    /// Those that masks of `KVM_SET_SIGNAL_MASK` let through, which need no handler. Guarded by `lock`.
    private nonisolated(unsafe) static var admitted: UInt64 = 0
    private static let isActive = Atomic<Bool>(false)

    /// The thread enters the core: handlers wait. Calls nest. > Concurrency: any thread.
    @inline(__always)
    public static func enterCore() { martlet_enter_core() }

    /// The thread leaves the core, without locks: handlers that waited run.
    @inline(__always)
    public static func leaveCore() {
        let signals = martlet_leave_core()
        if signals != 0 { release(signals) }
    }

    @inline(never)
    private static func release(_ signals: UInt64) {
        SignalMask.unblock(signals)
        // Those of faults were never blocked: what somebody sent is sent again.
        let sent = signals & ~SignalMask.all
        for signal in HostFaults.signals where sent & bit(signal) != 0 { _ = martlet_tgkill(martlet_gettid(), signal) }
    }

    /// Puts off a signal of a fault that somebody sent, if the thread is in the core.
    /// > Concurrency: a signal handler.
    private static func deferSent(_ signal: CInt) -> Bool {
        guard martlet_get_core_depth() != 0 else { return false }
        if let vcpu = martlet_thread_context() {
            // SAFETY: as in `handle`.
            Unmanaged<UserspaceVCPU>.fromOpaque(vcpu).takeUnretainedValue().didTakeHostSignal()
        }
        martlet_defer_signals(bit(signal))
        return true
    }

    /// Around a fork, inside the core: the child finds the lock free.
    public static func beginFork() { lock.lock() }
    public static func endFork() { lock.unlock() }

    /// Keeps signals of faults that are sent to a thread in the core for its way out.
    static func deferSentFaults() { HostFaults.deferSentSignals { ClientSignals.deferSent($0) } }

    /// Gives every handler the wrapper. To be called before the core is used, and when a vCPU runs for the first time: a
    /// client whose `sigaction` does not come here may have set handlers since. > Concurrency: any thread.
    static func activate() {
        withLock {
            for signal in 1...CInt(64) where !excluded.contains(signal) { wrap(signal, evenWithoutHandler: false) }
        }
        isActive.store(true, ordering: .releasing)
    }

    /// Gives the wrapper also to signals that `mask` lets through and that nobody handles.
    static func admit(signalsOutside mask: UInt64) {
        activate()
        withLock {
            for signal in 1...CInt(64) where mask & bit(signal) == 0 && !excluded.contains(signal) {
                admitted |= bit(signal)
                wrap(signal, evenWithoutHandler: !ignoredByDefault.contains(signal))
            }
        }
    }

    /// The client's `sigaction`.
    ///
    /// - Returns: 0 or the error number.
    public static func replaceAction(
        _ signal: CInt, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
    ) -> CInt {
        // Either may be memory of the client's that is not there: copied before the lock is taken.
        let new = action?.pointee
        var previous = sigaction()
        let error = withLock { exchange(signal, new, &previous) }
        if error == 0 { old?.pointee = previous }
        return error
    }

    private static func exchange(_ signal: CInt, _ new: sigaction?, _ previous: inout sigaction) -> CInt {
        if HostFaults.signals.contains(signal) {
            guard var new else {
                HostFaults.replaceClientAction(signal, nil, &previous)
                return 0
            }
            HostFaults.replaceClientAction(signal, &new, &previous)
            return 0
        }
        guard isActive.load(ordering: .relaxed), (1...64).contains(signal), !excluded.contains(signal) else {
            guard var new else { return martlet_exchange_action(signal, nil, &previous) }
            return martlet_exchange_action(signal, &new, &previous)
        }
        guard wrapped & bit(signal) != 0 else {
            let error = martlet_exchange_action(signal, nil, &previous)
            guard error == 0, var new else { return error }
            let handler = handlerAddress(of: new)
            guard handler > 1 || handler == 0 && endsRunByDefault(signal) else {
                return martlet_exchange_action(signal, &new, nil)
            }
            // In place before the wrapper looks for it.
            actions[Int(signal)] = new
            wrapped |= bit(signal)
            install(signal)
            return 0
        }
        previous = actions[Int(signal)]
        guard var new else { return 0 }
        actions[Int(signal)] = new
        let handler = handlerAddress(of: new)
        if handler > 1 || handler == 0 && endsRunByDefault(signal) {
            install(signal)
            return 0
        }
        // The kernel discards what is ignored.
        wrapped &= ~bit(signal)
        return martlet_exchange_action(signal, &new, nil)
    }

    /// Signals are kept away meanwhile: a handler may call `sigaction`.
    private static func withLock<Result>(_ body: () -> Result) -> Result {
        var (all, old) = (sigset_t(), sigset_t())
        sigfillset(&all)
        HostFaults.remove(from: &all)
        pthread_sigmask(SIG_SETMASK, &all, &old)
        defer { pthread_sigmask(SIG_SETMASK, &old, nil) }
        // Handlers of a fork that other libraries have may come here.
        if martlet_get_thread_forks() != 0 { return body() }
        return lock.withLock(body)
    }

    private static func endsRunByDefault(_ signal: CInt) -> Bool {
        admitted & bit(signal) != 0 && !ignoredByDefault.contains(signal)
    }

    private static func bit(_ signal: CInt) -> UInt64 { 1 << UInt64(signal - 1) }

    /// 0 is `SIG_DFL`, 1 is `SIG_IGN`.
    private static func handlerAddress(of action: sigaction) -> UInt {
        UInt(bitPattern: unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self))
    }

    private static func wrap(_ signal: CInt, evenWithoutHandler: Bool) {
        var action = sigaction()
        // Fails for signals that the C library keeps for itself.
        guard martlet_exchange_action(signal, nil, &action) == 0 else { return }
        let handler = handlerAddress(of: action)
        guard handler > 1 || handler == 0 && evenWithoutHandler else { return }
        // A client whose `sigaction` does not come here may have replaced the wrapper.
        guard handler != unsafeBitCast(wrapper, to: UInt.self) else { return }
        // In place before the wrapper looks for it.
        actions[Int(signal)] = action
        wrapped |= bit(signal)
        install(signal)
    }

    private static func install(_ signal: CInt) {
        let action = actions[Int(signal)]
        // The wrapper lets the signal through for a handler that may be interrupted by it.
        let flags = action.sa_flags & ~(Int32(bitPattern: UInt32(SA_RESETHAND)) | SA_NODEFER)
        var mask = action.sa_mask
        // Not even in a handler, which may issue requests.
        HostFaults.remove(from: &mask)
        _ = martlet_sigaction(signal, wrapper, flags, &mask, nil)
    }

    private static let wrapper: martlet_signal_handler = { ClientSignals.handle($0, $1, $2) }

    private static func handle(
        _ signal: CInt, _ information: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
    ) {
        // A default action that has nothing to do with a run is taken where it finds the thread.
        let isDefault = martlet_thread_context() == nil && handlerAddress(of: actions[Int(signal)]) == 0
        if martlet_get_core_depth() != 0, !isDefault, let information, let context {
            let error = errno
            if let vcpu = martlet_thread_context() {
                // SAFETY: the vCPU is alive while a thread runs it, and the place is emptied before that ends.
                Unmanaged<UserspaceVCPU>.fromOpaque(vcpu).takeUnretainedValue().didTakeHostSignal()
            }
            martlet_defer_signals(bit(signal))
            sigaddset(martlet_context_signal_mask(context), signal)
            // A full queue loses the signal, as it would have lost one more of the sender's.
            _ = martlet_requeue_signal(signal, information)
            errno = error
            return
        }
        // What the thread is about to unblock is blocked again when the handler returns, and its own affair.
        let deferred = martlet_exchange_deferred_signals(0)
        defer { _ = martlet_exchange_deferred_signals(deferred) }
        let action = actions[Int(signal)]
        switch handlerAddress(of: action) {
        case 0:
            var standard = sigaction()
            _ = martlet_exchange_action(signal, &standard, nil)
            // Blocked until this handler returns; the default action follows then.
            _ = martlet_tgkill(martlet_gettid(), signal)
        case 1: break
        default:
            if action.sa_flags & Int32(bitPattern: UInt32(SA_RESETHAND)) != 0 { actions[Int(signal)] = sigaction() }
            var mask = action.sa_mask
            if action.sa_flags & SA_NODEFER != 0, sigismember(&mask, signal) == 0 { SignalMask.unblock(bit(signal)) }
            if action.sa_flags & SA_SIGINFO != 0 {
                action.__sigaction_handler.sa_sigaction?(signal, information, context)
            } else {
                action.__sigaction_handler.sa_handler?(signal)
            }
        }
    }
}

/// The thread's signal mask as one word: bit *n* − 1 is signal *n*.
enum SignalMask {
    /// Blocks exactly `mask`.
    /// - Returns: what was blocked before.
    static func replace(_ mask: UInt64) -> UInt64 {
        var (new, old) = (sigset_t(), sigset_t())
        withUnsafeMutableBytes(of: &new) { $0.storeBytes(of: mask, as: UInt64.self) }
        pthread_sigmask(SIG_SETMASK, &new, &old)
        return withUnsafeBytes(of: old) { $0.load(as: UInt64.self) }
    }

    /// Every signal but those of faults.
    static let all = HostFaults.signals.reduce(UInt64.max) { $0 & ~(1 << UInt64($1 - 1)) }

    static func unblock(_ signals: UInt64) {
        var set = sigset_t()
        withUnsafeMutableBytes(of: &set) { $0.storeBytes(of: signals, as: UInt64.self) }
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
    }
}
