import Host

/// What the domains of all kinds give their writers: waiting for readers, and callbacks after they have left.
///
/// The kinds differ in who reads and what that costs:
///
/// | kind | readers | a section costs | may a reader block? |
/// |---|---|---|---|
/// | ``RCUDomain`` | those with an ``RCUReader`` | nothing; quiescent states now and then | off-line |
/// | ``ThreadRCU`` | any thread | two stores to a line of its own | no |
/// | ``SRCUDomain`` | any thread | two atomic additions, nearly always to a line of its own | yes |
public class ReclamationDomain: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable` because classes derive from this one; all that any of them holds is Sendable.

    private let source: any GracePeriodSource
    private let reclaimer: Reclaimer

    init(_ source: any GracePeriodSource) {
        self.source = source
        reclaimer = Reclaimer(source)
    }

    /// Runs the callbacks that are left; readers keep the domain alive, so there are none.
    deinit { reclaimer.stop() }

    final func beginReclaimerFork() { reclaimer.beginFork() }
    final func endReclaimerFork(isChild: Bool) { reclaimer.endFork(isChild: isChild) }

    /// Waits until every read section that may have begun before the call has ended.
    ///
    /// - Complexity: linear in the number of readers that existed at one time; concurrent callers share grace periods.
    /// > Concurrency: the caller is not inside a read section of this domain, and holds no lock that a reader inside one
    /// > may wait for.
    @available(*, noasync)
    public func synchronize() { source.synchronize() }

    /// Runs `callback` on some thread after a grace period. Never waits.
    ///
    /// > Concurrency: any thread, inside or outside a read section. The callback may use `call` but neither `barrier`
    /// > nor `throttle`.
    public func call(_ callback: @escaping @Sendable () -> Void) {
        let box = Unmanaged.passRetained(ClosureBox(callback))
        call(box.toOpaque()) { pointer in
            // SAFETY: the pointer is the box retained above; each callback runs once.
            Unmanaged<ClosureBox>.fromOpaque(pointer).takeRetainedValue().closure()
        }
    }

    /// Runs `function(context)` on some thread after a grace period. Never waits, allocates only to grow the queue.
    ///
    /// > Concurrency: as the other `call`.
    public func call(
        _ context: UnsafeMutableRawPointer, _ function: @escaping @convention(c) (UnsafeMutableRawPointer) -> Void
    ) {
        reclaimer.enqueue(Reclaimer.Callback(function: function, context: context))
    }

    /// The domain as it is now, for inspection.
    public var state: ReclamationState {
        var state = source.state
        state.pendingCallbacks = backlog
        return state
    }

    /// How many callbacks have not begun yet.
    public var backlog: Int { reclaimer.backlog }

    /// Keeps garbage bounded: returns at once while few callbacks are queued, else waits for a grace period and runs
    /// them on this thread.
    ///
    /// Writers that produce garbage without bound call this where they may wait.
    /// > Concurrency: as `synchronize`; not from a callback.
    @available(*, noasync)
    public func throttle() { reclaimer.throttle() }

    /// Waits until every callback queued before the call has run.
    ///
    /// > Concurrency: as `synchronize`; not from a callback.
    @available(*, noasync)
    public func barrier() { reclaimer.reclaim() }
}

/// A domain's readers and garbage at one moment.
public struct ReclamationState: Equatable, Sendable {
    /// The number of grace periods begun.
    public var begun: UInt64
    /// Readers inside a section.
    public var activeReaders: Int
    /// How many grace periods have begun since the oldest of them came in; 0 if there is none.
    public var oldestReaderAge: UInt64
    /// Callbacks that have not begun.
    public var pendingCallbacks = 0
}

private final class ClosureBox: Sendable {
    let closure: @Sendable () -> Void
    init(_ closure: @escaping @Sendable () -> Void) { self.closure = closure }
}
