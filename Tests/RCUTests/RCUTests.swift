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

    @Test func aReferenceReadsThePublishedObject() {
        struct Pair: ~Copyable {
            let first = Atomic<Int>(1)
            var second = 2
        }
        let object = UnsafeMutablePointer<Pair>.allocate(capacity: 1)
        object.initialize(to: Pair())
        defer { object.deinitialize(count: 1).deallocate() }
        let pointer = RCUPointer<Pair>(nil)
        let nothing = ThreadRCU.withReadSection { section in pointer.load(in: section)?.pointee.second }
        #expect(nothing == nil)
        pointer.publish(object)
        let sum = ThreadRCU.withReadSection { section in
            guard let pair = pointer.load(in: section) else { return 0 }
            return pair.pointee.first.load(ordering: .relaxed) + pair.pointee.second
        }
        #expect(sum == 3)
    }
}
