import Glibc
import Host
import RCU
import Synchronization
import TestSupport
import Testing

/// What the domains of all kinds promise.
@Suite(.serialized) struct ReclamationTests {
    @Test(arguments: DomainKind.allCases) func synchronizeWaitsForSectionsThatBeganBefore(kind: DomainKind) throws {
        let domain = kind.makeDomain()
        for sleepMicroseconds: UInt32 in [0, 2000] {
            let stage = Stage()
            let reader = try HostThread(name: "reader") {
                kind.withReadSection(domain) { _ in
                    stage.set(1)
                    stage.wait(for: 2)
                    // Long enough, the second time, for the writer to sleep.
                    usleep(sleepMicroseconds)
                    stage.readerLeft.store(true, ordering: .relaxed)
                }
            }
            let writer = try HostThread(name: "writer") {
                stage.wait(for: 1)
                stage.set(2)
                domain.synchronize()
                stage.sawReaderLeave.store(stage.readerLeft.load(ordering: .relaxed), ordering: .relaxed)
            }
            reader.join()
            writer.join()
            let saw = stage.sawReaderLeave.load(ordering: .relaxed)
            #expect(saw)
        }
    }

    @Test(arguments: DomainKind.allCases) func callbacksWaitForSections(kind: DomainKind) throws {
        let domain = kind.makeDomain()
        let ran = Counter()
        kind.withReadSection(domain) { _ in
            // Enough to keep the reclaiming thread from waiting for more.
            for _ in 0..<3000 { domain.call { ran.add(1) } }
            usleep(20_000)
            #expect(ran.value == 0)
        }
        domain.barrier()
        #expect(ran.value == 3000)
    }

    @Test(arguments: DomainKind.allCases) func callbacksMayQueueCallbacks(kind: DomainKind) {
        let domain = kind.makeDomain()
        let ran = Counter()
        for _ in 0..<10 {
            domain.call { [weak domain] in
                ran.add(1)
                domain?.call { ran.add(1) }
            }
        }
        domain.barrier()
        domain.barrier()
        #expect(ran.value == 20)
    }

    /// Writers that call `throttle` leave a bounded number of callbacks, however fast they are and whatever readers do.
    @Test(arguments: DomainKind.allCases) func aStormLeavesBoundedGarbage(kind: DomainKind) throws {
        let domain = kind.makeDomain()
        let ran = Counter()
        let stop = Flag()
        let largest = Atomic<Int>(0)
        let reader = try HostThread(name: "reader") {
            while !stop.isSet { kind.withReadSection(domain) { _ in sched_yield() } }
        }
        let writers = try (0..<2).map { _ in
            try HostThread(name: "writer") {
                for _ in 0..<50_000 {
                    domain.call { ran.add(1) }
                    domain.throttle()
                    let backlog = domain.backlog
                    if backlog > largest.load(ordering: .relaxed) { largest.store(backlog, ordering: .relaxed) }
                }
            }
        }
        writers.forEach { $0.join() }
        stop.set()
        reader.join()
        domain.barrier()
        #expect(ran.value == 100_000)
        let bound = largest.load(ordering: .relaxed)
        #expect(bound <= 8192 + 2)
    }

    @Test(arguments: DomainKind.allCases) func writersShareGracePeriods(kind: DomainKind) throws {
        let domain = kind.makeDomain()
        let done = Counter()
        let stop = Flag()
        let reader = try HostThread(name: "reader") {
            while !stop.isSet { kind.withReadSection(domain) { _ in } }
        }
        let writers = try (0..<8).map { _ in
            try HostThread(name: "writer") {
                for _ in 0..<100 {
                    domain.synchronize()
                    done.add(1)
                }
            }
        }
        writers.forEach { $0.join() }
        stop.set()
        reader.join()
        #expect(done.value == 800)
    }

