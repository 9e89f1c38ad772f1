import Glibc
import Host

/// The host's clocks, and a thread for what has to happen later, started when it is first needed.
public final class HostClock: DeviceClock {
    private let wakeups = WakeupQueue()

    public init() {}

    deinit { wakeups.stop() }

    public var realTimeNanoseconds: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    public var monotonicNanoseconds: UInt64 { MonotonicClock.nanoseconds() }

    public func wake(afterNanoseconds nanoseconds: Int64, _ body: @escaping @Sendable () -> Void) {
        wakeups.add(at: MonotonicClock.nanoseconds() + UInt64(max(0, nanoseconds)), body)
    }
}

/// What ``HostClock`` has been asked to do later, shared with its thread.
///
/// The thread keeps the queue alive, not the clock.
private final class WakeupQueue: Sendable {
    private struct State {
        /// Unsorted: there are never more than a few.
        var entries: [(deadline: UInt64, body: @Sendable () -> Void)] = []
        var isRunning = false
        var isStopped = false
    }

    private let state = Locked(State())
    /// Counts changes of `state`; the thread sleeps on it.
    private let changes = FutexWord()

    func add(at deadline: UInt64, _ body: @escaping @Sendable () -> Void) {
        state.withLock { state in
            state.entries.append((deadline, body))
            guard !state.isRunning else { return }
            // Without a thread timers never fire: the guest loses alarms, nothing else.
            state.isRunning = (try? HostThread(name: "device timers") { self.work() }) != nil
        }
        signalChange()
    }

    func stop() {
        state.withLock {
            $0.isStopped = true
            $0.entries = []
        }
        signalChange()
    }

    private func signalChange() {
        // ORDERING: release pairs with the acquire in `work`; the state itself is behind its lock.
        changes.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        changes.wake()
    }

    private func work() {
        while true {
            // ORDERING: acquire pairs with the release in `signalChange`. Read before the state, so that a change after
            // the look at the state ends the sleep at once.
            let seen = changes.atomic.pointee.load(ordering: .acquiring)
            let (isStopped, deadline, body) = next()
            if isStopped { return }
            if let body { body() } else { changes.wait(while: seen, deadlineNanoseconds: deadline) }
        }
    }

    /// Whether to end, else what is due, else when something will be.
    private func next() -> (isStopped: Bool, deadline: UInt64?, body: (@Sendable () -> Void)?) {
        state.withLock { state in
            guard let first = state.entries.indices.min(by: { state.entries[$0].deadline < state.entries[$1].deadline })
            else { return (state.isStopped, nil, nil) }
            let deadline = state.entries[first].deadline
            guard deadline <= MonotonicClock.nanoseconds() else { return (state.isStopped, deadline, nil) }
            return (state.isStopped, nil, state.entries.remove(at: first).body)
        }
    }
}
