import Glibc
import Host
import Machine
import Synchronization
import TestSupport
import Testing

/// Tests end by themselves unless the blocker dead-locks or loses a wake-up; then the watchdog ends the process.
@Suite(.serialized) struct AccelBlockerTests {
    let lock = MachineLock()
    let blocker: AccelBlocker

    init() throws { blocker = try AccelBlocker(lock: lock) }

    @Test func theLockKnowsItsHolder() throws {
        #expect(!lock.isHeldByCurrentThread)
        try lock.withLock {
            #expect(lock.isHeldByCurrentThread)
            let isHeld = Flag()
            try HostThread(name: "other") { [lock] in if lock.isHeldByCurrentThread { isHeld.set() } }.join()
            #expect(!isHeld.isSet)
        }
        #expect(!lock.isHeldByCurrentThread)
    }

    /// The inhibitor kicks who is inside, once, and sleeps until it has left.
    @Test func inhibitWaitsForTheKickedRequest() throws {
        try withWatchdog {
            let isInside = Flag()
            let kicks = Counter()
            let hasLeft = Flag()
            let gate = lock.withLock { blocker.makeGate { kicks.add(1) } }
            let vcpu = try HostThread(name: "vcpu") {
                gate.withRequest {
                    isInside.set()
                    while kicks.value == 0 { usleep(100) }
                    // A spinning inhibitor would kick again and again meanwhile.
                    usleep(50_000)
                    hasLeft.set()
                }
            }
            while !isInside.isSet { usleep(100) }
            lock.withLock {
                blocker.inhibit()
                #expect(hasLeft.isSet && blocker.isInhibiting)
                blocker.permit()
                #expect(!blocker.isInhibiting)
            }
            vcpu.join()
            // A signal may have woken it once.
            #expect((1...2).contains(kicks.value))
        }
    }

    @Test func inhibitWaitsForRequestsToTheMachine() throws {
        try withWatchdog {
            let isInside = Flag()
            let hasLeft = Flag()
            let caller = try HostThread(name: "caller") { [blocker] in
                blocker.withMachineRequest {
                    isInside.set()
                    usleep(20_000)
                    hasLeft.set()
                }
            }
            while !isInside.isSet { usleep(100) }
            lock.withLock {
                blocker.inhibit()
                #expect(hasLeft.isSet)
                blocker.permit()
            }
            caller.join()
        }
    }

    /// The holder's own requests pass while those of others wait; inhibitions nest.
    @Test func onlyTheHolderPasses() throws {
        try withWatchdog {
            let gate = lock.withLock { blocker.makeGate {} }
            let passed = Counter()
            var threads: [HostThread] = []
            try lock.withLock {
                blocker.inhibit()
                threads = try [
                    HostThread(name: "vcpu") { gate.withRequest { passed.add(1) } },
                    HostThread(name: "caller") { [blocker] in blocker.withMachineRequest { passed.add(1) } }
                ]
                usleep(20_000)
                #expect(gate.withRequest { passed.value } == 0)
                blocker.inhibit()
                #expect(blocker.withMachineRequest { passed.value } == 0)
                blocker.permit()
                usleep(5000)
                #expect(passed.value == 0)
                blocker.permit()
                #expect(gate.withRequest { 5 } == 5)
            }
            threads.forEach { $0.join() }
            #expect(passed.value == 2)
        }
    }

    @Test func removedGatesAreNotWaitedFor() throws {
        let gate = lock.withLock { blocker.makeGate {} }
        gate.withRequest {
            lock.withLock {
                blocker.remove(gate)
                blocker.inhibit()
                blocker.permit()
            }
        }
    }

    /// vCPUs that leave when they are kicked, callers, and inhibitors that make requests of their own, all at random.
    @Test func nobodyIsInsideWhileInhibited() throws {
        try withWatchdog {
            let arena = try Arena(seed: runSeed("blocker"), vcpuCount: 3)
            let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
            var threads: [HostThread] = []
            for index in 0..<3 { threads.append(try HostThread(name: "vcpu") { arena.runVCPU(index) }) }
            for index in 0..<2 { threads.append(try HostThread(name: "caller") { arena.makeRequests(index) }) }
            for index in 0..<2 { threads.append(try HostThread(name: "inhibitor") { arena.inhibit(index) }) }
            while MonotonicClock.nanoseconds() < deadline { usleep(1000) }
            arena.isOver.set()
            threads.forEach { $0.join() }
            #expect(arena.faults.value == 0)
            #expect(arena.inhibitions.value > 0 && arena.requests.value > 0)
            print(
                "blocker: \(arena.inhibitions.value) inhibitions, \(arena.requests.value) requests, "
                    + "\(arena.kicks.value) kicks")
        }
    }
}