    /// Readers whose sections end while the writer falls asleep: a lost wake-up would hang.
    @Test(arguments: DomainKind.allCases) func noWakeUpIsLost(kind: DomainKind) throws {
        let seed = runSeed("wake-ups \(kind)")
        let domain = kind.makeDomain()
        let stop = Flag()
        let begun = Counter()
        let readers = try (0..<3).map { number in
            try HostThread(name: "reader") {
                var random = SeededGenerator(seed: seed &+ UInt64(number))
                begun.add(1)
                while !stop.isSet {
                    kind.withReadSection(domain) { _ in
                        if random.oneIn(2) { usleep(UInt32.random(in: 0...60, using: &random)) }
                    }
                }
            }
        }
        while begun.value < 3 { sched_yield() }
        for _ in 0..<1000 { domain.synchronize() }
        stop.set()
        readers.forEach { $0.join() }
    }

    /// More threads than ever live at one time.
    @Test(arguments: DomainKind.allCases) func threadsComeAndGo(kind: DomainKind) throws {
        let domain = kind.makeDomain()
        let ran = Counter()
        for _ in 0..<50 {
            let threads = try (0..<8).map { _ in
                try HostThread(name: "passing", stackSize: 1 << 17) {
                    kind.withReadSection(domain) { _ in ran.add(1) }
                    domain.call { ran.add(1) }
                }
            }
            domain.synchronize()
            threads.forEach { $0.join() }
        }
        domain.barrier()
        #expect(ran.value == 800)
    }

    @Test(arguments: DomainKind.allCases) func sectionsEndWhenTheirBodyThrows(kind: DomainKind) throws {
        struct Failure: Error {}
        switch kind {
        case .quiescentState:
            let domain = RCUDomain()
            let reader = RCUReader(domain)
            reader.online()
            #expect(throws: Failure.self) { try reader.withReadSection { _ in throw Failure() } }
            reader.quiescentState()
            reader.offline()
            domain.synchronize()
        case .membarrier:
            #expect(throws: Failure.self) { try ThreadRCU.withReadSection { _ in throw Failure() } }
            #expect(!ThreadRCU.isInSection)
            ThreadRCU.domain.synchronize()
        case .blocking:
            let domain = SRCUDomain()
            #expect(throws: Failure.self) { try domain.withReadSection { _ in throw Failure() } }
            domain.synchronize()
        }
    }
}

@Suite struct ThreadRCUTests {
    @Test func theOutermostSectionCounts() throws {
        #expect(!ThreadRCU.isInSection)
        ThreadRCU.withReadSection { _ in
            ThreadRCU.withReadSection { _ in }
            #expect(ThreadRCU.isInSection)
        }
        #expect(!ThreadRCU.isInSection)
        ThreadRCU.domain.synchronize()
    }

    @Test func aThreadDoesNotWaitForItself() async {
        await #expect(processExitsWith: .failure) {
            waitInsideSection()
        }
    }
}

/// Outside the test's closure, which is asynchronous.
private func waitInsideSection() {
    ThreadRCU.withReadSection { _ in ThreadRCU.domain.synchronize() }
}

@Suite struct SRCUTests {
    @Test func aBlockedReaderDelaysItsOwnDomainOnly() throws {
        let (blocked, free) = (SRCUDomain(), SRCUDomain())
        let stage = Stage()
        let reader = try HostThread(name: "reader") {
            blocked.withReadSection { _ in
                stage.set(1)
                stage.wait(for: 2)
            }
        }
        stage.wait(for: 1)
        free.synchronize()
        ThreadRCU.domain.synchronize()
        stage.set(2)
        reader.join()
        blocked.synchronize()
    }

    @Test func aReaderMayWaitForAnotherDomainsWriters() {
        let (outer, inner) = (SRCUDomain(), SRCUDomain())
        for _ in 0..<100 {
            outer.withReadSection { _ in
                outer.withReadSection { _ in inner.synchronize() }
            }
            outer.synchronize()
        }
    }

    @Test func newReadersDoNotKeepAWriterWaiting() throws {
        let domain = SRCUDomain()
        let stop = Flag()
        let inside = Counter()
        // Each is inside nearly all the time, so that the domain is never without a reader.
        let readers = try (0..<4).map { _ in
            try HostThread(name: "reader") {
                while !stop.isSet {
                    domain.withReadSection { _ in
                        inside.add(1)
                        usleep(200)
                    }
                }
            }
        }
        while inside.value < 4 { sched_yield() }
        for _ in 0..<50 { domain.synchronize() }
        stop.set()
        readers.forEach { $0.join() }
    }
}
