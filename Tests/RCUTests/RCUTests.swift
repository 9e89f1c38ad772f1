import Host
import RCU
import Synchronization
import TestSupport
import Testing

@Suite struct DomainTests {
    @Test func synchronizeWaitsForSectionsThatBeganBefore() throws {
        let domain = RCUDomain()
        let stage = Stage()
        let thread = try HostThread(name: "reader") {
            let reader = RCUReader(domain)
            reader.online()
            stage.set(1)
            while stage.value < 2 { reader.withReadSection {} }
            // Not past a quiescent state yet: the writer must still wait.
            stage.readerLeft.store(true, ordering: .relaxed)
            while stage.value < 3 { reader.quiescentState() }
            reader.offline()
        }
        stage.wait(for: 1)
        let writer = try HostThread(name: "writer") {
            stage.set(2)
            domain.synchronize()
            stage.sawReaderLeave.store(stage.readerLeft.load(ordering: .relaxed), ordering: .relaxed)
            stage.set(3)
        }
        writer.join()
        thread.join()
        let saw = stage.sawReaderLeave.load(ordering: .relaxed)
        #expect(saw)
    }

    @Test func offlineReadersDelayNobody() {
        let domain = RCUDomain()
        let idle = RCUReader(domain)
        domain.synchronize()
        idle.online()
        idle.offline()
        domain.synchronize()
        let isOnline = idle.isOnline
        #expect(!isOnline)
    }

    @Test func aReaderMaySynchronize() {
        let domain = RCUDomain()
        let reader = RCUReader(domain)
        reader.online()
        reader.synchronize()
        let before = reader.isOnline
        #expect(before)
        reader.offline()
        reader.synchronize()
        let after = reader.isOnline
        #expect(!after)
    }

    @Test func callbacksRunAfterTheReadersLeft() {
        let domain = RCUDomain()
        let reader = RCUReader(domain)
        let ran = Counter()
        reader.online()
        // Enough to keep the reclaiming thread from waiting for more.
        for _ in 0..<3000 { domain.call { ran.add(1) } }
        for _ in 0..<1000 { reader.withReadSection {} }
        #expect(ran.value == 0)
        reader.whileOffline { domain.barrier() }
        #expect(ran.value == 3000)
        #expect(domain.backlog == 0)
        reader.offline()
    }

    @Test func callbacksMayQueueCallbacks() {
        let ran = Counter()
        do {
            let domain = RCUDomain()
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
    }

    @Test func theEndOfADomainRunsItsCallbacks() {
        let ran = Counter()
        do {
            let domain = RCUDomain()
            for _ in 0..<100 { domain.call { ran.add(1) } }
        }
        #expect(ran.value == 100)
    }

    @Test func aCallbackMayHoldTheLastReference() {
        let ran = Counter()
        do {
            let domain = RCUDomain()
            domain.call {
                withExtendedLifetime(domain) {}
                ran.add(1)
            }
        }
        ran.wait(for: 1)
    }

    @Test func throttleBoundsTheBacklog() {
        let domain = RCUDomain()
        let ran = Counter()
        var largest = 0
        for _ in 0..<100_000 {
            domain.call { ran.add(1) }
            domain.throttle()
            largest = max(largest, domain.backlog)
        }
        domain.barrier()
        #expect(ran.value == 100_000)
        #expect(largest <= 8192)
    }

    @Test func writersNudgeReadersTheyWaitFor() throws {
        let domain = RCUDomain()
        let attention = FutexWord(0)
        let reader = RCUReader(
            domain,
            nudge: {
                let word = $0.assumingMemoryBound(to: Atomic<UInt32>.self)
                word.pointee.store(1, ordering: .relaxed)
            }, context: attention.address)
        domain.synchronize()
        let before = attention.atomic.pointee.load(ordering: .relaxed)
        #expect(before == 0)
        reader.online()
        let writer = try HostThread(name: "writer") { domain.synchronize() }
        // Only the nudge ends this loop.
        while attention.atomic.pointee.load(ordering: .relaxed) == 0 { reader.withReadSection {} }
        reader.quiescentState()
        reader.offline()
        writer.join()
    }

    @Test func aReaderMovesBetweenThreads() throws {
        final class Holder: @unchecked Sendable {
            let reader: RCUReader
            init(_ domain: RCUDomain) { reader = RCUReader(domain) }
        }
        let domain = RCUDomain()
        let holder = Holder(domain)
        holder.reader.online()
        try HostThread(name: "second") { holder.reader.quiescentState() }.join()
        try HostThread(name: "third") { holder.reader.offline() }.join()
        domain.synchronize()
        let isOnline = holder.reader.isOnline
        #expect(!isOnline)
    }

    @Test func manyWritersShareGracePeriods() throws {
        let domain = RCUDomain()
        let done = Counter()
        let stop = Flag()
        let reader = try HostThread(name: "reader") {
            let reader = RCUReader(domain)
            reader.online()
            while !stop.isSet {
                reader.withReadSection {}
                reader.quiescentState()
            }
        }
        let writers = try (0..<8).map { _ in
            try HostThread(name: "writer") {
                for _ in 0..<200 {
                    domain.synchronize()
                    done.add(1)
                }
            }
        }
        writers.forEach { $0.join() }
        stop.set()
        reader.join()
        #expect(done.value == 1600)
    }
}

@Suite struct PointerTests {
    @Test func exchangeReturnsThePredecessor() {
        let first = UnsafeMutablePointer<Int>.allocate(capacity: 2)
        defer { first.deallocate() }
        let pointer = RCUPointer<Int>(nil)
        let empty = pointer.load()
        #expect(empty == nil)
        pointer.publish(first)
        let published = pointer.load()
        #expect(published == first)
        let predecessor = pointer.exchange(first + 1)
        #expect(predecessor == first)
        let current = pointer.load()
        #expect(current == first + 1)
    }
}
