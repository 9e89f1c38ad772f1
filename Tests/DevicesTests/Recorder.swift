import Devices
import Synchronization

/// Keeps what devices report, in order.
final class Recorder<Value: Sendable>: Sendable {
    private let recorded = Mutex<[Value]>([])

    var values: [Value] { recorded.withLock { $0 } }

    func add(_ value: Value) { recorded.withLock { $0.append(value) } }
}

/// A clock that stands still until it is told.
final class ManualClock: DeviceClock {
    private struct State {
        var realTime: Int64
        var monotonic: UInt64 = 5_000_000_000
        var wakeups: [(deadline: UInt64, body: @Sendable () -> Void)] = []
    }

    private let state: Mutex<State>

    init(realTimeSeconds: Int64) { state = Mutex(State(realTime: realTimeSeconds * 1_000_000_000)) }

    var realTimeNanoseconds: Int64 { state.withLock { $0.realTime } }
    var monotonicNanoseconds: UInt64 { state.withLock { $0.monotonic } }

    func wake(afterNanoseconds nanoseconds: Int64, _ body: @escaping @Sendable () -> Void) {
        state.withLock { $0.wakeups.append(($0.monotonic + UInt64(nanoseconds), body)) }
    }

    /// Lets time pass, stopping at each wake-up on the way.
    func advance(nanoseconds: UInt64) {
        let end = monotonicNanoseconds + nanoseconds
        while true {
            let body: (@Sendable () -> Void)? = state.withLock { state in
                let due = state.wakeups.indices.filter { state.wakeups[$0].deadline <= end }
                let next = due.min { state.wakeups[$0].deadline < state.wakeups[$1].deadline }
                let moment = next.map { max(state.monotonic, state.wakeups[$0].deadline) } ?? end
                state.realTime += Int64(moment - state.monotonic)
                state.monotonic = moment
                return next.map { state.wakeups.remove(at: $0).body }
            }
            guard let body else { return }
            body()
        }
    }
}
