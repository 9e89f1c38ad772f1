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

private final class Torture: @unchecked Sendable {
    let domain = RCUDomain()
    let current = RCUPointer<Element>(nil)
    let writersLock = FutexLock()
    let live = Counter()
    let tooOld = Counter()
    let torn = Counter()
    let sections = Counter()
    let publications = Counter()
    let deadline: UInt64

    init(seconds: Double) { deadline = MonotonicClock.nanoseconds() + UInt64(seconds * 1e9) }

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

    /// Comes and goes as a reader until the time is over.
    func read(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        while !isOver {
            let reader = RCUReader(domain)
            for _ in 0..<Int.random(in: 1...20, using: &random) where !isOver {
                reader.online()
                for _ in 0..<Int.random(in: 1...200, using: &random) {
                    readOnce(reader, &random)
                    if !random.oneIn(4) { reader.quiescentState() }
                    if random.oneIn(500) { reader.synchronize() }
                    if random.oneIn(300) { reader.whileOffline { nap(&random) } }
                }
                reader.offline()
                if random.oneIn(4) { nap(&random) }
            }
        }
    }

    private func readOnce(_ reader: borrowing RCUReader, _ random: inout SeededGenerator) {
        let looks = random.oneIn(50) ? 2000 : Int.random(in: 1...20, using: &random)
        reader.withReadSection {
            guard let element = current.load() else { return }
            for _ in 0..<looks {
                let payload = element.pointee.payload
                if payload.0 != ~payload.1 { torn.add(1) }
            }
            if element.pointee.age.load(ordering: .relaxed) >= 2 { tooOld.add(1) }
        }
        if random.oneIn(16) { sched_yield() }
        sections.add(1)
    }

    private func nap(_ random: inout SeededGenerator) {
        usleep(UInt32.random(in: 1...300, using: &random))
    }

    // MARK: Writers

    func write(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let reader = RCUReader(domain)
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
                    // Writers may be on-line readers.
                    reader.online()
                    retire(old)
                    reader.quiescentState()
                    reader.offline()
                default:
                    retire(old)
                }
            }
            if random.oneIn(1000) { domain.barrier() }
            domain.throttle()
            if random.oneIn(20) { nap(&random) }
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

@Suite(.serialized) struct TortureTests {
    @Test func readersNeverSeeWhatAGracePeriodHasPassed() throws {
        let seed = runSeed("torture")
        var random = SeededGenerator(seed: seed)
        let torture = Torture(seconds: 3)
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
        for _ in 0..<4 { torture.domain.barrier() }
        #expect(torture.tooOld.value == 0)
        #expect(torture.torn.value == 0)
        #expect(torture.live.value == 0)
        #expect(torture.sections.value > 0 && torture.publications.value > 0)
        print("torture: \(torture.sections.value) sections, \(torture.publications.value) publications")
    }
}
