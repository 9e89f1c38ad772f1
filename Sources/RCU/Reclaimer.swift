import CHost
import Glibc
import Host
import Synchronization
import SystemPackage

/// The queue of callbacks that wait for a grace period, and the thread that runs them.
///
/// The thread is created by the first callback. It holds this object but not the domain, whose end stops it.
/// Lock order: reclaim lock, then the locks of the grace periods; the queue lock is innermost.
final class Reclaimer: @unchecked Sendable {
    struct Callback {
        let function: @convention(c) (UnsafeMutableRawPointer) -> Void
        let context: UnsafeMutableRawPointer
    }

    /// From this backlog on the thread does not wait for more callbacks to share a grace period.
    static let promptBacklog = 1024
    /// From this backlog on `throttle` waits.
    static let maximumBacklog = 8192
    /// How long the thread lets callbacks gather.
    private static let gatherNanoseconds: UInt64 = 5_000_000

    private let source: any GracePeriodSource
    private let queueLock = FutexLock()
    /// Under the queue lock, as the two below.
    private var queue: [Callback] = []
    private var thread: HostThread?
    private var isStopping = false
    private let queuedCount = Atomic<Int>(0)
    /// Changes whenever the thread has a reason to look.
    private let signal = FutexWord(0)
    /// Held while a batch waits and runs: who takes it knows that earlier batches are done.
    private let reclaimLock = FutexLock()
    /// The kernel's number of the thread; 0 before it runs.
    private let threadNumber = Atomic<Int32>(0)

    init(_ source: any GracePeriodSource) { self.source = source }

    /// The number of callbacks queued and not yet taken.
    var backlog: Int { queuedCount.load(ordering: .relaxed) }

    func enqueue(_ callback: Callback) {
        let wakes = queueLock.withLock {
            queue.append(callback)
            queuedCount.store(queue.count, ordering: .relaxed)
            // Without a thread (the system may have none left) the queue is served by `throttle`, `barrier` and `stop`;
            // the next callback tries again.
            if thread == nil {
                thread = try? HostThread(name: "rcu-reclaim") { [self] in run() }
            }
            return queue.count == 1 || queue.count == Self.promptBacklog
        }
        if wakes { wakeThread() }
    }

    func throttle() {
        if backlog >= Self.maximumBacklog { reclaim() }
    }

    /// Waits for a grace period and runs what was queued before the call.
    func reclaim() {
        reclaimLock.withLock {
            let batch = queueLock.withLock {
                let batch = queue
                queue = []
                queuedCount.store(0, ordering: .relaxed)
                return batch
            }
            guard !batch.isEmpty else { return }
            source.synchronize()
            for callback in batch { callback.function(callback.context) }
        }
    }

    /// Runs what is left and ends the thread. Nobody queues any more, except callbacks.
    func stop() {
        let thread = queueLock.withLock {
            isStopping = true
            return self.thread
        }
        guard let thread else {
            while backlog > 0 { reclaim() }
            return
        }
        wakeThread()
        // A callback may drop the last reference to the domain: the thread then ends by itself.
        if threadNumber.load(ordering: .relaxed) != martlet_gettid() { thread.join() }
    }

    // MARK: Forks

    func beginFork() {
        reclaimLock.lock()
        queueLock.lock()
    }

    /// A child has no thread; its next callback creates one.
    func endFork(isChild: Bool) {
        if isChild, let lost = thread {
            // Not to be joined, nor detached.
            _ = Unmanaged.passRetained(lost)
            thread = nil
        }
        queueLock.unlock()
        reclaimLock.unlock()
    }

    private func wakeThread() {
        // ORDERING: release pairs with the acquire in `run`.
        signal.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        signal.wake()
    }

    private func run() {
        threadNumber.store(martlet_gettid(), ordering: .relaxed)
        while true {
            // ORDERING: acquire pairs with the release in `wakeThread`.
            let seen = signal.atomic.pointee.load(ordering: .acquiring)
            let (count, stopping) = queueLock.withLock { (queue.count, isStopping) }
            if stopping && count == 0 { break }
            if count == 0 {
                signal.wait(while: seen)
                continue
            }
            if count < Self.promptBacklog && !stopping {
                signal.wait(while: seen, deadlineNanoseconds: MonotonicClock.nanoseconds() + Self.gatherNanoseconds)
            }
            reclaim()
        }
        // Ends the cycle thread → body → self → thread.
        queueLock.withLock { thread = nil }
    }
}
