import CHost
import Glibc
import Host
import Synchronization
import Translator

// How threads ask things of a virtual CPU, and know that it has taken notice.
//
// One word per vCPU says where it stands: inside guest code or outside. Only the vCPU's owner (the thread inside
// `KVM_RUN`) moves it, and every move changes the word's count.
//
//     owner enters:   word = inside    (full fence)    then reads `pending` and the machine's pause gate
//     writer asks:    pending |= bits  (full fence)    then reads `word`
//
// One of the two sees the other (Dekker). If the writer reads "outside", the vCPU has acknowledged: it will see the bits
// before it executes guest code. If it reads "inside", it raises the attention flag and sleeps until the word is another
// one. Any other word will do: the owner was outside at one moment after the bits were set.
//
// Invariants:
// 1. Guest code, and helpers that use what they looked up for it (translations, host addresses, blocks), run only while
//    the word says inside.
// 2. An owner enters only with `pending` empty and, unless the pause is its own, the gate open. If it finds otherwise
//    after its store, it leaves again; nothing has run in between.
// 3. Whoever waits is outside. A vCPU that asks others leaves before it waits, so two that ask each other acknowledge
//    each other.
// 4. Bits are merged and carry no payload, so they are taken with one exchange, and performed while outside.
// 5. A halted vCPU sleeps outside; requests do not wake it, events do.
// 6. Bit 1 of the word says that a writer sleeps on it. It is set by writers, only in a word that says inside, and the
//    move that ends the word tells the owner in the same atomic exchange, so no wake-up is lost.
// 7. A kick that finds the owner outside raises nothing: the owner looks at its events after each entry. One that goes
//    outside in the middle of a stay raises attention itself when it is back, so that the stay ends and it looks.

/// The processor behind the requests, or a stand-in in tests.
public protocol RequestTarget: AnyObject, Sendable {
    /// Makes guest code end soon.
    /// > Concurrency: any thread.
    func raiseAttention()
    /// > Concurrency: the owner, outside.
    func perform(_ requests: ProcessorRequests)
    /// The owner stands inside now.
    /// > Concurrency: the owner.
    func didEnter()
    /// The owner is about to leave.
    /// > Concurrency: the owner.
    func willLeave()
}

/// The machine's side: the gate that holds every vCPU but one out of guest code.
public final class PauseGate: Sendable {
    /// 0 open, 1 closed.
    fileprivate let closed = FutexWord(0)
    /// Held by the vCPU that closed the gate. Taken outside guest code only.
    fileprivate let lock = FutexLock()

    public init() {}

    // ORDERING: pairs with the sequentially consistent store that closes the gate; see the file's head.
    fileprivate var isClosed: Bool { closed.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 }
}

