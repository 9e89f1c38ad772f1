import AddressSpace
import Addressing
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

/// What one address shows, found by following the regions from the root.
private func resolve(
    _ region: MemoryRegion, _ position: Int128, isReadOnly: Bool = false
) -> (region: MemoryRegion, offset: UInt64, isReadOnly: Bool)? {
    guard region.isEnabled, position >= 0, position < Int128(region.byteCount) else { return nil }
    let isReadOnly = isReadOnly || region.isReadOnly
    if case .alias(let target, let offset) = region.content {
        return resolve(target, position + Int128(offset), isReadOnly: isReadOnly)
    }
    for subregion in region.subregions {
        if let seen = resolve(subregion, position - Int128(subregion.offset), isReadOnly: isReadOnly) { return seen }
    }
    if case .container = region.content { return nil }
    return (region, UInt64(position), isReadOnly)
}

@Suite(.serialized) struct StressTests {
    /// Random regions, changed in random transactions of which some are refused: the view is what following the regions
    /// gives, and listeners know it.
    @Test func randomRegionsMatchTheModel() throws {
        var world = try World(seed: runSeed("regions"))
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        repeat { world.step() } while world.failure == nil && MonotonicClock.nanoseconds() < deadline
        #expect(world.failure == nil)
        #expect(world.listeners.allSatisfy { $0.fault == nil })
        print("regions: \(world.stepCount) transactions, \(world.refusalCount) refused")
    }

    /// Memory that is always shown, in whatever pieces, is always found; memory that has left may be unmapped at once.
    @Test func readersSeeWholeViews() throws {
        let seed = runSeed("views")
        let topology = MemoryTopology()
        let root = topology.makeContainer("root", byteCount: 1 << 64)
        let permanent = Pages(8)
        permanent.base.initializeMemory(as: UInt8.self, repeating: 0x55, count: permanent.byteCount)
        let ram = topology.makeRAM("ram", host: permanent.host, byteCount: 0x8000)
        try root.add(ram, at: 0)
        let space = AddressSpace("space", root: root)
        let isOver = Flag()
        let wrong = Counter()
        let reads = Counter()
        let readers = try (0..<2).map { number in
            try HostThread(name: "reader") {
                var random = SeededGenerator(seed: seed &+ UInt64(number) &+ 1)
                while !isOver.isSet {
                    let address = random.next() % 0x7FF8
                    if space.read(at: address, byteCount: 8) != 0x5555_5555_5555_5555 { wrong.add(1) }
                    // What comes and goes reads as 0xAA or as nothing.
                    let value = space.read(at: 0x10_0000 + random.next() % 0x1000, byteCount: 1)
                    if value != 0xAA && value != 0xFF { wrong.add(1) }
                    space.write(at: 0x10_0000 + random.next() % 0x1000, byteCount: 1, value: 0xAA)
                    reads.add(1)
                }
            }
        }
        var random = SeededGenerator(seed: seed)
        var changes = 0
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        while MonotonicClock.nanoseconds() < deadline {
            changes += 1
            let window = topology.makeAlias(
                "window", of: ram, offset: (random.next() % 8) << 12, byteCount: 0x1000)
            try window.setReadOnly(random.oneIn(2))
            guard case .alias(_, let offset) = window.content else { continue }
            try root.add(window, at: offset, priority: 1)
            let pages = Pages(1)
            pages.base.initializeMemory(as: UInt8.self, repeating: 0xAA, count: pages.byteCount)
            let guest = topology.makeRAM("guest", host: pages.host, byteCount: 0x1000)
            try root.add(guest, at: 0x10_0000)
            try topology.transaction { () throws(Errno) in
                try root.remove(window)
                try root.remove(guest)
            }
            pages.unmap()
        }
        isOver.set()
        readers.forEach { $0.join() }
        #expect(wrong.value == 0 && reads.value > 0)
        print("views: \(changes) changes, \(reads.value) rounds of reading")
    }
}

/// Regions at random, inside a small part of the address space or at its end.
private struct World {
    let topology = MemoryTopology()
    let root: MemoryRegion
    let spaces: [AddressSpace]
    let listeners = [RecordingListener(), RecordingListener(), RecordingListener()]
    var random: SeededGenerator
    var regions: [MemoryRegion] = []
    private(set) var stepCount = 0
    private(set) var refusalCount = 0
    private(set) var failure: String?

    init(seed: UInt64) throws {
        random = SeededGenerator(seed: seed)
        root = topology.makeContainer("root", byteCount: 1 << 64)
        let window = topology.makeAlias("view", of: root, offset: 0x2800, byteCount: 1 << 64 - 0x2800)
        spaces = [AddressSpace("all", root: root), AddressSpace("part", root: window)]
        try spaces[0].add(listeners[0])
        try spaces[0].add(listeners[1])
        try spaces[1].add(listeners[2])
    }

    private mutating func number(_ bound: UInt64) -> UInt64 { random.next() % bound }

    /// Multiples of 0x800 below 0x10000, in one of three places.
    private mutating func offset() -> UInt64 {
        let distance = number(32) << 11
        return random.oneIn(8) ? 0 &- 0x800 &- distance : distance
    }

    private mutating func size() -> UInt128 { random.oneIn(16) ? 1 << 64 : UInt128(number(16) + 1) << 11 }