/// What the stress test's threads share.
private final class Arena: @unchecked Sendable {
    /// A vCPU as its thread sees it: `KVM_RUN` returns when it is kicked.
    private final class Kick: Sendable {
        private let word = FutexWord()
        var isSet: Bool { word.atomic.pointee.load(ordering: .sequentiallyConsistent) != 0 }
        func set() { word.atomic.pointee.store(1, ordering: .sequentiallyConsistent); word.wake() }
        func clear() { word.atomic.pointee.store(0, ordering: .sequentiallyConsistent) }
        func wait() { while !isSet { word.wait(while: 0) } }
    }

    let lock = MachineLock()
    let blocker: AccelBlocker
    let seed: UInt64
    let isOver = Flag()
    let faults = Counter()
    let inhibitions = Counter()
    let requests = Counter()
    let kicks = Counter()
    private var vcpus: [(gate: AccelGate, kick: Kick)] = []
    /// Requests inside, as they count themselves.
    private let inside = Counter()
    /// Plain memory that inhibitors change and requests read: the thread sanitizer sees whether they are ordered.
    nonisolated(unsafe) private var map = (generation: 0, copy: 0)

    init(seed: UInt64, vcpuCount: Int) throws {
        self.seed = seed
        blocker = try AccelBlocker(lock: lock)
        let kicks = kicks
        lock.withLock {
            for _ in 0..<vcpuCount {
                let kick = Kick()
                let gate = blocker.makeGate {
                    kicks.add(1)
                    kick.set()
                }
                vcpus.append((gate, kick))
            }
        }
    }

    private func useMap() {
        if map.generation != map.copy { faults.add(1) }
        requests.add(1)
    }

    func runVCPU(_ index: Int) {
        var random = SeededGenerator(seed: seed &+ UInt64(index))
        let (gate, kick) = vcpus[index]
        while !isOver.isSet {
            // One guest never exits by itself, until the end.
            let sleeps = index == 0 && random.oneIn(2)
            let turns = random.next() % 200
            gate.withRequest {
                inside.add(1)
                if sleeps {
                    useMap()
                    while !kick.isSet && !isOver.isSet { usleep(50) }
                    if !isOver.isSet { kick.wait() }
                } else {
                    for _ in 0..<turns where !kick.isSet { useMap() }
                }
                useMap()
                inside.add(-1)
            }
            if kick.isSet { kick.clear() }
            // Many short requests: inhibitors meet them in their gate.
            for _ in 0..<random.next() % 4000 {
                gate.withRequest {
                    inside.add(1)
                    if map.generation != map.copy { faults.add(1) }
                    inside.add(-1)
                }
            }
            if random.oneIn(4) { sched_yield() }
        }
    }

    func makeRequests(_ index: Int) {
        var random = SeededGenerator(seed: seed &+ 100 &+ UInt64(index))
        while !isOver.isSet {
            blocker.withMachineRequest {
                inside.add(1)
                for _ in 0..<random.next() % 50 { useMap() }
                inside.add(-1)
            }
            if random.oneIn(3) { usleep(UInt32(random.next() % 100)) }
        }
    }

    func inhibit(_ index: Int) {
        var random = SeededGenerator(seed: seed &+ 200 &+ UInt64(index))
        while !isOver.isSet {
            lock.withLock {
                // The holder makes requests without inhibiting, too.
                if random.oneIn(3) { blocker.withMachineRequest { useMap() } }
                blocker.inhibit()
                if random.oneIn(4) { blocker.inhibit() } else if random.oneIn(2) { changeMap(&random) }
                for _ in 0..<random.next() % 20 where inside.value != 0 { faults.add(1) }
                blocker.permit()
                if blocker.isInhibiting {
                    changeMap(&random)
                    blocker.permit()
                }
                inhibitions.add(1)
            }
            usleep(UInt32(random.next() % 300))
        }
    }

    private func changeMap(_ random: inout SeededGenerator) {
        map.generation += 1
        if random.oneIn(2) { sched_yield() }
        // Requests of the holder, to the machine and to a vCPU whose thread waits.
        blocker.withMachineRequest { requests.add(1) }
        vcpus[Int(random.next() % UInt64(vcpus.count))].gate.withRequest { if inside.value != 0 { faults.add(1) } }
        map.copy += 1
    }
}