/// Where a vCPU stands and what others want of it.
public final class VCPURequests: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: atomics for everyone; `count` and `ownsPause` belong to the owner.

    private static let insideBit: UInt32 = 1 << 0
    private static let waiterBit: UInt32 = 1 << 1
    private static let step: UInt32 = 1 << 2

    private let word = FutexWord(0)
    private let pending = Atomic<UInt32>(0)
    private let gate: PauseGate
    /// Sleeping is 1, otherwise 0.
    private let sleeping = FutexWord(0)

    /// Set before the vCPU is published. The target outlives this.
    public unowned(unsafe) var target: any RequestTarget

    /// Bits 2–31 of `word`.
    private var count: UInt32 = 0
    private var ownsPause = false

    public init(gate: PauseGate, target: any RequestTarget) {
        self.gate = gate
        self.target = target
    }

    // MARK: The owner

    /// Whether the owner stands inside. > Concurrency: the owner.
    public private(set) var isInside = false

    /// Performs what others ask, waits for the gate, and enters.
    /// > Concurrency: the owner, outside.
    public func enter() {
        precondition(!isInside, "a vCPU enters guest code twice")
        while true {
            performPending()
            while !ownsPause, gate.isClosed { gate.closed.wait(while: 1) }
            // ORDERING: the full fence of the owner's side; see the file's head.
            _ = word.atomic.pointee.exchange(count | Self.insideBit, ordering: .sequentiallyConsistent)
            // ORDERING: after the fence; pairs with the writers' `pending |= bits`.
            if pending.load(ordering: .sequentiallyConsistent) == 0, ownsPause || !gate.isClosed {
                isInside = true
                target.didEnter()
                return
            }
            moveOutside()
        }
    }

    /// Enters in the middle of a stay.
    private func enterAgain() {
        enter()
        target.raiseAttention()
    }

    /// Leaves, and wakes those who wait for it.
    /// > Concurrency: the owner, inside.
    public func leave() {
        precondition(isInside, "a vCPU leaves guest code twice")
        target.willLeave()
        isInside = false
        moveOutside()
    }

    private func moveOutside() {
        count &+= Self.step
        // ORDERING: release, so that who reads the new word sees all the owner did inside; acquire for the waiter bit.
        let old = word.atomic.pointee.exchange(count, ordering: .acquiringAndReleasing)
        if old & Self.waiterBit != 0 { word.wake() }
    }

    /// Performs what others ask now.
    /// > Concurrency: the owner, outside.
    public func performPending() {
        // ORDERING: acquire pairs with the writers' `pending |= bits`: what they published before is seen.
        guard pending.load(ordering: .relaxed) != 0 else { return }
        let bits = pending.exchange(0, ordering: .acquiringAndReleasing)
        let requests = ProcessorRequests(rawValue: bits).subtracting(.pause)
        if !requests.isEmpty { target.perform(requests) }
    }

    // MARK: Writers

    /// The word of a vCPU that has to move before a request counts as acknowledged.
    struct Awaited {
        let vcpu: VCPURequests
        let word: UInt32
    }

    /// Asks for `requests`.
    ///
    /// - Returns: what to wait for; nil if the vCPU is outside and so has acknowledged.
    /// > Concurrency: any thread.
    func post(_ requests: ProcessorRequests) -> Awaited? {
        // ORDERING: the full fence of the writer's side; see the file's head.
        pending.bitwiseOr(requests.rawValue, ordering: .sequentiallyConsistent)
        let seen = word.atomic.pointee.load(ordering: .sequentiallyConsistent)
        guard seen & Self.insideBit != 0 else { return nil }
        target.raiseAttention()
        return Awaited(vcpu: self, word: seen & ~Self.waiterBit)
    }

    /// How often a writer looks before it sleeps, if every vCPU that it waits for has a processor beside its own: about as
    /// long as a vCPU takes to leave guest code, and less than a sleep and its end.
    private static let lookCount = 400
    private static let processorCount = Int(max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1))

    /// Waits for all, which are known not to be more than those that were inside.
    private static func wait(for awaited: [Awaited]) {
        var looks = awaited.count < processorCount ? lookCount : 0
        for entry in awaited {
            while looks > 0, entry.vcpu.word.atomic.pointee.load(ordering: .relaxed) & ~waiterBit == entry.word {
                martlet_pause()
                looks -= 1
            }
            entry.vcpu.wait(for: entry.word)
        }
    }

    /// Sleeps until the vCPU's word is another than `awaited`.
    /// > Concurrency: any thread that is not inside guest code itself.
    func wait(for awaited: UInt32) {
        while true {
            // ORDERING: acquire pairs with the release of the owner's move.
            let seen = word.atomic.pointee.load(ordering: .acquiring)
            guard seen & ~Self.waiterBit == awaited else { return }
            if seen & Self.waiterBit == 0 {
                // ORDERING: relaxed on failure, the loop reads again; acquire and release as any change of the word.
                let result = word.atomic.pointee.compareExchange(
                    expected: seen, desired: seen | Self.waiterBit, ordering: .acquiringAndReleasing)
                guard result.exchanged else { continue }
            }
            word.wait(while: awaited | Self.waiterBit)
        }
    }

    /// Makes the owner look at its events soon: out of guest code, or out of its sleep.
    ///
    /// The caller has recorded the event with a full fence.
    /// > Concurrency: any thread; async-signal-safe.
    public func kick() {
        // ORDERING: pairs with the owner's sequentially consistent entry and `sleep`: it sees the event or is seen here.
        if word.atomic.pointee.load(ordering: .sequentiallyConsistent) & Self.insideBit != 0 { target.raiseAttention() }
        if sleeping.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0,
            sleeping.atomic.pointee.exchange(0, ordering: .sequentiallyConsistent) != 0
        {
            sleeping.wake()
        }
    }

    // MARK: Inspection

    /// Where the owner stands, seen by anybody.
    var standsInside: Bool { word.atomic.pointee.load(ordering: .relaxed) & Self.insideBit != 0 }

    var isSleeping: Bool { sleeping.atomic.pointee.load(ordering: .relaxed) != 0 }

    // MARK: Sleeping

    /// Sleeps until a kick, the deadline or a signal, unless `hasEvent` says that there is no reason to sleep.
    ///
    /// - Parameter hasEvent: called after the vCPU has announced its sleep, so that no kick is lost.
    /// - Returns: whether a signal handler ran.
    /// > Concurrency: the owner, outside.
    func sleep(deadlineNanoseconds: UInt64?, unless hasEvent: () -> Bool) -> Bool {
        precondition(!isInside, "a vCPU sleeps in guest code")
        // ORDERING: the full fence between announcing the sleep and looking for events; pairs with `kick`.
        _ = sleeping.atomic.pointee.exchange(1, ordering: .sequentiallyConsistent)
        var outcome = Futex.Outcome.woken
        if !hasEvent() { outcome = sleeping.wait(while: 1, deadlineNanoseconds: deadlineNanoseconds) }
        // ORDERING: release and acquire as any change of the word.
        _ = sleeping.atomic.pointee.exchange(0, ordering: .sequentiallyConsistent)
        return outcome == .interrupted
    }
}

