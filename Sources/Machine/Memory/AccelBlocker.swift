import Host
import SystemPackage

/// Keeps requests out of an accelerator for a while: the holder of the machine lock inhibits them, does what nobody may see
/// half done, and lets them in again.
///
/// Knows nothing of the accelerator: each vCPU has an ``AccelGate`` and a closure that makes it leave its request; requests to
/// the machine as a whole pass the one gate of ``withMachineRequest(_:)``.
///
///     blocker.inhibit()                       // the machine lock is held
///     defer { blocker.permit() }
///     try machine.setUserMemoryRegion(…)      // no vCPU is inside a request
///
/// Invariants and memory ordering, for `inhibited` the word that says whether requests are kept out, and `inside` a gate's
/// word, not 0 while a request is inside:
///
/// 1. Who enters writes `inside`, passes a full barrier, and reads `inhibited`; if that is set it goes back. The inhibitor
///    sets `inhibited`, passes a full barrier, and reads `inside`. One of the two sees the other: when the inhibitor finds
///    every `inside` at 0, nobody is inside, and nobody comes in before `inhibited` is cleared.
/// 2. Who leaves writes 0 to `inside` and then reads `inhibited`, with no barrier between but that of the compiler; the
///    inhibitor has every processor pass a barrier after it has set `inhibited`. That falls, for the one who leaves, before
///    the write, and then it sees `inhibited`, or after it, and then the inhibitor sees 0. Who sees `inhibited` changes
///    `departures` and wakes the inhibitor, who read `departures` before it looked at the gates: no wake-up is lost.
/// 3. Before it sleeps the inhibitor kicks each vCPU that it has seen inside. A kick lasts until the vCPU's thread takes it
///    back, which it does between two requests: its next request then sees `inhibited`, which was set before the kick.
/// 4. Who finds `inhibited` set and does not hold the machine lock sleeps on that word until it is cleared, outside of all
///    gates. The holder passes without writing anything: nobody else can set `inhibited`, and only the holder clears it.
/// 5. What was done inside a request happens before the inhibitor goes on, and what the inhibitor did before requests that
///    enter later: `inside` and `inhibited` are cleared with release and read with acquire.
///
/// There is no dead-lock as long as nobody inside a request waits for the machine lock or for what its holder holds
/// while inhibiting, and every request ends, or ends when its vCPU is kicked.
///
/// > Concurrency: `inhibit`, `permit` and the adding of vCPUs by the holder of the machine lock; requests by any thread.
package final class AccelBlocker: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `gates` and `depth` are guarded by the machine lock, the rest does not change.

    private let inhibition: Inhibition
    /// How many requests to the machine are inside: a word of its own line, as in a gate, but a counter, since any number of
    /// threads make them.
    private let machineRequests = FutexWord()
    private let barrier: ProcessBarrier
    private var gates: [AccelGate] = []
    private var depth = 0

    /// - Throws: `ENOSYS` if the kernel has no `membarrier`.
    package init(lock: MachineLock) throws(Errno) {
        inhibition = Inhibition(lock: lock)
        barrier = try ProcessBarrier()
    }

    /// Makes the gate of a new vCPU.
    ///
    /// - Parameter kick: makes the vCPU's request return soon, or the next one if there is none, until the vCPU's thread takes
    ///   that back. Called by the inhibitor; it waits for nobody.
    package func makeGate(kick: @escaping @Sendable () -> Void) -> AccelGate {
        requireLock()
        let gate = AccelGate(inhibition, kick)
        gates.append(gate)
        return gate
    }

    /// Forgets the gate of a vCPU that makes no requests any more.
    package func remove(_ gate: AccelGate) {
        requireLock()
        gates.removeAll { $0 === gate }
    }

    /// Makes a request to the machine as a whole, once requests are permitted.
    /// > Concurrency: any thread, inside no other request.
    package func withMachineRequest<Result, Failure: Error>(
        _ request: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let isCounted = enterMachine()
        defer { if isCounted { leaveMachine() } }
        return try request()
    }

    // MARK: The inhibitor

    /// Whether requests are kept out.
    package var isInhibiting: Bool {
        requireLock()
        return depth > 0
    }

    /// Returns when no request is inside, and keeps new ones out until ``permit()``. Calls may nest.
    ///
    /// The holder of the machine lock can make requests in between; others wait.
    package func inhibit() {
        requireLock()
        depth += 1
        guard depth == 1 else { return }
        // ORDERING: sequentially consistent, for invariant 1; the barrier is for invariant 2.
        inhibition.inhibited.atomic.pointee.store(1, ordering: .sequentiallyConsistent)
        barrier.run()
        while true {
            // ORDERING: acquire pairs with the release in `announceDeparture`; read before the gates (invariant 2).
            let seen = inhibition.departures.atomic.pointee.load(ordering: .acquiring)
            var isAnybodyInside = machineRequests.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0
            for gate in gates where gate.isInside {
                isAnybodyInside = true
                gate.kick()
            }
            guard isAnybodyInside else { return }
            inhibition.departures.wait(while: seen)
        }
    }

    /// Ends what ``inhibit()`` began.
    package func permit() {
        requireLock()
        precondition(depth > 0, "requests are permitted that nobody inhibits")
        depth -= 1
        guard depth == 0 else { return }
        // ORDERING: release, for invariant 5.
        inhibition.inhibited.atomic.pointee.store(0, ordering: .releasing)
        inhibition.inhibited.wake()
    }

    private func requireLock() {
        precondition(inhibition.lock.isHeldByCurrentThread, "the caller does not hold the machine lock")
    }

    // MARK: Requests to the machine

    /// - Returns: false if the caller inhibits, and is not counted.
    private func enterMachine() -> Bool {
        while inhibition.waitUntilPermitted() {
            // ORDERING: sequentially consistent, for invariant 1.
            machineRequests.atomic.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
            if inhibition.isPermitted { return true }
            leaveMachine()
        }
        return false
    }

    private func leaveMachine() {
        // ORDERING: release for invariant 5; the addition is a full barrier as well.
        machineRequests.atomic.pointee.wrappingSubtract(1, ordering: .sequentiallyConsistent)
        inhibition.announceDeparture()
    }
}
