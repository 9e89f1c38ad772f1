import CHost
import Glibc
import X86

/// Turns host signals that guest instructions raise inside translated code into exits.
///
/// A copied instruction can fault on the host as it would on the guest's own processor: division (SIGFPE), x87 and SIMD
/// exceptions (SIGFPE), misaligned vector operands (SIGSEGV with trap 13). The handler only notes what happened and
/// redirects the thread to the exit routine, which saves the registers as for any other exit. The same handler makes the
/// accesses fail that Martlet's own code makes of a client's memory (`martlet_guarded_copy` and its like).
///
/// > Concurrency: the handler touches nothing but the signal context and the state page that GS base points to.
public enum HostFaults {
    /// What the handler noted.
    struct Record {
        var trap: UInt32
        var pc: UInt64
    }

    /// Installs the handlers, once per process.
    public static func install() { _ = installed }

    /// The signals whose handlers are Martlet's. What the client wants done with them is kept, and done where a fault is not
    /// Martlet's.
    public static let signals: [CInt] = [SIGSEGV, SIGBUS, SIGFPE, SIGILL]

    /// Takes ``signals`` out of a set that is to be blocked.
    public static func remove(from set: UnsafeMutablePointer<sigset_t>) {
        for signal in signals { sigdelset(set, signal) }
    }

    /// Makes the thread take the signals of faults: clients start threads with all signals blocked, and a fault whose signal is
    /// blocked ends the process.
    /// > Concurrency: any thread, before it touches a client's memory.
    public static func admit() {
        if martlet_get_thread_takes_faults() == 0 { unblock() }
    }

    @inline(never)
    private static func unblock() {
        martlet_set_thread_takes_faults()
        var set = sigset_t()
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
    }

    /// Performs an instruction of the program's that was made illegal.
    public typealias Emulation = @convention(c) (_ registers: UnsafeMutablePointer<UInt64>) -> Bool

    /// Has `emulation` look at each illegal instruction outside translated code before the client does.
    ///
    /// - Parameter emulation: gets the registers, indexed by `MARTLET_REG_…`, changes them as the instruction does, and returns
    ///   true; or returns false if the instruction is none of its. It must be async-signal-safe.
    /// > Concurrency: to be called once, before such an instruction can be executed.
    public static func emulateIllegalInstructions(with emulation: @escaping Emulation) {
        illegalInstructionEmulation = emulation
        install()
    }

    private nonisolated(unsafe) static var illegalInstructionEmulation: Emulation?

    /// Has `deferral` look at each signal of ``signals`` that somebody sent before the client does; it returns whether it keeps
    /// the signal for later.
    ///
    /// > Concurrency: to be called once for all; any thread. `deferral` must be async-signal-safe.
    public static func deferSentSignals(with deferral: @escaping @convention(c) (CInt) -> Bool) {
        sentSignalDeferral = deferral
    }

    private nonisolated(unsafe) static var sentSignalDeferral: (@convention(c) (CInt) -> Bool)?

    /// Installs the handlers and tells `state` where translated code lies.
    static func install(_ state: CPUState, _ cache: TranslationCache) {
        install()
        let range = cache.buffer.addresses
        state.base.storeBytes(of: range.lowerBound, toByteOffset: CPUState.codeRangeOffset, as: UInt64.self)
        state.base.storeBytes(of: range.upperBound, toByteOffset: CPUState.codeRangeOffset + 8, as: UInt64.self)
        state.base.storeBytes(
            of: cache.trampolines.fault, toByteOffset: CPUState.codeRangeOffset + 16, as: UInt64.self)
    }

    private static let installed: Bool = {
        for signal in signals {
            _ = martlet_exchange_action(signal, nil, clientActions + Int(signal))
            installHandler(signal)
        }
        return true
    }()

