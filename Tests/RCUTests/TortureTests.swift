import Glibc
import Host
import RCU
import Synchronization
import TestSupport
import Testing

/// One published object. Its age counts what has happened since it was unlinked: 0 published, 1 unlinked, then one more
/// for each grace period. A read section that could start from the object ends before the age reaches 2.
private struct Element: ~Copyable {
    let age = Atomic<Int>(0)
    /// Plain memory: the thread sanitizer sees whether freeing is ordered after the readers.
    var payload: (Int, Int) = (0, 0)

    static let poison = -1
    /// The age at which an element is freed.
    static let lifetime = 4
}

/// Threads that read, replace and free one object at random, as the kernel's `rcutorture` does.
private final class Torture: @unchecked Sendable {
    let kind: DomainKind
    let domain: ReclamationDomain
    /// A second SRCU domain, whose writers readers wait for.
    let other = SRCUDomain()
    let current = RCUPointer<Element>(nil)
    let writersLock = FutexLock()
    let live = Counter()
    let tooOld = Counter()
    let torn = Counter()
    let sections = Counter()
    let publications = Counter()
    let largestBacklog = Atomic<Int>(0)
    let deadline: UInt64

    init(_ kind: DomainKind, seconds: Double) {
        self.kind = kind
        domain = kind.makeDomain()
        deadline = MonotonicClock.nanoseconds() + UInt64(seconds * 1e9)
    }

    var isOver: Bool { MonotonicClock.nanoseconds() >= deadline }

    func make(_ value: Int) -> UnsafeMutablePointer<Element> {
        let element = UnsafeMutablePointer<Element>.allocate(capacity: 1)
        element.initialize(to: Element())
        element.pointee.payload = (value, ~value)
        live.add(1)
        return element
    }

    func free(_ element: UnsafeMutablePointer<Element>) {
        element.pointee.payload = (Element.poison, Element.poison)
        element.deinitialize(count: 1)
        element.deallocate()
        live.add(-1)
    }

    // MARK: Readers

    /// Reads until the time is over.
    func read(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        while !isOver {
            switch kind {
            case .quiescentState: readBetweenQuiescentStates(&random)
            case .membarrier: readOnPassingThread(random.next())
            case .blocking: readAndBlock(&random)
            }
        }
    }

    /// Comes and goes as a reader.
    private func readBetweenQuiescentStates(_ random: inout SeededGenerator) {
        let reader = RCUReader(domain as! RCUDomain)
        for _ in 0..<Int.random(in: 1...20, using: &random) where !isOver {
            reader.online()
            for _ in 0..<Int.random(in: 1...200, using: &random) {
                reader.withReadSection { section in look(section, &random) }
                if !random.oneIn(4) { reader.quiescentState() }
                if random.oneIn(500) { reader.synchronize() }
                if random.oneIn(300) { reader.whileOffline { nap(&random) } }
            }
            reader.offline()
            if random.oneIn(4) { nap(&random) }
        }
    }

    /// Reads on a thread that is new and soon ends.
    private func readOnPassingThread(_ seed: UInt64) {
        let thread = try? HostThread(name: "passing") { [self] in
            var random = SeededGenerator(seed: seed)
            for _ in 0..<Int.random(in: 1...3000, using: &random) where random.oneIn(64) ? !isOver : true {
                ThreadRCU.withReadSection { section in
                    look(section, &random)
                    if random.oneIn(8) { ThreadRCU.withReadSection { inner in look(inner, &random) } }
                    if random.oneIn(500) { nap(&random) }
                    look(section, &random)
                }
                if random.oneIn(500) { domain.synchronize() }
                if random.oneIn(300) { nap(&random) }
            }
        }
        thread?.join()
    }

    private func readAndBlock(_ random: inout SeededGenerator) {
        let domain = domain as! SRCUDomain
        domain.withReadSection { section in
            look(section, &random)
            if random.oneIn(8) { domain.withReadSection { inner in look(inner, &random) } }
            if random.oneIn(100) { nap(&random) }
            if random.oneIn(300) { other.synchronize() }
            look(section, &random)
        }
        other.withReadSection { _ in }
        if random.oneIn(500) { domain.synchronize() }
        if random.oneIn(300) { nap(&random) }
    }