    private mutating func makeRegion() -> MemoryRegion {
        let name = "\(stepCount)"
        let byteCount = size()
        switch number(5) {
        case 0: return topology.makeContainer(name, byteCount: byteCount)
        case 1: return topology.makeDevice(name, Probe(), byteCount: byteCount)
        case 2 where !regions.isEmpty:
            let target = regions[Int(number(UInt64(regions.count)))]
            return topology.makeAlias(name, of: target, offset: number(16) << 11, byteCount: byteCount)
        case 3: return topology.makeROM(name, host: HostVirtualAddress(0x1000), byteCount: 0x4000)
        default: return topology.makeRAM(name, host: HostVirtualAddress(0x1000), byteCount: 0x8000)
        }
    }

    /// One change; errors are those that the model expects to be possible.
    private mutating func change() throws(Errno) {
        if regions.count < 12, random.oneIn(3) {
            let region = makeRegion()
            regions.append(region)
            try root.add(region, at: offset(), priority: Int32(number(3)))
            return
        }
        guard !regions.isEmpty else { return }
        let place = Int(number(UInt64(regions.count)))
        let region = regions[place]
        switch number(8) {
        case 0: try region.setEnabled(!region.isEnabled)
        case 1: try region.setReadOnly(!region.isReadOnly)
        case 2: try region.resize(to: min(size(), region.capacity))
        case 3: try region.move(to: offset())
        case 4 where region.host != nil: try region.setDirtyLogging(!region.logsDirtyPages)
        case 5:
            guard let container = region.container else { return }
            try container.remove(region)
        case 6 where region.container == nil:
            let container = random.oneIn(2) ? root : regions[Int(number(UInt64(regions.count)))]
            do throws(Errno) {
                try container.add(region, at: offset(), priority: Int32(number(3)))
            } catch {
                guard error == .tooManySymbolicLinkLevels || error == .invalidArgument else { throw error }
            }
        case 7 where regions.count > 8:
            guard let container = region.container else { return }
            try container.remove(region)
            regions.remove(at: place)
        default: break
        }
    }

    mutating func step() {
        stepCount += 1
        let before = spaces.map(\.text)
        let settings = settings
        let oldRegions = regions
        let refuses = random.oneIn(6)
        let refusing = Int(number(3))
        if refuses { listeners[refusing].refusals = [.noMemory] }
        let count = number(4) + 1
        var thrown: Errno?
        topology.begin()
        for _ in 0..<count where thrown == nil {
            do throws(Errno) { try change() } catch { thrown = error }
        }
        if let thrown { check(false, "a change threw \(thrown)") }
        do throws(Errno) { try topology.commit() } catch { thrown = error }
        if let thrown {
            refusalCount += 1
            check(refuses && thrown == .noMemory, "the commit threw \(thrown)")
            check(spaces.map(\.text) == before, "a refused transaction changed a view")
            regions = oldRegions
            let differences = zip(self.settings, settings).filter { $0 != $1 }
            check(differences.isEmpty, "a refused transaction changed a region: \(differences)")
        }
        listeners[refusing].refusals = []
        for space in spaces { compare(space) }
        check(listeners[0].agrees(with: spaces[0].view), "the first listener differs")
        check(listeners[1].agrees(with: spaces[0].view), "the second listener differs")
        check(listeners[2].agrees(with: spaces[1].view), "the third listener differs")
    }

    /// What can be set of each region.
    private var settings: [String] {
        ([root] + regions).map {
            "\($0.name) \($0.offset) \($0.priority) \($0.byteCount) \($0.isEnabled) \($0.isReadOnly) "
                + "\($0.logsDirtyPages) \($0.container?.name ?? "-") \($0.subregions.map(\.name))"
        }
    }

    /// Each edge of a range, and the addresses around it.
    private mutating func compare(_ space: AddressSpace) {
        let view = space.view
        var addresses: Set<UInt64> = [0, .max]
        for unit in 0..<UInt64(80) { addresses.formUnion([unit << 11, 0 &- (unit << 11) &- 1]) }
        for range in view.ranges {
            for address in [range.addresses.start, range.addresses.last] {
                addresses.formUnion([address &- 1, address, address &+ 1])
            }
        }
        for address in addresses {
            let expected = resolve(space.root, Int128(address))
            let found = view.index(containing: address).map { view.ranges[$0] }
            guard let expected, let found else {
                check((expected == nil) == (found == nil), "\(space.name) at \(address): one has nothing")
                continue
            }
            check(
                found.region === expected.region && found.isReadOnly == expected.isReadOnly
                    && found.offset + (address - found.addresses.start) == expected.offset
                    && found.logsDirtyPages == expected.region.logsDirtyPages,
                "\(space.name) at \(address): \(found.text), not \(expected.region.name)+\(expected.offset)")
        }
        for (range, next) in zip(view.ranges, view.ranges.dropFirst()) {
            check(range.addresses.last < next.addresses.start, "\(space.name) is not in order")
            check(
                !(range.region === next.region && range.addresses.last + 1 == next.addresses.start
                    && range.offset + UInt64(range.addresses.byteCount) == next.offset
                    && range.isReadOnly == next.isReadOnly && range.logsDirtyPages == next.logsDirtyPages),
                "\(space.name) has two ranges that are one")
        }
    }

    private mutating func check(_ isRight: Bool, _ message: @autoclosure () -> String) {
        if !isRight && failure == nil { failure = "transaction \(stepCount): \(message())" }
    }
}
