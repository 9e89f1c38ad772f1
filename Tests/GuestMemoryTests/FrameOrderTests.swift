import Addressing
import Glibc
import GuestMemory
import Host
import SystemPackage
import TestSupport
import Testing

/// The order by guest frame with many slots: its nodes split and merge.
@Suite struct FrameOrderTests {
    let memory = GuestMemory()

    // MARK: All slots

    enum Order: CaseIterable {
        case ascending, descending, random

        func indices(_ random: inout SeededGenerator) -> [Int] {
            let indices = 0..<GuestMemory.userSlotCount
            return switch self {
            case .ascending: Array(indices)
            case .descending: indices.reversed()
            case .random: indices.shuffled(using: &random)
            }
        }
    }

    /// Each slot has seven frames of eight; the first starts at frame 0.
    private func region(_ index: Int) -> UserMemoryRegion {
        UserMemoryRegion(UInt32(index), frame: UInt64(index) * 8, pages: 7)
    }

    private func deletion(_ slot: UInt32) -> UserMemoryRegion { UserMemoryRegion(slot, frame: 0, pages: 0) }

    @Test(arguments: Order.allCases, Order.allCases)
    func allSlotsComeAndGo(creation: Order, deletion order: Order) throws {
        var random = SeededGenerator(seed: runSeed("all slots, \(creation), \(order)"))
        let count = GuestMemory.userSlotCount
        for index in creation.indices(&random) { try memory.set(region(index)) }
        #expect(memory.brokenInvariant() == nil)
        let shape = memory.frameOrderShape()
        if creation == .ascending {
            // Full leaves, one behind the other.
            #expect(shape.height == 3)
            #expect(shape.nodeCount == (count + 31) / 32 + 32 + 1)
        }
        #expect(shape.height <= 4)
        #expect(shape.nodeCount <= count / 14)
        for index in 0..<count {
            let frame = UInt64(index) * 8 + random.next() % 7
            if memory.owner(of: frame) != UInt16(index) { Issue.record("frame \(frame)") }
            if memory.owner(of: UInt64(index) * 8 + 7) != nil { Issue.record("behind slot \(index)") }
        }
        var left = count
        for index in order.indices(&random) {
            try memory.set(deletion(UInt32(index)))
            left -= 1
            if memory.owner(of: UInt64(index) * 8) != nil { Issue.record("slot \(index) is left") }
            guard left % 4096 == 0 || left == 1 else { continue }
            #expect(memory.brokenInvariant() == nil)
            var slots = 0
            memory.forEachSlot { _ in slots += 1 }
            #expect(slots == left)
            #expect(memory.frameOrderShape().nodeCount <= left / 6 + 4)
        }
        #expect(memory.brokenInvariant() == nil)
        #expect(memory.frameOrderShape() == (0, 0))
    }

    @Test func theFirstAndTheLastFrame() throws {
        let end = GuestMemory.frameCount
        for index in 0..<100 {
            try memory.set(UserMemoryRegion(UInt32(index), frame: UInt64(index) * 2, pages: 1))
            try memory.set(UserMemoryRegion(UInt32(1000 + index), frame: end - 1 - UInt64(index) * 2, pages: 1))
        }
        #expect(memory.brokenInvariant() == nil)
        #expect(memory.owner(of: 0) == 0)
        #expect(memory.owner(of: 1) == nil)
        #expect(memory.owner(of: end - 1) == 1000)
        for frame in [end - 2, end, end + 1, UInt64(Int64.max) - 1, UInt64(Int64.max), 1 << 63, .max] {
            #expect(memory.owner(of: frame) == nil, "frame \(frame)")
        }
        #expect(memory.error(UserMemoryRegion(500, frame: 0, pages: 1)) == .fileExists)
        #expect(memory.error(UserMemoryRegion(500, frame: end - 2, pages: 2)) == .fileExists)
        // The first slot goes, and another is the first.
        try memory.set(deletion(0))
        #expect(memory.owner(of: 0) == nil)
        #expect(memory.owner(of: 2) == 1)
        #expect(memory.brokenInvariant() == nil)
        try memory.set(UserMemoryRegion(500, frame: 0, pages: 2))
        #expect(memory.owner(of: 1) == 500)
        #expect(memory.brokenInvariant() == nil)
    }

    /// A slot that takes the place of those that began its leaf, and some more.
    @Test func aSlotReachesOverOldBorders() throws {
        for index in 0..<1024 { try memory.set(region(index)) }
        for first in stride(from: 16, to: 1024, by: 16) {
            for index in first..<first + 8 { try memory.set(deletion(UInt32(index))) }
            try memory.set(UserMemoryRegion(UInt32(first), frame: UInt64(first) * 8 - 1, pages: 57))
            for frame in UInt64(first) * 8 - 1..<UInt64(first) * 8 + 56 {
                #expect(memory.owner(of: frame) == UInt16(first))
            }
        }
        #expect(memory.brokenInvariant() == nil)
    }

