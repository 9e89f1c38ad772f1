import AddressSpace
import Addressing
import Host
import KVMInterface
import SystemPackage
import TestSupport
import Testing

/// Random memory maps above a model of KVM's slots, which refuses now and then.
@Suite struct SlotListenerStressTests {
    @Test(arguments: [0, 12]) func slotsFollowTheView(batchLimit: Int) throws {
        var world = try World(seed: runSeed("listener, batches of \(batchLimit)"), batchLimit: batchLimit)
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        repeat { try world.step() } while world.failure == nil && MonotonicClock.nanoseconds() < deadline
        #expect(world.failure == nil)
        try world.finish()
        #expect(world.failure == nil)
        print("listener: \(world.stepCount) transactions, \(world.refusalCount) refused")
    }
}

private struct World {
    private let fixture: SlotListenerTests.Fixture
    private var random: SeededGenerator
    private var regions: [MemoryRegion] = []
    /// Pages that were written through the guest's eyes and not fetched yet, by region and page.
    private var written: [ObjectIdentifier: Set<Int>] = [:]
    /// The accelerator has refused to go back: it need not agree with the view before the next success.
    private var isAstray = false
    private(set) var stepCount = 0
    private(set) var refusalCount = 0
    private(set) var failure: String?

    init(seed: UInt64, batchLimit: Int) throws {
        random = SeededGenerator(seed: seed)
        fixture = try SlotListenerTests.Fixture(slotLimit: 40, batchLimit: batchLimit)
        for index in 0..<6 {
            let region = fixture.ram("\(index)", host: UInt(index + 1) << 24, 0x10000)
            try fixture.change {
                try fixture.root.add(region, at: UInt64(index) << 14, priority: Int32(index % 3))
                try region.setDirtyLogging(index % 2 == 0)
            }
            regions.append(region)
        }
    }

    private mutating func number(_ bound: UInt64) -> UInt64 { random.next() % bound }

    private mutating func check(_ isRight: Bool, _ message: @autoclosure () -> String) {
        if !isRight && failure == nil { failure = "step \(stepCount): \(message())" }
    }

    mutating func step() throws {
        stepCount += 1
        write()
        let target = fixture.target
        let before = target.text
        let calls = target.callCount
        // One call is refused, or one and all that follow.
        if random.oneIn(5) {
            let position = Int(number(6))
            let count = random.oneIn(4) ? 100 : 1
            target.errors = [Errno?](repeating: nil, count: position) + [Errno?](repeating: .noMemory, count: count)
        }
        let goesAstray = target.errors.count > 50
        let count = number(3) + 1
        let thrown = fixture.lock.withLock {
            errno { () throws(Errno) in
                try fixture.topology.transaction { () throws(Errno) in for _ in 0..<count { try change() } }
            }
        }
        target.errors = []
        if let thrown {
            refusalCount += 1
            check(thrown == .noMemory, "a transaction threw \(thrown)")
            if goesAstray { isAstray = true }
            if !isAstray { check(target.text == before, "a refused transaction changed slots") }
        }
        // A commit that has something to do puts right what an earlier one could not.
        if thrown == nil, target.callCount > calls { isAstray = false }
        compare()
        if random.oneIn(4) { try fetch() }
    }

    private mutating func change() throws(Errno) {
        let region = regions[Int(number(6))]
        switch number(6) {
        case 0: try region.setEnabled(!region.isEnabled)
        case 1: try region.setReadOnly(!region.isReadOnly)
        // Sometimes half a page.
        case 2: try region.resize(to: UInt128(number(16) + 1) << (random.oneIn(8) ? 11 : 12))
        case 3: try region.move(to: number(32) << (random.oneIn(8) ? 11 : 12))
        case 4: try region.setDirtyLogging(!region.logsDirtyPages)
        default: break
        }
    }

    /// Guests write somewhere; the pages that must be reported are those of the view.
    private mutating func write() {
        let view = fixture.space.view
        for _ in 0..<8 {
            let page = number(64) << 12
            guard fixture.target.write(page: page), let index = view.index(containing: page) else { continue }
            let range = view.ranges[index]
            guard range.logsDirtyPages, !isAstray else { continue }
            let offset = range.offset + (page - range.addresses.start)
            written[ObjectIdentifier(range.region), default: []].insert(Int(offset / 4096))
        }
    }

    private mutating func fetch() throws {
        if isAstray { return }
        try fixture.listener.synchronizeDirtyPages()
        for region in regions {
            let bitmap = region.takeDirtyPages()
            let missing = (written.removeValue(forKey: ObjectIdentifier(region)) ?? []).filter {
                $0 / 64 >= bitmap.count || bitmap[$0 / 64] >> UInt64($0 % 64) & 1 == 0
            }
            check(missing.isEmpty, "region \(region.name) lost written pages \(missing.sorted())")
        }
    }

    /// Each page of memory in the view has a slot that leads to it, and nothing else has one.
    private mutating func compare() {
        var expected: Set<String> = []
        for range in fixture.space.view.ranges {
            guard let host = range.host, let pages = range.addresses.wholePages else { continue }
            let distance = pages.start - range.addresses.start
            guard (UInt64(host.value) + distance) % 4096 == 0 else { continue }
            let flags = (range.logsDirtyPages ? 1 : 0) | (range.isReadOnly ? 2 : 0)
            func hexadecimal(_ value: UInt64) -> String { String(value, radix: 16) }
            expected.insert(
                "\(hexadecimal(pages.start))+\(hexadecimal(UInt64(pages.byteCount))) "
                    + "\(hexadecimal(UInt64(host.value) + distance)) \(flags)")
        }
        let found = Set(fixture.target.text)
        if isAstray { return }
        check(found == expected, "slots are \(found.sorted()), not \(expected.sorted())")
    }

    /// Everything goes, strays too.
    mutating func finish() throws {
        try fixture.change { try fixture.space.remove(fixture.listener) }
        let left = fixture.target.text
        check(left.isEmpty, "slots are left: \(left)")
    }
}
