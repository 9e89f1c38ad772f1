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
///     let first = reader.withReadSection { section in table.load(in: section)?.pointee.first }
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
/// 4. A writer that sleeps first sets the reader's `isAwaited`, with a full fence, and looks again; a reader reports with a
///    full fence and then looks at `isAwaited`. One of the two sees the other: no wake-up is lost. A reader pays this fence
///    only when a grace period began since its last report.
public final class RCUDomain: ReclamationDomain, @unchecked Sendable {
    let gracePeriods: GracePeriods

    public init() {
        gracePeriods = GracePeriods()
        super.init(gracePeriods)
    }
}
