import Addressing
import Glibc
import GuestMemory
import Host
import SystemPackage
import TestSupport
import Testing

/// What the tests' slots have in common, so that readers recognise a slot that is not whole.
private enum Layout {
    static let frameCount: UInt64 = 4096
    /// A slot that changes its flags only: readers find it always.
    static let permanent = region(32763, frame: frameCount, pages: 64)
    /// A slot that only batches move, between two places: in each set it is in one of them.
    static let wanderer = region(32762, frame: frameCount + 100, pages: 50)

    /// Follows from the slot's number; many slots share host memory.
    static func hostAddress(_ slot: UInt32) -> UInt64 {
        UInt64(slot % 7 + 1) << 20 + UInt64(slot % 16) << 12
    }

    static func region(_ slot: UInt32, frame: UInt64, pages: UInt64, flags: UInt32 = 0) -> UserMemoryRegion {
        UserMemoryRegion(slot, frame: frame, pages: pages, host: hostAddress(slot), flags: flags)
    }
}

extension UnsafePointer<MemorySlot> {
    /// The slot as the request that would make it.
    fileprivate var region: UserMemoryRegion { pointee.description.region }
}

extension MemorySlotDescription {
    fileprivate var region: UserMemoryRegion {
        UserMemoryRegion(
            slot: UInt32(addressSpace) << 16 | UInt32(id), flags: flags.rawValue,
            guestPhysicalAddress: baseFrame.address.value, memorySize: pageCount << 12,
            userspaceAddress: UInt64(hostAddress))
    }
}

@Suite struct StressTests {
    /// Seeded changes against the model, while readers look slots up.
    ///
    /// A million steps take less than a minute: `MARTLET_STRESS_SECONDS=50`.
    @Test func randomChangesMatchTheModel() throws {
        let seed = runSeed("slots")
        let memory = GuestMemory(initialGeneration: (1 << 63) - 1000)
        let writer = try StressWriter(memory, seed: seed)

        let isOver = Flag()
        let wrong = Counter()
        let lookups = Counter()
        let readers = try (0..<2).map { number in
            try HostThread(name: "reader") {
                var reader = StressReader(memory, seed: seed &+ UInt64(number) &+ 1)
                reader.run(until: isOver, wrong, lookups)
            }
        }
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        repeat { writer.step() } while writer.failure == nil && MonotonicClock.nanoseconds() < deadline
        isOver.set()
        readers.forEach { $0.join() }
        #expect(writer.failure == nil)
        #expect(wrong.value == 0)
        #expect(lookups.value > 0)
        let outcomes = writer.outcomes.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }
        print(
            "slots: \(writer.stepCount) steps, \(lookups.value) look-ups; by errno \(outcomes.joined(separator: ", "))")
    }
}

/// Makes requests, and compares what comes of them with the model.
private final class StressWriter {
    let memory: GuestMemory
    var random: SeededGenerator
    var model = Model()
    private(set) var stepCount = 0
    private(set) var outcomes: [String: Int] = [:]
    /// The first difference.
    private(set) var failure: String?

    init(_ memory: GuestMemory, seed: UInt64) throws {
        self.memory = memory
        random = SeededGenerator(seed: seed)
        for region in [Layout.permanent, Layout.wanderer] {
            try memory.set(region)
            model.apply(region)
        }
    }

    private func check(_ isRight: Bool, _ message: @autoclosure () -> String) {
        if !isRight && failure == nil { failure = "step \(stepCount): \(message())" }
    }

    func step() {
        stepCount += 1
        // Rarely, an allocation fails or the change is refused at the last moment.
        var allocationsLeft = random.oneIn(16) ? Int(random.next() % 4) : Int.max
        var isExhausted = false
        memory.failAllocations {
            allocationsLeft -= 1
            isExhausted = isExhausted || allocationsLeft < 0
            return allocationsLeft < 0
        }
        let refusal: Errno? = random.oneIn(12) ? .resourceTemporarilyUnavailable : nil
        let name: String
        let generations = (memory.generation(), memory.generation(addressSpace: 1))
        let before = model
        let thrown: Errno?
        if random.oneIn(5) {
            let batch = makeBatch()
            let (expected, after) = model.outcome(of: batch)
            var isAsked = false
            thrown = apply(batch, refusal, &isAsked)
            let actual = isExhausted ? .noMemory : isAsked ? refusal : expected
            check(thrown == actual, "\(batch): \(String(describing: thrown)), not \(String(describing: actual))")
            if thrown == nil { model = after }
            name = "batch"
        } else {
            let region = makeRequest()
            let expected = model.outcome(of: region)
            var isAsked = false
            thrown = apply(region, refusal, &isAsked)
            let actual = isExhausted ? .noMemory : isAsked ? refusal : expected
            check(thrown == actual, "\(region): \(String(describing: thrown)), not \(String(describing: actual))")
            if thrown == nil { model.apply(region) }
            name = "single"
        }
        memory.failAllocations(nil)
        outcomes["\(name) \(thrown?.rawValue ?? 0)", default: 0] += 1
        check(
            before.slots(addressSpace: 0) == model.slots(addressSpace: 0) || generations.0 != memory.generation(),
            "the generation is the same")
        check(
            before.slots(addressSpace: 1) == model.slots(addressSpace: 1)
                || generations.1 != memory.generation(addressSpace: 1),
            "the other generation is the same")
        compare()
    }

