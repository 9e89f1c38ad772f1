import Host
import Synchronization
import SystemPackage

// Timers of vCPUs that run, and of the PIT.
//
// Each timer has a slot with a deadline that anybody may set. One thread sleeps until the earliest; it publishes when it
// will wake (`plannedWake`), and who sets an earlier deadline wakes it.
//
//     thread:  s = changes;  plannedWake = .max;  scan the deadlines;  plannedWake = minimum;  sleep while changes == s
//     setter:  deadline = d;  if d < plannedWake { changes += 1; wake }
//
// All of these are sequentially consistent. A deadline that the scan missed was stored after `plannedWake = .max`, so its
// setter reads that or the minimum; in both cases it wakes the thread unless the thread wakes earlier by itself.

/// One timer: a deadline, and what happens then.
final class TimerSlot: Sendable {
    /// Monotonic nanoseconds; `.max` if disarmed.
    fileprivate let deadline = Atomic<UInt64>(.max)
    fileprivate let fire: @Sendable (_ now: UInt64) -> Void

    /// - Parameter fire: called on the timer thread, with no lock held, once for each deadline that has come.
    init(fire: @escaping @Sendable (_ now: UInt64) -> Void) { self.fire = fire }
}

/// The timer thread of one machine. It starts with the first deadline.
final class MachineTimers: Sendable {
    private let shared = TimerThreadState()
    private let thread = Locked<HostThread?>(nil)

    init() {}

    /// Adds a timer.
    func add(_ slot: TimerSlot) { shared.slots.withLock { $0.append(slot) } }

    /// Sets the deadline of `slot`; nil disarms it.
    /// > Concurrency: any thread.
    func arm(_ slot: TimerSlot, deadlineNanoseconds: UInt64?) {
        let deadline = deadlineNanoseconds ?? .max
        slot.deadline.store(deadline, ordering: .sequentiallyConsistent)
        guard deadline < shared.plannedWake.load(ordering: .sequentiallyConsistent) else { return }
        if !shared.isStarted.load(ordering: .acquiring) { start() }
        shared.notify()
    }

    private func start() {
        thread.withLock { thread in
            guard thread == nil else { return }
            let shared = shared
            do {
                // Slack 1 ns: the kernel would otherwise add 50 µs to each sleep.
                thread = try HostThread(name: "martlet-timer", timerSlackNanoseconds: 1) { shared.run() }
            } catch {
                // No thread is left: timers are looked at when their vCPUs sleep or leave, and the next one tries again.
                return
            }
            // ORDERING: pairs with the load in `arm`.
            shared.isStarted.store(true, ordering: .releasing)
        }
    }

    /// Ends the thread; nothing fires any more.
    /// > Concurrency: once, not on the timer thread.
    func stop() {
        shared.isStopped.store(true, ordering: .sequentiallyConsistent)
        shared.notify()
        let running = thread.withLock { $0 }
        running?.join()
    }
}

/// What the thread and those who arm timers share.
private final class TimerThreadState: Sendable {
    let slots = Locked<[TimerSlot]>([])
    let plannedWake = Atomic<UInt64>(.max)
    let changes = FutexWord(0)
    let isStarted = Atomic<Bool>(false)
    let isStopped = Atomic<Bool>(false)

    func notify() {
        changes.atomic.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
        changes.wake()
    }

    func run() {
        while !isStopped.load(ordering: .sequentiallyConsistent) {
            let seen = changes.atomic.pointee.load(ordering: .sequentiallyConsistent)
            plannedWake.store(.max, ordering: .sequentiallyConsistent)
            var next = UInt64.max
            let now = MonotonicClock.nanoseconds()
            for slot in slots.withLock({ $0 }) { next = min(next, visit(slot, now)) }
            plannedWake.store(next, ordering: .sequentiallyConsistent)
            guard !isStopped.load(ordering: .sequentiallyConsistent) else { return }
            changes.wait(while: seen, deadlineNanoseconds: next == .max ? nil : next)
        }
    }

    /// Fires the slot if it is due.
    /// - Returns: its deadline then.
    private func visit(_ slot: TimerSlot, _ now: UInt64) -> UInt64 {
        let deadline = slot.deadline.load(ordering: .sequentiallyConsistent)
        guard deadline <= now else { return deadline }
        let result = slot.deadline.compareExchange(
            expected: deadline, desired: .max, ordering: .sequentiallyConsistent)
        guard result.exchanged else { return result.original }
        slot.fire(now)
        return slot.deadline.load(ordering: .sequentiallyConsistent)
    }
}
