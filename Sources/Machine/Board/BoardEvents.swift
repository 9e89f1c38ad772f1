import Host
import Synchronization

/// What ends a board's run; the first event counts.
///
/// > Concurrency: any thread.
final class BoardEvents: Sendable {
    enum Event: Equatable, Sendable {
        case powerOff
        case reset
        case tripleFault(registers: String)
        case internalError(String, registers: String)
        case hostFailure(String)
    }

    private let first = Locked<Event?>(nil)
    private let stopping = Atomic(false)
    private let notify: @Sendable () -> Void

    /// - Parameter notify: called once, when there is an event.
    init(notify: @escaping @Sendable () -> Void) { self.notify = notify }

    /// The event that ended the run, if one has.
    var event: Event? { first.withLock { $0 } }

    /// Whether vCPU threads are to end.
    var isStopping: Bool {
        // ORDERING: acquire pairs with the releases below; nothing else is read on the strength of it.
        stopping.load(ordering: .acquiring)
    }

    func report(_ event: Event) {
        let isFirst = first.withLock { first in
            guard first == nil else { return false }
            first = event
            return true
        }
        // ORDERING: release pairs with the acquire in `isStopping`.
        stopping.store(true, ordering: .releasing)
        if isFirst { notify() }
    }

    /// Ends the run from outside.
    func stop() {
        // ORDERING: release pairs with the acquire in `isStopping`.
        stopping.store(true, ordering: .releasing)
    }
}