    private func apply(_ region: UserMemoryRegion, _ refusal: Errno?, _ isAsked: inout Bool) -> Errno? {
        do throws(Errno) {
            try memory.setUserMemoryRegion(
                region,
                prepare: { (_) throws(Errno) in
                    isAsked = refusal != nil
                    if let refusal { throw refusal }
                },
                flush: { change in
                    // An INVALID slot is published for deletions and moves: nobody finds it.
                    if case .flagsOnly = change { return }
                    let old = change.old!
                    check(memory.owner(of: old.baseFrame.value, addressSpace: Int(old.addressSpace)) == nil, "found")
                })
        } catch { return error }
        return nil
    }

    private func apply(_ batch: [UserMemoryRegion], _ refusal: Errno?, _ isAsked: inout Bool) -> Errno? {
        do throws(Errno) {
            let bitmaps = try memory.setUserMemoryRegions(
                batch,
                prepare: { (_) throws(Errno) in
                    isAsked = refusal != nil
                    if let refusal { throw refusal }
                }, flush: { _ in })
            var now = model
            for (region, bitmap) in zip(batch, bitmaps) {
                let old = now[region.slot]
                let isLogged = old != nil && old != region && old!.flags & 1 != 0
                let count = isLogged ? Int((old!.memorySize >> 12 + 63) / 64) : nil
                check(bitmap?.count == count, "the bitmap has \(bitmap?.count ?? 0) words, not \(count ?? 0)")
                now.apply(region)
            }
        } catch { return error }
        return nil
    }

    /// Compares all slots, and some look-ups, with the model.
    private func compare() {
        if let broken = memory.brokenInvariant() { check(false, broken) }
        for space in 0..<2 {
            var slots: [UserMemoryRegion] = []
            memory.forEachSlot(addressSpace: space) { slots.append($0.region) }
            check(slots == model.slots(addressSpace: space), "the slots are \(slots)")
        }
        for _ in 0..<8 {
            let frame = random.oneIn(8) ? 0 : random.next() % (Layout.frameCount + 80)
            let space = Int(random.next() % 2)
            let id = UInt16(random.next() % 24) * 3
            let start = random.next() % (9 << 20)
            let end = start + 1 + random.next() % (random.oneIn(2) ? 0x1000 : 0x10_0000)
            memory.withReadSection {
                let found = memory.lookup(GuestFrameNumber(frame), addressSpace: space)?.region
                check(found == model.owner(of: frame, addressSpace: space), "frame \(frame) of \(space)")
                let byID = memory.lookup(id: id, addressSpace: space)?.region
                check(byID == model[UInt32(space) << 16 | UInt32(id)], "slot \(id) of \(space)")
                var slots: [UserMemoryRegion] = []
                memory.forEachSlot(overlapping: UInt(start)..<UInt(end), addressSpace: space) {
                    slots.append($0.region)
                }
                check(
                    slots == model.slots(overlapping: start..<end, addressSpace: space), "host memory \(start)..<\(end)"
                )
            }
        }
    }

    // MARK: Requests

    private func makeBatch() -> [UserMemoryRegion] {
        let space: UInt32 = random.oneIn(3) ? 1 : 0
        // Requests that would be possible one after the other, if none is malformed.
        var future = model
        var batch: [UserMemoryRegion] = []
        for _ in 0..<random.next() % 6 {
            let region = makeRequest(in: random.oneIn(40) ? nil : space, of: future)
            if future.outcome(of: region) == nil { future.apply(region) } else if !random.oneIn(10) { continue }
            batch.append(region)
        }
        if space == 0, random.oneIn(2) {
            var region = Layout.wanderer
            // The two places overlap.
            if model[region.slot] == region { region.guestPhysicalAddress += 20 << 12 }
            batch.append(region)
        }
        return batch
    }

    private func makeRequest() -> UserMemoryRegion { makeRequest(in: nil, of: model) }

    /// A request that is often possible.
    private func makeRequest(in space: UInt32?, of model: Model) -> UserMemoryRegion {
        if space != 1, random.oneIn(10) {
            var region = model[Layout.permanent.slot]!
            region.flags ^= 1
            return region
        }
        let slot = UInt32(random.next() % 24) * 3 | (space ?? UInt32(random.next() % 2)) << 16
        let frame = random.oneIn(8) ? 0 : random.next() % Layout.frameCount
        let pages = min(1 + random.next() % 200, Layout.frameCount - frame)
        var region = Layout.region(slot, frame: frame, pages: pages, flags: UInt32(random.next() % 4))
        if let old = model[slot], !random.oneIn(10) {
            region = old
            switch random.next() % 4 {
            case 0: region.memorySize = 0
            case 1:
                let last = Layout.frameCount - region.memorySize >> 12
                // Often so near that it overlaps its own old place.
                let near = region.guestPhysicalAddress >> 12 + random.next() % 8
                region.guestPhysicalAddress = min(random.oneIn(2) ? near : frame, last) << 12
            case 2: region.flags ^= 1
            default:
                region.flags ^= UInt32(random.next() % 4)
                if random.oneIn(4) { region.memorySize += 4096 }
            }
        }
        if random.oneIn(12) { spoil(&region) }
        return region
    }

