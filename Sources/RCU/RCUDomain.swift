import Host
import SystemPackage

/// Read-copy-update: readers that neither lock nor write shared memory, writers that wait for them.
///
/// A writer unlinks an object from everything a reader can start from, waits for a *grace period* (every reader that
/// might have seen the object has since passed a quiescent state) and then frees it. The flavour here is QSBR: a reader
/// is inside a read section all the time between `RCUReader.online()` and `offline()`, except at the instants of
/// `quiescentState()`. Reading costs nothing beyond its loads; the price is that whoever is on-line must pass quiescent
/// states, or writers wait.
///
///     let domain = RCUDomain()
///     let table = RCUPointer<Table>(nil)
///     // reader
///     let reader = RCUReader(domain)
///     reader.online()
///     let first = reader.withReadSection { table.load()?.pointee.first }
///     reader.quiescentState()
///     reader.offline()
///     // writer
///     let old = table.exchange(new)
///     domain.call { old?.deinitialize(count: 1).deallocate() }
///
/// Invariants and memory ordering, for `gp` the grace-period counter and `state` a reader's word (0 off-line, else the
/// value of `gp` it last saw):
///
/// 1. A writer's unlinking happens before its grace period's increment of `gp` (release). A reader takes the value by an
///    acquire load, so after reporting n it sees every unlinking that preceded increment n.
/// 2. A reader reports by a releasing write of `state`; the writer reads it with acquire. So all the reader's earlier
///    accesses happen before the writer frees.
/// 3. Because the writer waits for `state ≥ n` and not for an instant outside a section, a report delayed in a store
///    buffer only delays the writer: reporting needs no fence. Off-line is different: the writer takes 0 at face value,
///    so `online()` writes `state` by an exchange and the increment of `gp` is an exchange-like operation too (full
///    fences on x86). Either the writer sees the reader on-line or the reader sees the unlinking.
/// 4. A writer that sleeps first arms `sleeping`, with a full fence, and looks again; a reader reports with a full fence
///    and then looks at `sleeping`. One of the two sees the other: no wake-up is lost. A reader pays this fence only
///    when a grace period began since its last report.
public final class RCUDomain: Sendable {
    let gracePeriods: GracePeriods
    let reclaimer: Reclaimer

    public init() {
        gracePeriods = GracePeriods()
        reclaimer = Reclaimer(gracePeriods)
    }

    /// Runs the callbacks that are left; readers keep the domain alive, so there are none.
    deinit { reclaimer.stop() }

    /// Waits until every read section that may have begun before the call has ended.
    ///
    /// - Complexity: linear in the number of readers registered at one time; concurrent callers share grace periods.
    /// > Concurrency: the caller is not an on-line reader of this domain (see `RCUReader.synchronize`), and holds no
    /// > lock an on-line reader may wait for.
    @available(*, noasync)
    public func synchronize() { gracePeriods.synchronize() }

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

private final class ClosureBox: Sendable {
    let closure: @Sendable () -> Void
    init(_ closure: @escaping @Sendable () -> Void) { self.closure = closure }
}
