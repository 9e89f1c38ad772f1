import CHost
import Host
import Synchronization

/// The gate to one vCPU's requests; see ``AccelBlocker`` for the invariants.
///
/// While nobody inhibits, passing it costs one atomic exchange and one store on a line of its own, and reads of one that is
/// hardly ever written.
///
/// > Concurrency: one thread at a time, as a rule the one that runs the vCPU, and the holder of the machine lock while it
/// > inhibits.
package final class AccelGate: Sendable {
    private let inhibition: Inhibition
    /// 1 while a request is inside.
    private let inside = FutexWord()
    let kick: @Sendable () -> Void

    init(_ inhibition: Inhibition, _ kick: @escaping @Sendable () -> Void) {
        self.inhibition = inhibition
        self.kick = kick
    }

    /// Makes a request to the vCPU, once requests are permitted.
    @inline(__always)
    package func withRequest<Result, Failure: Error>(
        _ request: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let isCounted = enter()
        defer { if isCounted { leave() } }
        return try request()
    }

    /// Whether a request is inside; for the inhibitor.
    var isInside: Bool {
        // ORDERING: sequentially consistent for invariant 1, which includes the acquire of invariant 5.
        inside.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0
    }

    /// - Returns: false if the caller inhibits, and is not counted.
    private func enter() -> Bool {
        while inhibition.waitUntilPermitted() {
            // ORDERING: sequentially consistent, for invariant 1.
            let old = inside.atomic.pointee.exchange(1, ordering: .sequentiallyConsistent)
            precondition(old == 0, "two threads make requests to one vCPU")
            if inhibition.isPermitted { return true }
            leave()
        }
        return false
    }

    private func leave() {
        // ORDERING: release for invariant 5, the compiler's barrier for invariant 2.
        inside.atomic.pointee.store(0, ordering: .releasing)
        martlet_compiler_barrier()
        inhibition.announceDeparture()
    }
}

/// What the gates of one accelerator share with whoever inhibits.
final class Inhibition: Sendable {
    let lock: MachineLock
    /// 1 while requests are kept out; those who wait sleep on it.
    let inhibited = FutexWord()
    /// Changes when a request leaves while others are kept out; the inhibitor sleeps on it.
    let departures = FutexWord()

    init(lock: MachineLock) { self.lock = lock }

    /// What a request asks when it stands in its gate.
    @inline(__always)
    var isPermitted: Bool {
        // ORDERING: sequentially consistent for invariant 1, which includes the acquire of invariant 5.
        inhibited.atomic.pointee.load(ordering: .sequentiallyConsistent) == 0
    }

    /// Returns when requests are permitted, as far as can be seen from outside the gate.
    /// - Returns: false if they are inhibited by the calling thread, which may make some.
    @inline(__always)
    func waitUntilPermitted() -> Bool {
        isPermitted || sleepUntilPermitted()
    }

    @inline(never)
    private func sleepUntilPermitted() -> Bool {
        if lock.isHeldByCurrentThread { return false }
        while !isPermitted { inhibited.wait(while: 1) }
        return true
    }

    /// Wakes the inhibitor, if there is one. The gate has been left before.
    @inline(__always)
    func announceDeparture() {
        // ORDERING: relaxed; invariant 2.
        guard inhibited.atomic.pointee.load(ordering: .relaxed) != 0 else { return }
        wakeInhibitor()
    }

    @inline(never)
    private func wakeInhibitor() {
        // ORDERING: release pairs with the acquire in `inhibit`.
        departures.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        departures.wake()
    }
}
