import Glibc

/// The host's clocks, and a thread for what has to happen later, started when it is first needed.
public final class HostClock: DeviceClock {
    private let wakeups = WakeupQueue()

    public init() {}

    deinit { wakeups.stop() }

    public var realTimeNanoseconds: Int64 { Self.nanoseconds(of: CLOCK_REALTIME) }

    public var monotonicNanoseconds: UInt64 { UInt64(Self.nanoseconds(of: CLOCK_MONOTONIC)) }

    public func wake(afterNanoseconds nanoseconds: Int64, _ body: @escaping @Sendable () -> Void) {
        wakeups.add(at: Self.nanoseconds(of: CLOCK_MONOTONIC) + max(0, nanoseconds), body)
    }

    fileprivate static func nanoseconds(of clock: clockid_t) -> Int64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}

/// What ``HostClock`` has been asked to do later, shared with its thread.
///
/// > Concurrency: everything below `mutex` is guarded by it. The thread keeps the queue alive, not the clock.
private final class WakeupQueue: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    /// Unsorted: there are never more than a few.
    private var entries: [(deadline: Int64, body: @Sendable () -> Void)] = []
    private var isRunning = false
    private var isStopped = false

    init() {
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(changed, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(changed)
        pthread_mutex_destroy(mutex)
        changed.deallocate()
        mutex.deallocate()
    }

    func add(at deadline: Int64, _ body: @escaping @Sendable () -> Void) {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        entries.append((deadline, body))
        if isRunning { pthread_cond_signal(changed) } else { start() }
    }

    func stop() {
        pthread_mutex_lock(mutex)
        isStopped = true
        entries = []
        pthread_cond_signal(changed)
        pthread_mutex_unlock(mutex)
    }

    private func start() {
        var thread = pthread_t()
        let context = Unmanaged.passRetained(self)
        // Signals belong to the threads that expect them.
        var all = sigset_t()
        var previous = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_SETMASK, &all, &previous)
        let error = pthread_create(
            &thread, nil,
            { context in
                // SAFETY: `start` passed a retained queue.
                Unmanaged<WakeupQueue>.fromOpaque(context!).takeRetainedValue().work()
                return nil
            }, context.toOpaque())
        pthread_sigmask(SIG_SETMASK, &previous, nil)
        guard error == 0 else {
            // Without a thread timers never fire: the guest loses alarms, nothing else.
            context.release()
            return
        }
        pthread_detach(thread)
        isRunning = true
    }

    private func work() {
        pthread_mutex_lock(mutex)
        while !isStopped {
            guard let next = entries.indices.min(by: { entries[$0].deadline < entries[$1].deadline }) else {
                pthread_cond_wait(changed, mutex)
                continue
            }
            let deadline = entries[next].deadline
            if deadline > HostClock.nanoseconds(of: CLOCK_MONOTONIC) {
                var time = timespec(
                    tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
                pthread_cond_timedwait(changed, mutex, &time)
                continue
            }
            let body = entries.remove(at: next).body
            pthread_mutex_unlock(mutex)
            body()
            pthread_mutex_lock(mutex)
        }
        pthread_mutex_unlock(mutex)
    }
}
