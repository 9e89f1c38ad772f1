import CHost
import Glibc
import KVMInterface
import SystemPackage

/// The signal that makes a thread leave `KVM_RUN`.
///
/// It is the first real-time signal that nobody handles when KVM is opened for the first time, and gets a handler that does
/// nothing: that it arrives is what ends the system call. A thread that has run a vCPU leaves it unblocked.
enum KickSignal {
    /// nil if every real-time signal has a handler.
    static let number: CInt? = {
        for signal in firstRealTimeSignal...lastSignal {
            var action = sigaction()
            guard sigaction(signal, nil, &action) == 0 else { continue }
            // 0 and 1 are SIG_DFL and SIG_IGN.
            let handler = UInt(bitPattern: unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self))
            guard handler <= 1 else { continue }
            var mask = sigset_t()
            sigemptyset(&mask)
            // With SA_RESTART nothing else that it meets on the way fails; `KVM_RUN` returns EINTR in any case.
            let error = martlet_sigaction(signal, { _, _, _ in }, SA_RESTART | SA_ONSTACK, &mask, nil)
            if error == 0 { return signal }
        }
        return nil
    }()

    /// The C library keeps 32 and 33 for itself.
    private static let firstRealTimeSignal: CInt = 34
    private static let lastSignal: CInt = 64

    /// Lets the calling thread take the signal, and returns the thread's id. Costs a load after the first time.
    static func acceptOnThisThread() -> Int32 {
        let known = martlet_get_thread_kick_id()
        if known != 0 { return known }
        if let number {
            var set = sigset_t()
            sigemptyset(&set)
            sigaddset(&set, number)
            pthread_sigmask(SIG_UNBLOCK, &set, nil)
        }
        let id = martlet_gettid()
        martlet_set_thread_kick_id(id)
        return id
    }
}

/// `KVM_SET_SIGNAL_MASK`: the mask during `KVM_RUN` must let kicks through.
enum SignalMask {
    /// - Parameter argument: the address of a `kvm_signal_mask`.
    static func set(on vcpu: KernelObject, _ argument: UInt) throws(Errno) -> Int32 {
        var header: (byteCount: UInt32, low: UInt32, high: UInt32) = (0, 0, 0)
        guard let number = KickSignal.number, let source = UnsafeRawPointer(bitPattern: argument),
            martlet_copy_by_kernel(&header, source, 12) == 0, header.byteCount == 8
        else {
            // The kernel says what is wrong with it.
            return try vcpu.request(KVMRequest.setSignalMask.rawValue, argument)
        }
        let bit = UInt64(1) << UInt64(number - 1)
        let mask = (UInt64(header.high) << 32 | UInt64(header.low)) & ~bit
        header.low = UInt32(truncatingIfNeeded: mask)
        header.high = UInt32(truncatingIfNeeded: mask >> 32)
        return try withUnsafePointer(to: &header) { (pointer) throws(Errno) in
            try vcpu.request(KVMRequest.setSignalMask.rawValue, UInt(bitPattern: pointer))
        }
    }
}
