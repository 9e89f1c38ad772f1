import CHost
import Glibc
import SystemPackage

/// A thread of the host with every signal blocked.
///
/// Signals belong to the application; a thread that wants one unblocks it itself. A thread that is neither joined nor
/// referenced any more goes on until its body returns.
public final class HostThread: @unchecked Sendable {
    private let handle: pthread_t
    private var joined = false

    /// Starts a thread.
    ///
    /// - Parameter name: at most 15 bytes are kept.
    /// - Parameter stackSize: in bytes; at least 64 KiB.
    /// - Parameter timerSlackNanoseconds: how late the kernel may deliver a sleep's end; nil inherits.
    /// - Throws: `Errno.resourceTemporarilyUnavailable` if the kernel has no thread left, `Errno.invalidArgument` if the
    ///   stack size is not possible.
    public init(
        name: String, stackSize: Int = 1 << 20, timerSlackNanoseconds: UInt? = nil,
        _ body: @escaping @Sendable () -> Void
    ) throws(Errno) {
        guard stackSize >= 65536 else { throw .invalidArgument }
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        let sizeError = pthread_attr_setstacksize(&attributes, (stackSize + 4095) & ~4095)
        guard sizeError == 0 else { throw Errno(rawValue: sizeError) }

        // A new thread inherits the mask, so it is blocked here first: no signal can arrive before the body runs.
        var all = sigset_t()
        var old = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_SETMASK, &all, &old)
        defer { pthread_sigmask(SIG_SETMASK, &old, nil) }

        let start = Unmanaged.passRetained(Start(name, timerSlackNanoseconds, body))
        var handle = pthread_t()
        let error = pthread_create(
            &handle, &attributes,
            { argument in
                // SAFETY: the argument is the `Start` retained above, handed over exactly once.
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                start.run()
                return nil
            }, start.toOpaque())
        guard error == 0 else {
            start.release()
            throw Errno(rawValue: error)
        }
        self.handle = handle
    }

    deinit { if !joined { pthread_detach(handle) } }

    /// Waits for the body to return.
    ///
    /// > Concurrency: once, by one thread, which is not this one.
    public func join() {
        precondition(!joined, "a thread is joined once")
        let error = pthread_join(handle, nil)
        precondition(error == 0, "pthread_join failed: errno \(error)")
        joined = true
    }

    /// Sends a signal to the thread, which must still run. The C function is `pthread_kill`.
    public func send(signal: Int32) { pthread_kill(handle, signal) }

    private final class Start: Sendable {
        let name: String
        let timerSlackNanoseconds: UInt?
        let body: @Sendable () -> Void

        init(_ name: String, _ slack: UInt?, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.timerSlackNanoseconds = slack
            self.body = body
        }

        func run() {
            name.withCString { _ = martlet_prctl(PR_SET_NAME, UInt(bitPattern: $0), 0, 0, 0) }
            if let timerSlackNanoseconds { _ = martlet_prctl(PR_SET_TIMERSLACK, timerSlackNanoseconds, 0, 0, 0) }
            body()
        }
    }
}