    /// When two nodes become one, so do small leaves that were the last of one and the first of the other.
    @Test func smallLeavesMeetWhenNodesMerge() throws {
        // Leaf i has slots 32i to 32i + 31; two nodes have 32 leaves each.
        for index in 0..<2048 { try memory.set(region(index)) }
        #expect(memory.frameOrderShape() == (3, 64 + 2 + 1))
        func delete(_ slots: Range<UInt32>) throws {
            for slot in slots { try memory.set(deletion(slot)) }
            #expect(memory.brokenInvariant() == nil)
        }
        // 12 leaves of the first node stay, 13 of the second; four slots in the leaves where they meet.
        try delete(11 * 32..<31 * 32)
        try delete(45 * 32..<64 * 32)
        try delete(31 * 32..<32 * 32 - 4)
        try delete(32 * 32 + 4..<33 * 32)
        #expect(memory.frameOrderShape() == (3, 25 + 2 + 1))
        try delete(44 * 32..<45 * 32)
        #expect(memory.frameOrderShape() == (2, 24 - 1 + 1))
        for slot in [0, 11 * 32 - 1, 32 * 32 - 4, 32 * 32 + 3, 33 * 32, 44 * 32 - 1] {
            #expect(memory.owner(of: UInt64(slot) * 8) == UInt16(slot))
        }
    }

    // MARK: Memory

