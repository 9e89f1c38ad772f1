import Glibc
import Host
import Synchronization
import Testing
import Translator
import UserspaceKVM

/// A thread that stands in for a vCPU: "guest code" is a loop that looks at attention.
private final class StandIn: RequestTarget, @unchecked Sendable {
    private(set) var requests: VCPURequests!
    private let attention = Atomic<Bool>(false)
    /// How often each request was performed: TLB, write entries, jumps.
    let performed = Atomic<Int>(0)
    /// A cached "translation": the generation it was made from, or -1. Only valid while inside.
    var cached = -1
    private let isInside = Atomic<Bool>(false)
    let entries = Atomic<Int>(0)
    /// Runs within each performance.
    var onPerform: (() -> Void)?
    /// Runs before each move outside.
    var onLeave: (() -> Void)?

    init(_ gate: PauseGate) { requests = VCPURequests(gate: gate, target: self) }

    func raiseAttention() { attention.store(true, ordering: .sequentiallyConsistent) }
    func clearAttention() { attention.store(false, ordering: .sequentiallyConsistent) }
    var hasAttention: Bool { attention.load(ordering: .relaxed) }

    func perform(_ requests: ProcessorRequests) {
        if requests.contains(.flushTLB) { cached = -1 }
        onPerform?()
        performed.wrappingAdd(1, ordering: .relaxed)
    }

    func didEnter() { isInside.store(true, ordering: .sequentiallyConsistent) }
    func willLeave() {
        onLeave?()
        isInside.store(false, ordering: .sequentiallyConsistent)
    }
    var standsInside: Bool { isInside.load(ordering: .sequentiallyConsistent) }

    /// One stay inside, in which `body` runs until it returns false or attention is raised.
    func stay(_ body: () -> Bool) {
        clearAttention()
        requests.enter()
        entries.wrappingAdd(1, ordering: .relaxed)
        while body(), !hasAttention {}
        requests.leave()
    }
}

/// Several stand-ins that share a gate.
private final class Bench: @unchecked Sendable {
    let gate = PauseGate()
    let vcpus: [StandIn]
    let isDone = Atomic<Bool>(false)
    let failures = Atomic<Int>(0)
    /// What "translations" are made from. The resource of generation n may be used by nobody once it is retired.
    let generation = Atomic<Int>(0)
    let retired = Atomic<Int>(-1)

    init(_ count: Int) {
        let gate = gate
        vcpus = (0..<count).map { _ in StandIn(gate) }
    }

    func all(_ body: (VCPURequests) -> Void) { for vcpu in vcpus { body(vcpu.requests) } }

    /// Looks for a while whether one of the chosen stands inside.
    func expectOutside(_ isChosen: (StandIn) -> Bool) {
        for _ in 0..<20 {
            for vcpu in vcpus where isChosen(vcpu) && vcpu.standsInside {
                failures.wrappingAdd(1, ordering: .relaxed)
            }
            sched_yield()
        }
    }

    /// Uses a cached translation; it must not be of a retired generation.
    func useTranslation(of vcpu: StandIn) {
        if vcpu.cached < 0 { vcpu.cached = generation.load(ordering: .sequentiallyConsistent) }
        if vcpu.cached <= retired.load(ordering: .sequentiallyConsistent) {
            failures.wrappingAdd(1, ordering: .relaxed)
        }
    }
}

/// Every test ends by itself unless the engine dead-locks or loses a wake-up; then the watchdog ends the process.
@Suite(.serialized) struct VCPURequestsTests {
    /// A vCPU outside has acknowledged at once, and performs the request before it enters.
    @Test func outsideCountsAsAcknowledged() {
        let bench = Bench(1)
        VCPURequests.request(.flushTLB, among: bench.all)
        #expect(bench.vcpus[0].performed.load(ordering: .relaxed) == 0)
        bench.vcpus[0].stay { false }
        #expect(bench.vcpus[0].performed.load(ordering: .relaxed) == 1)
        bench.vcpus[0].stay { false }
        #expect(bench.vcpus[0].performed.load(ordering: .relaxed) == 1)
    }

    /// A request that comes when the vCPU has performed the others, and has not entered yet, is performed before it does.
    @Test func requestDuringEntryIsPerformed() {
        let bench = Bench(1)
        let vcpu = bench.vcpus[0]
        vcpu.onPerform = {
            vcpu.onPerform = nil
            VCPURequests.request(.flushTLB, among: bench.all)
        }
        VCPURequests.request(.flushTLB, among: bench.all)
        var seenInside = 0
        vcpu.stay {
            seenInside = vcpu.performed.load(ordering: .relaxed)
            return false
        }
        #expect(seenInside == 2)
    }

    /// A writer retires translations while vCPUs use them: after the acknowledgement nobody does.
    @Test func noTranslationOutlivesItsAcknowledgement() throws {
        let bench = Bench(2)
        try withThreads(2) { index in
            while !bench.isDone.load(ordering: .acquiring) {
                bench.vcpus[index].stay {
                    bench.useTranslation(of: bench.vcpus[index])
                    return !bench.isDone.load(ordering: .relaxed)
                }
            }
        } meanwhile: {
            defer { bench.isDone.store(true, ordering: .releasing) }
            for vcpu in bench.vcpus { while vcpu.entries.load(ordering: .relaxed) == 0 { sched_yield() } }
            for _ in 0..<300 {
                let old = bench.generation.wrappingAdd(1, ordering: .sequentiallyConsistent).oldValue
                VCPURequests.request(.flushTLB, among: bench.all)
                bench.retired.store(old, ordering: .sequentiallyConsistent)
            }
        }
        #expect(bench.failures.load(ordering: .relaxed) == 0)
        #expect(bench.retired.load(ordering: .relaxed) == 299)
    }