    private func look(_ section: borrowing ReadSection, _ random: inout SeededGenerator) {
        sections.add(1)
        guard let element = current.load(in: section) else { return }
        for _ in 0..<(random.oneIn(50) ? 2000 : Int.random(in: 1...20, using: &random)) {
            let payload = element.pointee.payload
            if payload.0 != ~payload.1 { torn.add(1) }
        }
        if random.oneIn(16) { sched_yield() }
        if element.pointee.age.load(ordering: .relaxed) >= 2 { tooOld.add(1) }
    }

    private func nap(_ random: inout SeededGenerator) {
        usleep(UInt32.random(in: 1...300, using: &random))
    }

    // MARK: Writers

    func write(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let reader = (domain as? RCUDomain).map { QuiescentReader($0) }
        while !isOver {
            let new = make(Int.random(in: 0..<1 << 40, using: &random))
            let old = writersLock.withLock { current.exchange(new) }
            publications.add(1)
            if let old {
                old.pointee.age.wrappingAdd(1, ordering: .relaxed)
                switch random.next() % 4 {
                case 0:
                    for _ in 1..<Element.lifetime {
                        domain.synchronize()
                        old.pointee.age.wrappingAdd(1, ordering: .relaxed)
                    }
                    free(old)
                case 1:
                    // Writers may be readers.
                    retireWhileReading(old, reader)
                default:
                    retire(old)
                }
            }
            if random.oneIn(1000) { domain.barrier() }
            domain.throttle()
            // Several writers may have added one each after they looked.
            if domain.backlog > largestBacklog.load(ordering: .relaxed) {
                largestBacklog.store(domain.backlog, ordering: .relaxed)
            }
            if random.oneIn(20) { nap(&random) }
        }
    }

    private func retireWhileReading(_ element: UnsafeMutablePointer<Element>, _ reader: QuiescentReader?) {
        switch kind {
        case .quiescentState:
            reader?.reader.online()
            retire(element)
            reader?.reader.quiescentState()
            reader?.reader.offline()
        case .membarrier: ThreadRCU.withReadSection { _ in retire(element) }
        case .blocking: (domain as! SRCUDomain).withReadSection { _ in retire(element) }
        }
    }

    /// Ages the element by one grace period after another, then frees it.
    private func retire(_ element: UnsafeMutablePointer<Element>) {
        let address = UInt(bitPattern: element)
        domain.call { [unowned self] in
            let element = UnsafeMutablePointer<Element>(bitPattern: address)!
            if element.pointee.age.wrappingAdd(1, ordering: .relaxed).newValue < Element.lifetime {
                retire(element)
            } else {
                free(element)
            }
        }
    }
}

private final class QuiescentReader {
    let reader: RCUReader
    init(_ domain: RCUDomain) { reader = RCUReader(domain) }
}

@Suite(.serialized) struct TortureTests {
    @Test(arguments: DomainKind.allCases) func readersNeverSeeWhatAGracePeriodHasPassed(kind: DomainKind) throws {
        let seed = runSeed("torture \(kind)")
        var random = SeededGenerator(seed: seed)
        let torture = Torture(kind, seconds: stressSeconds(0.7))
        var threads: [HostThread] = []
        for _ in 0..<6 {
            let seed = random.next()
            threads.append(try HostThread(name: "reader") { torture.read(seed: seed) })
        }
        for _ in 0..<3 {
            let seed = random.next()
            threads.append(try HostThread(name: "writer") { torture.write(seed: seed) })
        }
        threads.forEach { $0.join() }
        if let last = torture.current.exchange(nil) {
            torture.domain.synchronize()
            torture.free(last)
        }
        for _ in 0..<Element.lifetime { torture.domain.barrier() }
        #expect(torture.tooOld.value == 0)
        #expect(torture.torn.value == 0)
        #expect(torture.live.value == 0)
        #expect(torture.sections.value > 0 && torture.publications.value > 0)
        let largest = torture.largestBacklog.load(ordering: .relaxed)
        #expect(largest <= 8192 + 64)
        print("torture \(kind): \(torture.sections.value) looks, \(torture.publications.value) publications")
    }
}
