import Host
import Interrupts
import SystemPackage

/// The event descriptors of a machine whose signals are interrupts (irqfds).
///
/// One thread waits for all of them; it starts with the first. It takes an event from its descriptor and gives it to the
/// router with `lock` held, and a removal holds `lock` too: when that returns, no interrupt of the event is under way or to
/// come. The route is looked up at each delivery.
///
/// A *resampled* event holds its line high until the guest has ended the interrupt; then the line falls, and the client's
/// other descriptor is signalled, so that the device can raise it again. All such events of one line share the line's level.
///
/// Lock order: a vCPU's lock, then `lock`, then those of the interrupt controllers. The controllers call
/// ``acknowledge(_:)`` without theirs.
final class InterruptEvents: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the variables are guarded by `lock`.

    private final class Assignment {
        let gsi: UInt32
        let event: EventDescriptor
        /// Of resampled events.
        let resample: EventDescriptor?

        init(gsi: UInt32, event: consuming EventDescriptor, resample: consuming EventDescriptor?) {
            self.gsi = gsi
            self.event = event
            self.resample = resample
        }
    }

    private let lock = FutexLock()
    /// By the token that the poller knows each by; tokens are never used again.
    private var assignments: [UInt64: Assignment] = [:]
    private var nextToken: UInt64 = 0
    private var poller: DescriptorPoller?
    /// That of the machine; there are no assignments without it.
    private var router: InterruptRouter?

    /// Makes the signals of `event` interrupts of the line `gsi`, also one that is there already.
    ///
    /// - Parameter resample: signalled at the end of each interrupt; nil for interrupts that are edges.
    /// - Throws: `EBUSY` if the event is assigned already, `EMFILE`, `EAGAIN` if there is no thread left.
    func assign(
        gsi: UInt32, event: consuming EventDescriptor, resample: consuming EventDescriptor?, to router: InterruptRouter
    ) throws(Errno) {
        let assignment = Assignment(gsi: gsi, event: event, resample: resample)
        try lock.withLock { () throws(Errno) in
            let identity = assignment.event.identity
            guard !assignments.values.contains(where: { $0.event.identity == identity }) else { throw .resourceBusy }
            let poller = try startedPoller()
            // An event that is pending is found by the thread, which then waits for the lock.
            try poller.add(assignment.event.rawValue, token: nextToken)
            assignments[nextToken] = assignment
            nextToken += 1
            self.router = router
            if assignment.resample != nil { observe(router) }
        }
    }

    /// Takes assignments back; there may be none. No interrupt of theirs comes after this.
    func remove(gsi: UInt32, identity: UInt64) {
        lock.withLock {
            for (token, assignment) in assignments
            where assignment.gsi == gsi && assignment.event.identity == identity {
                poller?.remove(assignment.event.rawValue)
                assignments[token] = nil
                if assignment.resample != nil { releaseLine(gsi) }
            }
        }
    }

    /// Waits for a delivery that may have begun with routes which were replaced before the call.
    func waitForDelivery() { lock.withLock {} }

    /// Ends the thread. Nothing is delivered any more.
    /// > Concurrency: once, when there are no other users.
    func stop() { poller?.stop() }

    /// - Throws: `EMFILE`, `EAGAIN`.
    /// > Concurrency: `lock` is held.
    private func startedPoller() throws(Errno) -> DescriptorPoller {
        if let poller { return poller }
        // Not counted: the thread ends before the machine, and this object with it.
        let new = try DescriptorPoller(name: "martlet-irqfd") { [unowned(unsafe) self] token in deliver(token) }
        poller = new
        return new
    }

    // MARK: The thread

    /// Delivers the event with that token if there is one and it is signalled.
    private func deliver(_ token: UInt64) {
        lock.withLock {
            guard let assignment = assignments[token], assignment.event.take(), let router else { return }
            if assignment.resample != nil {
                router.setLine(assignment.gsi, level: true, source: .resampling)
            } else {
                router.setLine(assignment.gsi, level: true)
                router.setLine(assignment.gsi, level: false)
            }
        }
    }

    // MARK: Resampling

    /// > Concurrency: `lock` is held.
    private func observe(_ router: InterruptRouter) {
        // Not counted: vCPUs, which end interrupts, keep the machine.
        router.setAcknowledgementObserver { [unowned(unsafe) self] gsi in acknowledge(gsi) }
    }

    /// The guest has ended the interrupt of a line.
    /// > Concurrency: a vCPU, without locks of the interrupt controllers.
    private func acknowledge(_ gsi: UInt32) {
        lock.withLock {
            var isLowered = false
            for assignment in assignments.values where assignment.gsi == gsi && assignment.resample != nil {
                // Before the first signal: a device may answer with its next event at once.
                if !isLowered { router?.setLine(gsi, level: false, source: .resampling) }
                isLowered = true
                assignment.resample?.signal()
            }
        }
    }

    /// Lowers the line, and ends the observation, if nothing needs it any more.
    /// > Concurrency: `lock` is held.
    private func releaseLine(_ gsi: UInt32) {
        let resampled = assignments.values.filter { $0.resample != nil }
        if !resampled.contains(where: { $0.gsi == gsi }) {
            router?.setLine(gsi, level: false, source: .resampling)
        }
        if resampled.isEmpty { router?.setAcknowledgementObserver(nil) }
    }
}