    /// Makes a request one that should be refused; sometimes it is still possible, but out of the readers' way.
    private func spoil(_ region: inout UserMemoryRegion) {
        switch random.next() % 12 {
        case 0: region.guestPhysicalAddress += 1 + random.next() % 4095
        case 1: region.memorySize += 1 + random.next() % 4095
        case 2: region.userspaceAddress += 1 + random.next() % 4095
        case 3: region.guestPhysicalAddress = 0 &- 0x1000
        case 4: region.guestPhysicalAddress = 1 << 52 - region.memorySize + 0x1000
        case 5: region.guestPhysicalAddress = 1 << 52
        case 6: region.userspaceAddress = 0 &- 0x1000
        case 7: region.userspaceAddress = 0x7fff_ffff_f000 - region.memorySize + 0x1000
        case 8: region.memorySize = 1 << 43
        case 9: region.memorySize = 0 &- 0x1000
        case 10: region.flags |= 4 << UInt32(random.next() % 30)
        default:
            region.slot = random.oneIn(2) ? 0x2_0000 | region.slot & 0xffff : region.slot & 0xffff_0000 | 32764
        }
    }
}

/// Looks slots up all the time: each set that is found is whole.
private struct StressReader {
    let memory: GuestMemory
    var random: SeededGenerator
    var cache = MemorySlotCache()
    /// What was behind a frame while a generation lasted.
    var seen: (frame: GuestFrameNumber, generation: MemorySlotGeneration, slot: UserMemoryRegion?)?

    init(_ memory: GuestMemory, seed: UInt64) {
        self.memory = memory
        random = SeededGenerator(seed: seed)
    }

    mutating func run(until isOver: Flag, _ wrong: Counter, _ lookups: Counter) {
        while !isOver.isSet {
            for _ in 0..<Int(1 + random.next() % 20) {
                let isRight: Bool
                switch random.next() % 16 {
                case 0: isRight = memory.withReadSection { isSetWhole() }
                case 1, 2: isRight = memory.withReadSection { isGenerationRight() }
                default: isRight = memory.withReadSection { isFrameRight() }
                }
                if !isRight { wrong.add(1) }
                lookups.add(1)
            }
            // Leaves the processor to the writer, which has to wait for readers that are put aside.
            usleep(50)
        }
    }

    private mutating func isFrameRight() -> Bool {
        let isPermanent = random.oneIn(4)
        let value = isPermanent ? Layout.frameCount + random.next() % 64 : random.next() % Layout.frameCount
        let space = isPermanent ? 0 : Int(random.next() % 2)
        let frame = GuestFrameNumber(value)
        let slot =
            random.oneIn(2)
            ? memory.lookup(frame, addressSpace: space, cache: &cache) : memory.lookup(frame, addressSpace: space)
        guard let slot else { return !isPermanent }
        slot.pointee.markDirty(frame: frame)
        return slot.pointee.contains(frame) && Int(slot.pointee.addressSpace) == space && isWhole(slot)
            && !slot.pointee.flags.contains(.invalid)
    }

    private func isWhole(_ slot: UnsafePointer<MemorySlot>) -> Bool {
        slot.region.userspaceAddress == Layout.hostAddress(slot.region.slot)
    }

    /// All slots of one set: ordered, whole, disjoint, with those that are always there.
    private func isSetWhole() -> Bool {
        var slots: [UserMemoryRegion] = []
        var areWhole = true
        memory.forEachSlot(overlapping: 0..<UInt.max, addressSpace: 0) { slot in
            areWhole = areWhole && isWhole(slot)
            slots.append(slot.region)
        }
        let byFrame = slots.sorted { $0.guestPhysicalAddress < $1.guestPhysicalAddress }
        return areWhole && slots.filter { $0.slot == Layout.permanent.slot }.count == 1
            && slots.filter { $0.slot == Layout.wanderer.slot }.count == 1
            && zip(slots, slots.dropFirst()).allSatisfy {
                ($0.userspaceAddress, $0.slot) < ($1.userspaceAddress, $1.slot)
            }
            && zip(byFrame, byFrame.dropFirst()).allSatisfy {
                $0.guestPhysicalAddress + $0.memorySize <= $1.guestPhysicalAddress
            }
    }

    /// What was found under a generation is the same as long as the generation is.
    private mutating func isGenerationRight() -> Bool {
        let frame = seen?.frame ?? GuestFrameNumber(random.next() % Layout.frameCount)
        let generation = memory.generation()
        let slot = memory.lookup(frame, addressSpace: 0)?.region
        let isSteady = !generation.isUpdateInProgress && memory.generation() == generation
        guard isSteady, let old = seen, old.generation == generation else {
            seen = isSteady ? (frame, generation, slot) : nil
            return true
        }
        if random.oneIn(8) { seen = nil }
        return old.slot == slot
    }
}
