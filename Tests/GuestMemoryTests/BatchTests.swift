import Addressing
import Glibc
import GuestMemory
import Host
import SystemPackage
import TestSupport
import Testing

@Suite struct BatchTests {
    let memory = GuestMemory()

    @discardableResult
    private func set(_ regions: UserMemoryRegion...) throws(Errno) -> [[UInt64]?] {
        try memory.setUserMemoryRegions(regions) { _ in }
    }

    private func error(_ regions: [UserMemoryRegion]) -> Errno? {
        do throws(Errno) { _ = try memory.setUserMemoryRegions(regions) { _ in } } catch { return error }
        return nil
    }

    private func mark(_ frames: UInt64...) {
        for frame in frames {
            memory.lookup(GuestFrameNumber(frame), addressSpace: 0)?.pointee.markDirty(frame: GuestFrameNumber(frame))
        }
    }

    private func snapshot() -> [MemorySlotDescription] {
        var slots: [MemorySlotDescription] = []
        for space in 0..<2 { memory.forEachSlot(addressSpace: space) { slots.append($0) } }
        return slots
    }

    @Test func aSplitReturnsTheBitmap() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 130, host: 0x10_0000, flags: 1))
        mark(100, 164, 229)
        let bitmaps = try set(
            UserMemoryRegion(1, frame: 0, pages: 0),
            UserMemoryRegion(1, frame: 100, pages: 60, host: 0x10_0000, flags: 1),
            UserMemoryRegion(2, frame: 161, pages: 69, host: 0x13_d000))
        #expect(bitmaps == [[1, 1, 2], nil, nil])
        #expect(memory.owner(of: 159) == 1)
        #expect(memory.owner(of: 160) == nil)
        #expect(memory.owner(of: 161) == 2)
        #expect(memory.brokenInvariant() == nil)
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [0])
    }

    @Test func everyKindOfChange() throws {
        try memory.set(UserMemoryRegion(1, frame: 0, pages: 10, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 20, pages: 10, flags: 1))
        try memory.set(UserMemoryRegion(3, frame: 40, pages: 10))
        try memory.set(UserMemoryRegion(4, frame: 60, pages: 10))
        mark(1, 22)
        // What a vCPU has that found the slot before the switch and did not yet acknowledge it.
        let found = try #require(memory.lookup(GuestFrameNumber(27), addressSpace: 0))
        var kinds: [String] = []
        func kind(_ change: MemorySlotChange) -> String {
            switch change {
            case .create(let new): "create \(new.id)"
            case .delete(let old): "delete \(old.id)"
            case .move(let old, let new): "move \(old.id) from \(old.baseFrame.value) to \(new.baseFrame.value)"
            case .flagsOnly(let old, let new): "flags of \(old.id) from \(old.flags.rawValue) to \(new.flags.rawValue)"
            }
        }
        let bitmaps = try memory.setUserMemoryRegions(
            [
                // Slots 1 and 2 change places.
                UserMemoryRegion(1, frame: 1000, pages: 10, flags: 1),
                UserMemoryRegion(2, frame: 0, pages: 10),
                UserMemoryRegion(1, frame: 20, pages: 10, flags: 1),
                UserMemoryRegion(3, frame: 40, pages: 10, flags: 1),
                UserMemoryRegion(4, frame: 60, pages: 10),
                UserMemoryRegion(4, frame: 0, pages: 0),
                UserMemoryRegion(5, frame: 60, pages: 10)
            ],
            flush: { changes in
                kinds = changes.map(kind)
                #expect(memory.owner(of: 0) == 2)
                #expect(memory.owner(of: 25) == 1)
                mark(45)
                found.pointee.markDirty(frame: GuestFrameNumber(27))
            })
        let late: UInt64 = 1 << 2 | 1 << 7
        #expect(bitmaps == [[1 << 1], [late], [0], nil, nil, nil, nil])
        #expect(
            kinds == [
                "move 1 from 0 to 1000", "move 2 from 20 to 0", "move 1 from 1000 to 20", "flags of 3 from 0 to 1",
                "delete 4", "create 5"
            ])
        #expect(memory.owner(of: 65) == 5)
        #expect(memory.owner(of: 1005) == nil)
        #expect(memory.brokenInvariant() == nil)
        #expect(try memory.getDirtyLog(slot: 3) { _ in } == [1 << 5])
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [0])
    }

    @Test func oneSwitchAndNoneForNothing() throws {
        var flushes = 0
        var generation = memory.generation()
        func isNew() -> Bool {
            defer { generation = memory.generation() }
            return memory.generation() != generation
        }
        #expect(try memory.setUserMemoryRegions([]) { _ in flushes += 1 } == [])
        #expect(!isNew())
        let region = UserMemoryRegion(1, frame: 0, pages: 1)
        #expect(try memory.setUserMemoryRegions([region, region]) { _ in flushes += 1 } == [nil, nil])
        #expect(isNew())
        #expect(try memory.setUserMemoryRegions([region]) { _ in flushes += 1 } == [nil])
        #expect(!isNew())
        // Nothing old was there.
        #expect(flushes == 0)
        // A slot that comes and goes.
        let passing = UserMemoryRegion(2, frame: 10, pages: 1, flags: 1)
        let bitmaps = try memory.setUserMemoryRegions([passing, UserMemoryRegion(2, frame: 0, pages: 0)]) { _ in }
        #expect(bitmaps == [nil, [0]])
        #expect(memory.slot(2) == nil)
        #expect(memory.brokenInvariant() == nil)
    }

    /// The requests of the table of single requests, behind others of the same batch.
    @Test(arguments: SlotTests.requests.indices)
    func errorsLeaveAllAsItWas(index: Int) throws {
        let (name, region, expected) = SlotTests.requests[index]
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 100, host: 0x20_0000, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 200, pages: 100, host: 0x40_0000))
        try memory.set(UserMemoryRegion(9, frame: 5000, pages: 100))
        mark(150)
        let before = snapshot()
        let generation = memory.generation()
        let others = [
            UserMemoryRegion(1000, frame: 6000, pages: 10, flags: 1),
            UserMemoryRegion(9, frame: 5050, pages: 100, flags: 1),
            UserMemoryRegion(9, frame: 5050, pages: 100),
            UserMemoryRegion(9, frame: 0, pages: 0)
        ]
        let isOther = region.slot >> 16 == 1
        #expect(error(others + [region]) == (isOther ? .invalidArgument : expected), "\(name)")
        #expect(memory.brokenInvariant() == nil, "\(name)")
        if expected != nil || isOther {
            #expect(snapshot() == before, "\(name)")
            #expect(memory.generation() == generation)
            #expect(try memory.getDirtyLog(slot: 1) { _ in } == [1 << 50, 0])
        } else {
            #expect(memory.slot(9) == nil)
            #expect(memory.slot(1000)?.pageCount == 10)
        }
    }

    /// A batch in which allocation number `step` fails or, if that is none, `prepare` refuses. Four slots, three bitmaps
    /// and two pages of ids are allocated.
    @Test(arguments: 0...9)
    func aFailedStepChangesNothing(step: Int) throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 200, pages: 10))
        mark(104)
        let before = snapshot()
        let generation = memory.generation()
        let regions = [
            UserMemoryRegion(1, frame: 150, pages: 10, flags: 1),
            UserMemoryRegion(1000, frame: 100, pages: 10, flags: 1),
            UserMemoryRegion(2, frame: 200, pages: 10, flags: 1),
            UserMemoryRegion(1, frame: 0, pages: 0),
            UserMemoryRegion(2000, frame: 145, pages: 10)
        ]
        var count = 0
        memory.failAllocations {
            count += 1
            return count == step + 1
        }
        var isPrepared = false
        var thrown: Errno?
        do throws(Errno) {
            _ = try memory.setUserMemoryRegions(
                regions,
                prepare: { (changes) throws(Errno) in
                    #expect(changes.count == 5)
                    isPrepared = true
                    throw .permissionDenied
                }, flush: { _ in })
        } catch { thrown = error }
        memory.failAllocations(nil)
        #expect(isPrepared == (step == 9))
        #expect(thrown == (isPrepared ? .permissionDenied : .noMemory))
        #expect(snapshot() == before)
        #expect(memory.brokenInvariant() == nil)
        #expect(memory.generation() == generation)
        #expect(try memory.getDirtyLog(slot: 1, keeping: true) { _ in } == [1 << 4])
        #expect(try memory.setUserMemoryRegions(regions) { _ in } == [[1 << 4], nil, nil, [0], nil])
        #expect(memory.brokenInvariant() == nil)
    }

    // MARK: Under load

    /// Guests write to memory that is split, joined and moved about among slots, and never miss it; what they wrote and
    /// only that is in the bitmaps.
    @Test func guestsNeverMissMemoryAndNoMarkIsLost() throws {
        let pages = 512
        let seed = runSeed("batch")
        final class Guest: Sendable {
            let written: [Counter]
            let running = Counter()
            let missed = Counter()
            init(_ count: Int) { written = (0..<count).map { _ in Counter() } }
        }
        let guest = Guest(pages)
        let memory = GuestMemory(initialGeneration: (1 << 63) - 100)
        let host: UInt64 = 1 << 30
        func region(_ slot: UInt32, _ pages: Range<Int>) -> UserMemoryRegion {
            UserMemoryRegion(
                slot, frame: UInt64(pages.lowerBound), pages: UInt64(pages.count),
                host: host + UInt64(pages.lowerBound) << 12, flags: 1)
        }
        var parts: [(slot: UInt32, pages: Range<Int>)] = [(0, 0..<pages)]
        try memory.set(region(0, 0..<pages))
        let isOver = Flag()
        guest.running.add(2)
        let threads = try (0..<2).map { number in
            try HostThread(name: "guest") {
                var random = SeededGenerator(seed: seed &+ UInt64(number))
                var cache = MemorySlotCache()
                while !isOver.isSet {
                    for _ in 0..<200 {
                        let frame = GuestFrameNumber(random.next() % UInt64(pages))
                        let isCached = random.oneIn(2)
                        memory.withReadSection {
                            let slot =
                                isCached
                                ? memory.lookup(frame, addressSpace: 0, cache: &cache)
                                : memory.lookup(frame, addressSpace: 0)
                            if let slot {
                                let address = UInt(bitPattern: slot.pointee.hostPointer(for: frame))
                                if address != UInt(host) + UInt(frame.value) << 12 { guest.missed.add(1) }
                                guest.written[Int(frame.value)].add(1)
                                slot.pointee.markDirty(frame: frame)
                            } else {
                                guest.missed.add(1)
                            }
                        }
                    }
                    usleep(100)
                }
                guest.running.add(-1)
            }
        }
        var random = SeededGenerator(seed: seed)
        var copied = [Int](repeating: 0, count: pages)
        func copy(_ bitmap: [UInt64], from start: Int) {
            for (index, word) in bitmap.enumerated() {
                for bit in 0..<64 where word & 1 << bit != 0 {
                    let page = start + index * 64 + bit
                    copied[page] = guest.written[page].value
                }
            }
        }
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(0.5) * 1e9)
        var batches = 0
        var nextSlot: UInt32 = 1
        repeat {
            // A random stretch of parts is cut anew.
            let first = Int(random.next() % UInt64(parts.count))
            let count = 1 + Int(random.next() % UInt64(min(parts.count - first, 6)))
            let old = Array(parts[first..<first + count])
            let range = old.first!.pages.lowerBound..<old.last!.pages.upperBound
            let cuts = (0..<random.next() % 5).map { _ in range.lowerBound + Int(random.next() % UInt64(range.count)) }
            let borders = Array(Set(cuts + [range.lowerBound, range.upperBound])).sorted()
            let new = zip(borders, borders.dropFirst()).map { lower, upper in
                nextSlot = (nextSlot + 1) % 30000
                return (slot: nextSlot, pages: lower..<upper)
            }
            let deletions = old.map { UserMemoryRegion($0.slot, frame: 0, pages: 0) }
            let creations = new.map { region($0.slot, $0.pages) }
            let bitmaps = try memory.setUserMemoryRegions(deletions + creations) { _ in memory.domain.synchronize() }
            for (part, bitmap) in zip(old, bitmaps) { copy(try #require(bitmap), from: part.pages.lowerBound) }
            parts.replaceSubrange(first..<first + count, with: new)
            batches += 1
            if batches % 64 == 0 { #expect(memory.brokenInvariant() == nil) }
        } while MonotonicClock.nanoseconds() < deadline
        isOver.set()
        threads.forEach { $0.join() }
        for part in parts {
            let bitmap = try memory.getDirtyLog(slot: part.slot) { _ in memory.domain.synchronize() }
            copy(bitmap, from: part.pages.lowerBound)
        }
        #expect(guest.missed.value == 0)
        let written = guest.written.map { $0.value }
        #expect(copied == written)
        #expect(memory.brokenInvariant() == nil)
        print("batch: \(batches) batches, \(written.reduce(0, +)) writes")
    }
}