    /// With 33 slots the nodes in reserve are used up: the next insertion seeks three, whichever way it comes.
    @Test(arguments: ["create", "move", "batch"])
    func eachNodeMayBeRefused(kind: String) throws {
        let regions: [UserMemoryRegion] =
            switch kind {
            case "create": [region(100)]
            case "move": [UserMemoryRegion(7, frame: 800, pages: 7)]
            default: (0..<20).map { deletion($0) } + (100..<200).map(region)
            }
        /// Lets allocation number `step` fail, or `prepare` refuse, and returns the number of allocations until then.
        func refuse(at step: Int) throws -> Int {
            let memory = GuestMemory()
            for index in 0..<33 { try memory.set(region(index)) }
            let generation = memory.generation()
            var count = 0
            memory.failAllocations {
                count += 1
                return count == step
            }
            var isPrepared = false
            func prepare() throws(Errno) {
                isPrepared = true
                throw .permissionDenied
            }
            var thrown: Errno?
            do throws(Errno) {
                if kind == "batch" {
                    _ = try memory.setUserMemoryRegions(
                        regions, prepare: { (_) throws(Errno) in try prepare() }, flush: { _ in })
                } else {
                    try memory.setUserMemoryRegion(
                        regions[0], prepare: { (_) throws(Errno) in try prepare() }, flush: { _ in })
                }
            } catch { thrown = error }
            memory.failAllocations(nil)
            #expect(thrown == (isPrepared ? .permissionDenied : .noMemory), "step \(step)")
            #expect(isPrepared == (step == 0))
            if !isPrepared { #expect(generation == memory.generation()) }
            #expect(memory.brokenInvariant() == nil, "step \(step)")
            #expect(memory.frameOrderShape() == (2, 3), "step \(step)")
            for index in 0..<33 { #expect(memory.owner(of: UInt64(index) * 8) == UInt16(index), "step \(step)") }
            #expect(memory.owner(of: 800) == nil)
            _ = try memory.setUserMemoryRegions(regions) { _ in }
            #expect(memory.owner(of: 800) == (kind == "move" ? 7 : 100))
            #expect(memory.brokenInvariant() == nil)
            return count
        }
        let count = try refuse(at: 0)
        // A slot or its INVALID copy, and three nodes; the batch splits leaves and needs more.
        if kind == "batch" { #expect(count > 100 + 3) } else { #expect(count == 1 + 3) }
        for step in 1...count { #expect(try refuse(at: step) == step) }
    }

    // MARK: Random changes

    /// Slots in cells of 16 frames, against a list: few become many and few again, in single changes and batches, some of
    /// them refused at each possible point.
    @Test func randomChangesMatchAList() throws {
        let seed = runSeed("frame order")
        var random = SeededGenerator(seed: seed)
        let cellCount = 6000
        var cells = [UInt32?](repeating: nil, count: cellCount)
        var isUsed = [Bool](repeating: false, count: 4000)
        var refusals = 0
        var rounds = 0
        var greatest = 0
        func region(_ slot: UInt32, cell: Int) -> UserMemoryRegion {
            UserMemoryRegion(slot, frame: UInt64(cell) * 16 + UInt64(slot % 5), pages: 1 + UInt64(slot % 11))
        }
        func check() {
            #expect(memory.brokenInvariant() == nil, "round \(rounds)")
            var ids: [UInt32] = []
            memory.forEachSlot { ids.append(UInt32($0.id)) }
            #expect(ids == cells.compactMap { $0 }, "round \(rounds)")
            greatest = max(greatest, ids.count)
        }
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        repeat {
            rounds += 1
            let isGrowing = rounds / 64 % 2 == 0
            var (after, usedAfter) = (cells, isUsed)
            var batch: [UserMemoryRegion] = []
            // A stretch of cells, often far shorter than the batch is long.
            let stretch = 1 + Int(random.next() % (random.oneIn(2) ? 100 : UInt64(cellCount)))
            let start = Int(random.next() % UInt64(cellCount - stretch + 1))
            let isInOrder = random.oneIn(2)
            for step in 0..<1 + Int(random.next() % (random.oneIn(3) ? 1 : 150)) {
                let cell = start + (isInOrder ? step % stretch : Int(random.next() % UInt64(stretch)))
                if let slot = after[cell] {
                    if isGrowing != random.oneIn(8) {
                        let other = Int(random.next() % UInt64(cellCount))
                        guard after[other] == nil else { continue }
                        batch.append(region(slot, cell: other))
                        (after[cell], after[other]) = (nil, slot)
                    } else {
                        batch.append(deletion(slot))
                        after[cell] = nil
                        usedAfter[Int(slot)] = false
                    }
                } else if isGrowing != random.oneIn(8) {
                    let slot = Int(random.next() % UInt64(usedAfter.count))
                    if usedAfter[slot] { continue }
                    batch.append(region(UInt32(slot), cell: cell))
                    after[cell] = UInt32(slot)
                    usedAfter[slot] = true
                }
            }
            let isSingle = batch.count == 1
            let isRefused = random.oneIn(5)
            var allocationsLeft = random.oneIn(5) ? Int(random.next() % 200) : Int.max
            memory.failAllocations {
                allocationsLeft -= 1
                return allocationsLeft < 0
            }
            var thrown: Errno?
            do throws(Errno) {
                if isSingle {
                    try memory.setUserMemoryRegion(
                        batch[0],
                        prepare: { (_) throws(Errno) in if isRefused { throw .permissionDenied } }, flush: { _ in })
                } else {
                    _ = try memory.setUserMemoryRegions(
                        batch,
                        prepare: { (_) throws(Errno) in if isRefused { throw .permissionDenied } }, flush: { _ in })
                }
            } catch { thrown = error }
            memory.failAllocations(nil)
            #expect(thrown == nil || thrown == .permissionDenied || thrown == .noMemory)
            if thrown == nil { (cells, isUsed) = (after, usedAfter) } else { refusals += 1 }
            if thrown != nil || rounds % 8 == 0 { check() }
            for _ in 0..<8 {
                let cell = Int(random.next() % UInt64(cellCount))
                let frame = UInt64(cell) * 16 + random.next() % 16
                let owner = cells[cell].flatMap { slot in
                    frame % 16 >= UInt64(slot % 5) && frame % 16 <= UInt64(slot % 5) + UInt64(slot % 11) ? slot : nil
                }
                #expect(memory.owner(of: frame).map(UInt32.init) == owner, "frame \(frame), round \(rounds)")
            }
        } while MonotonicClock.nanoseconds() < deadline
        check()
        #expect(refusals > 0)
        print("frame order: \(rounds) rounds, \(refusals) refused, up to \(greatest) slots")
    }

    /// Every second slot stays. The others come and go in waves, so that leaves split and merge around those that stay;
    /// readers find these all the time.
    @Test func readersFindWhatStays() throws {
        let seed = runSeed("readers by frame")
        let count = 1500
        let memory = GuestMemory()
        for index in stride(from: 0, to: count, by: 2) { try memory.set(region(index)) }
        let isOver = Flag()
        let (wrong, lookups) = (Counter(), Counter())
        let readers = try (0..<2).map { number in
            try HostThread(name: "reader") {
                var random = SeededGenerator(seed: seed &+ UInt64(number) &+ 1)
                while !isOver.isSet {
                    for _ in 0..<100 {
                        let index = random.next() % UInt64(count)
                        let frame = GuestFrameNumber(index * 8 + random.next() % 7)
                        let isRight = memory.withReadSection {
                            guard let slot = memory.lookup(frame, addressSpace: 0) else { return index % 2 == 1 }
                            return UInt64(slot.pointee.id) == index && slot.pointee.contains(frame)
                        }
                        if !isRight { wrong.add(1) }
                    }
                    lookups.add(100)
                    usleep(50)
                }
            }
        }
        var random = SeededGenerator(seed: seed)
        var changes = 0
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        repeat {
            let odd = Array(stride(from: 1, to: count, by: 2))
            for isCreation in [true, false] {
                let order = random.oneIn(3) ? odd : random.oneIn(2) ? odd.reversed() : odd.shuffled(using: &random)
                let regions = order.map { isCreation ? region($0) : deletion(UInt32($0)) }
                if random.oneIn(2) {
                    var rest = regions[...]
                    while !rest.isEmpty {
                        _ = try memory.setUserMemoryRegions(Array(rest.prefix(40))) { _ in }
                        rest = rest.dropFirst(40)
                    }
                } else {
                    for region in regions { try memory.set(region) }
                }
                changes += regions.count
                #expect(memory.brokenInvariant() == nil)
            }
        } while MonotonicClock.nanoseconds() < deadline
        isOver.set()
        readers.forEach { $0.join() }
        #expect(wrong.value == 0)
        #expect(lookups.value > 0)
        print("readers by frame: \(changes) changes, \(lookups.value) look-ups")
    }
}
