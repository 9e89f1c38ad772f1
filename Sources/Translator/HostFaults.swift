import CHost
import Glibc
import X86

/// Turns host signals that guest instructions raise inside translated code into exits.
///
/// A copied instruction can fault on the host as it would on the guest's own processor: division (SIGFPE), x87 and SIMD
/// exceptions (SIGFPE), misaligned vector operands (SIGSEGV with trap 13). The handler only notes what happened and
/// redirects the thread to the exit routine, which saves the registers as for any other exit. The same handler makes copies
/// from and to a client's addresses fail (`martlet_guarded_copy`).
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
        for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL] {
            var action = sigaction()
            action.__sigaction_handler.sa_sigaction = { signal, _, context in HostFaults.handle(signal, context) }
            action.sa_flags = SA_SIGINFO | Int32(bitPattern: UInt32(SA_NODEFER))
            sigaction(signal, &action, nil)
        }
        return true
    }()

    private static func handle(_ signal: Int32, _ context: UnsafeMutableRawPointer?) {
        guard let context else { return }
        let registers = martlet_context_registers(context)
        if let registers, registers[Int(MARTLET_REG_RIP)] == UInt64(martlet_guarded_copy_access_address()) {
            registers[Int(MARTLET_REG_RIP)] = UInt64(martlet_guarded_copy_failure_address())
            return
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
        // Not ours: the default action follows when the instruction faults again.
        Glibc.signal(signal, SIG_DFL)
    }

    /// The record of the fault that ended the last block.
    static func record(in state: CPUState) -> Record {
        Record(
            trap: state.base.load(fromByteOffset: CPUState.faultRecordOffset, as: UInt32.self),
            pc: state.base.load(fromByteOffset: CPUState.faultRecordOffset + 8, as: UInt64.self))
    }
}