    /// The client's actions, indexed by signal. Never freed: handlers run to the end of the process.
    private nonisolated(unsafe) static let clientActions: UnsafeMutablePointer<sigaction> = {
        let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)
        actions.initialize(repeating: sigaction(), count: 65)
        return actions
    }()

    /// On the stack that the client's handler asks for.
    private static func installHandler(_ signal: CInt) {
        var mask = sigset_t()
        sigemptyset(&mask)
        let flags = SA_NODEFER | clientActions[Int(signal)].sa_flags & SA_ONSTACK
        _ = martlet_sigaction(signal, { HostFaults.handle($0, $1, $2) }, flags, &mask, nil)
    }

    /// `sigaction` of the client for one of ``signals``, once the handlers are installed.
    /// > Concurrency: any thread; the C library's function promises no more for concurrent calls.
    public static func replaceClientAction(
        _ signal: CInt, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
    ) {
        old?.pointee = clientActions[Int(signal)]
        guard let action else { return }
        clientActions[Int(signal)] = action.pointee
        installHandler(signal)
    }

    private static func handle(
        _ signal: CInt, _ information: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
    ) {
        guard let context else { return }
        let registers = martlet_context_registers(context)
        // What somebody sent says nothing about the code that it interrupts.
        guard (information?.pointee.si_code ?? 0) > 0 else {
            passOn(signal, information, context)
            return
        }
        if let registers {
            let continuation = martlet_guarded_continuation(UInt(registers[Int(MARTLET_REG_RIP)]))
            if continuation != 0 {
                registers[Int(MARTLET_REG_RIP)] = UInt64(continuation)
                return
            }
        }
        let base = martlet_rdgsbase()
        if base != 0, let registers, let state = UnsafeMutableRawPointer(bitPattern: UInt(base)) {
            let pc = registers[Int(MARTLET_REG_RIP)]
            let start = state.load(fromByteOffset: CPUState.codeRangeOffset, as: UInt64.self)
            let end = state.load(fromByteOffset: CPUState.codeRangeOffset + 8, as: UInt64.self)
            if pc >= start && pc < end {
                state.storeBytes(
                    of: UInt32(truncatingIfNeeded: registers[Int(MARTLET_REG_TRAPNO)]),
                    toByteOffset: CPUState.faultRecordOffset, as: UInt32.self)
                state.storeBytes(of: pc, toByteOffset: CPUState.faultRecordOffset + 8, as: UInt64.self)
                registers[Int(MARTLET_REG_RIP)] = state.load(
                    fromByteOffset: CPUState.codeRangeOffset + 16, as: UInt64.self)
                return
            }
        }
        if signal == SIGILL, let registers, let emulation = illegalInstructionEmulation, emulation(registers) { return }
        passOn(signal, information, context)
    }

    /// Does with a signal that is not Martlet's what the client wants.
    private static func passOn(
        _ signal: CInt, _ information: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer
    ) {
        let action = clientActions[Int(signal)]
        let handler = UInt(bitPattern: unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self))
        // A fault cannot be ignored, a signal that somebody sent can.
        let isFault = (information?.pointee.si_code ?? 1) > 0
        if !isFault, handler == 1 || sentSignalDeferral?(signal) ?? false { return }
        guard handler > 1 else {
            // A fault happens again and ends the process.
            var standard = sigaction()
            _ = martlet_exchange_action(signal, &standard, nil)
            if !isFault { _ = martlet_tgkill(martlet_gettid(), signal) }
            return
        }
        if action.sa_flags & Int32(bitPattern: UInt32(SA_RESETHAND)) != 0 {
            clientActions[Int(signal)] = sigaction()
        }
        // The mask is the interrupted code's again when this handler returns.
        var mask = action.sa_mask
        if action.sa_flags & SA_NODEFER == 0 { sigaddset(&mask, signal) }
        pthread_sigmask(SIG_BLOCK, &mask, nil)
        if action.sa_flags & SA_SIGINFO != 0 {
            action.__sigaction_handler.sa_sigaction?(signal, information, context)
        } else {
            action.__sigaction_handler.sa_handler?(signal)
        }
    }

    /// The record of the fault that ended the last block.
    static func record(in state: CPUState) -> Record {
        Record(
            trap: state.base.load(fromByteOffset: CPUState.faultRecordOffset, as: UInt32.self),
            pc: state.base.load(fromByteOffset: CPUState.faultRecordOffset + 8, as: UInt64.self))
    }
}