    /// A kick that comes while the vCPU has gone outside, in the middle of its stay, to wait for others.
    @Test(arguments: [true, false]) func kickDuringOwnRequestIsNoticed(pauses: Bool) throws {
        let bench = Bench(2)
        let (asking, asked) = (bench.vcpus[0], bench.vcpus[1])
        asked.onLeave = { [unowned asking, unowned asked] in
            guard asked.hasAttention else { return }
            while asking.standsInside { sched_yield() }
            asking.requests.kick()
        }
        try withThreads(1) { _ in
            while !bench.isDone.load(ordering: .acquiring) { asked.stay { !bench.isDone.load(ordering: .relaxed) } }
        } meanwhile: {
            defer { bench.isDone.store(true, ordering: .releasing) }
            while !asked.standsInside { sched_yield() }
            var wasNoticed = false
            asking.stay {
                if pauses {
                    asking.requests.withOthersPaused(among: bench.all) {}
                } else {
                    asking.requests.requestOthers(.flushTLB, among: bench.all)
                }
                wasNoticed = asking.hasAttention
                return false
            }
            #expect(wasNoticed)
        }
    }

    /// All vCPUs ask all others at once, from inside.
    @Test func mutualRequestsDoNotDeadlock() throws {
        let bench = Bench(4)
        let rounds = 500
        try withThreads(4) { index in
            let own = bench.vcpus[index]
            for _ in 0..<rounds {
                own.stay {
                    bench.useTranslation(of: own)
                    sched_yield()
                    let old = bench.generation.wrappingAdd(1, ordering: .sequentiallyConsistent).oldValue
                    own.requests.requestOthers(.flushTLB, among: bench.all)
                    own.cached = -1
                    // Others may have retired later generations already.
                    var seen = bench.retired.load(ordering: .sequentiallyConsistent)
                    while seen < old {
                        let result = bench.retired.compareExchange(
                            expected: seen, desired: old, ordering: .sequentiallyConsistent)
                        seen = result.exchanged ? old : result.original
                    }
                    bench.useTranslation(of: own)
                    return false
                }
            }
        }
        #expect(bench.generation.load(ordering: .relaxed) == 4 * rounds)
        #expect(bench.failures.load(ordering: .relaxed) == 0)
    }

    /// While one vCPU holds the others paused, nobody else is inside; requests and pauses of all kinds mix.
    @Test func pauseIsExclusive() throws {
        let bench = Bench(4)
        let pauses = Atomic<Int>(0)
        try withThreads(4) { index in
            let own = bench.vcpus[index]
            var random = UInt32(index) &* 2_654_435_761 &+ 1
            for _ in 0..<400 {
                own.stay {
                    random = random &* 1_664_525 &+ 1_013_904_223
                    switch random >> 24 & 3 {
                    case 0:
                        own.requests.withOthersPaused(among: bench.all) {
                            bench.expectOutside { $0 !== own }
                            if !own.standsInside { bench.failures.wrappingAdd(1, ordering: .relaxed) }
                            // Nested pauses and requests find nobody to wait for.
                            own.requests.withOthersPaused(among: bench.all) {
                                own.requests.requestOthers(.dropJumpCache, among: bench.all)
                            }
                            pauses.wrappingAdd(1, ordering: .relaxed)
                        }
                    case 1:
                        own.requests.requestOthers(.dropWriteEntries, among: bench.all)
                    default:
                        // Others run while this one stands inside.
                        sched_yield()
                    }
                    return random >> 20 & 7 != 0
                }
            }
        } meanwhile: {
            for _ in 0..<50 {
                // Requests of a thread that is no vCPU come in between.
                VCPURequests.request(.flushTLB, among: bench.all)
            }
        }
        #expect(bench.failures.load(ordering: .relaxed) == 0)
        #expect(pauses.load(ordering: .relaxed) > 0)
    }

    /// A kick gets a vCPU out of guest code that does not end by itself.
    @Test func kickEndsAStay() throws {
        let bench = Bench(1)
        let event = Atomic<Int>(0)
        let taken = Atomic<Int>(0)
        try withThreads(1) { _ in
            while taken.load(ordering: .relaxed) < 300 {
                let vcpu = bench.vcpus[0]
                vcpu.clearAttention()
                vcpu.requests.enter()
                let seen = event.load(ordering: .sequentiallyConsistent)
                taken.store(seen, ordering: .sequentiallyConsistent)
                while seen < 300, !vcpu.hasAttention {}
                vcpu.requests.leave()
            }
        } meanwhile: {
            for number in 1...300 {
                event.store(number, ordering: .sequentiallyConsistent)
                bench.vcpus[0].requests.kick()
                while taken.load(ordering: .sequentiallyConsistent) < number {}
            }
        }
        #expect(taken.load(ordering: .relaxed) == 300)
    }
}