// MARK: - Asking several

extension VCPURequests {
    /// Makes every vCPU of `others` perform `requests` before it runs guest code again, and returns when all have
    /// acknowledged; requests to this vCPU are performed meanwhile.
    ///
    /// - Parameter all: calls its argument for each vCPU, this one or not.
    /// > Concurrency: the owner, inside or outside; stands there again on return.
    public func requestOthers(_ requests: ProcessorRequests, among all: ((VCPURequests) -> Void) -> Void) {
        let awaited = Self.post(requests, to: all, except: self)
        let wasInside = isInside
        if wasInside { leave() }
        Self.wait(for: awaited)
        if wasInside { enterAgain() } else { performPending() }
    }

    /// Makes every vCPU that `all` enumerates perform `requests` before it runs guest code again, and returns when all have
    /// acknowledged.
    /// > Concurrency: any thread that is not inside guest code.
    public static func request(_ requests: ProcessorRequests, among all: ((VCPURequests) -> Void) -> Void) {
        wait(for: post(requests, to: all, except: nil))
    }

    private static func post(
        _ requests: ProcessorRequests, to all: ((VCPURequests) -> Void) -> Void, except own: VCPURequests?
    ) -> [Awaited] {
        var awaited: [Awaited] = []
        all { vcpu in
            if vcpu !== own, let entry = vcpu.post(requests) { awaited.append(entry) }
        }
        return awaited
    }

    /// Runs `body` while no other vCPU among `all` executes guest code. Nested calls run it directly.
    ///
    /// What this vCPU looked up before may be stale in `body`: requests to it have been performed.
    /// > Concurrency: the owner, inside or outside; inside during `body`, and afterwards where it was.
    public func withOthersPaused(among all: ((VCPURequests) -> Void) -> Void, _ body: () -> Void) {
        guard !ownsPause else { return body() }
        let wasInside = isInside
        if wasInside { leave() }
        gate.lock.lock()
        // ORDERING: the full fence of the writer's side; pairs with the owners' look at the gate after their entry.
        gate.closed.atomic.pointee.store(1, ordering: .sequentiallyConsistent)
        Self.wait(for: Self.post(.pause, to: all, except: self))
        ownsPause = true
        if wasInside { enterAgain() } else { enter() }
        body()
        if !wasInside { leave() }
        ownsPause = false
        // ORDERING: release, so that those who enter see what `body` did.
        gate.closed.atomic.pointee.store(0, ordering: .sequentiallyConsistent)
        gate.closed.wake()
        gate.lock.unlock()
    }
}
