import CHost
import Host
import SystemPackage

// Invariants:
// - At most one thread is between the lines of `run` that hold `isRunning`.
// - `runner` is that thread's id from before it enters the kernel until after it has left, and 0 otherwise. It changes under
//   `runnerLock` only, by the thread itself.
// - A kick is sent under `runnerLock`: its receiver can neither go on to other work nor end before it has been sent, and
//   takes it at the latest on its way to clear `runner`.
// So a kick interrupts nothing but `KVM_RUN` of its vCPU. One that comes too early for that is not lost: whoever kicks has set
// `immediate_exit` before, and the kernel looks at it when the thread enters.

/// Who runs a vCPU, and how that is ended.
final class RunGate: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `runner` is guarded by `runnerLock`.

    /// Held during `KVM_RUN`. The kernel would let a second thread wait as well, but then `runner` were two.
    private let isRunning = FutexLock()
    private let runnerLock = FutexLock()
    private var runner: Int32 = 0

    /// Calls `body`, which is `KVM_RUN`, as the thread that kicks are for.
    func run(_ body: () throws(Errno) -> Int32) throws(Errno) -> Int32 {
        let thread = KickSignal.acceptOnThisThread()
        isRunning.lock()
        defer { isRunning.unlock() }
        runnerLock.withLock { runner = thread }
        defer { runnerLock.withLock { runner = 0 } }
        return try body()
    }

    /// Interrupts the thread that is inside ``run(_:)``, if there is one.
    func kick() {
        guard let signal = KickSignal.number else { return }
        runnerLock.withLock {
            if runner != 0 { _ = martlet_tgkill(runner, signal) }
        }
    }
}
