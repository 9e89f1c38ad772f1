import Addressing
import GuestMemory
import TestSupport
import Testing

@Suite struct HostRangeTests {
    let memory = GuestMemory()

    private func slots(_ range: Range<UInt>, addressSpace: Int = 0) -> [UInt16] {
        var ids: [UInt16] = []
        memory.forEachSlot(overlapping: range, addressSpace: addressSpace) { ids.append($0.pointee.id) }
        return ids
    }

    @Test func bordersAreHalfOpen() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 2, host: 0x10_0000))
        try memory.set(UserMemoryRegion(2, frame: 0, pages: 1, host: 0x10_2000))
        #expect(slots(0..<0x10_0000) == [])
        #expect(slots(0..<0x10_0001) == [1])
        #expect(slots(0x10_1fff..<0x10_2000) == [1])
        #expect(slots(0x10_1fff..<0x10_2001) == [1, 2])
        #expect(slots(0x10_2fff..<0x10_3000) == [2])
        #expect(slots(0x10_3000..<UInt.max) == [])
        #expect(slots(0x10_1000..<0x10_1000) == [])
        #expect(slots(0..<UInt.max) == [1, 2])
        #expect(slots(0..<UInt.max, addressSpace: 1) == [])
    }

    @Test func sharedMemoryIsFoundInEachSlot() throws {
        try memory.set(UserMemoryRegion(7, frame: 0, pages: 16, host: 0x10_0000))
        try memory.set(UserMemoryRegion(3, frame: 32, pages: 16, host: 0x10_0000))
        try memory.set(UserMemoryRegion(5, frame: 64, pages: 1, host: 0x10_4000))
        #expect(slots(0x10_4000..<0x10_5000) == [3, 7, 5])
        #expect(slots(0x10_5000..<0x10_6000) == [3, 7])
        try memory.set(UserMemoryRegion(3, frame: 0, pages: 0))
        #expect(slots(0x10_4000..<0x10_5000) == [7, 5])
    }

    @Test func theRangeFollowsMovesAndFlags() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 2, host: 0x10_0000))
        try memory.setUserMemoryRegion(UserMemoryRegion(1, frame: 200, pages: 2, host: 0x10_0000)) { _ in
            // Translations of the INVALID slot may still be cached: whoever drops them by host address must find it.
            #expect(slots(0x10_0000..<0x10_1000) == [1])
        }
        try memory.set(UserMemoryRegion(1, frame: 200, pages: 2, host: 0x10_0000, flags: 1))
        #expect(memory.brokenInvariant() == nil)
        var frames: [UInt64] = []
        memory.forEachSlot(overlapping: 0x10_1000..<0x10_1001, addressSpace: 0) { slot in
            frames.append(slot.pointee.baseFrame.value)
            #expect(slot.pointee.flags == .logDirtyPages)
        }
        #expect(frames == [200])
    }

    @Test func slotsAreFoundByID() throws {
        try memory.set(UserMemoryRegion(300, frame: 100, pages: 2))
        #expect(memory.lookup(id: 300, addressSpace: 0)?.pointee.baseFrame == GuestFrameNumber(100))
        #expect(memory.lookup(id: 300, addressSpace: 1) == nil)
        #expect(memory.lookup(id: 301, addressSpace: 0) == nil)
        #expect(memory.lookup(id: .max, addressSpace: 0) == nil)
        try memory.setUserMemoryRegion(UserMemoryRegion(300, frame: 0, pages: 0)) { _ in
            #expect(memory.lookup(id: 300, addressSpace: 0) == nil)
        }
        #expect(memory.lookup(id: 300, addressSpace: 0) == nil)
    }

    /// Many overlapping ranges that come and go, against a list.
    @Test func randomRangesMatchAList() throws {
        let seed = runSeed("host ranges")
        var random = SeededGenerator(seed: seed)
        var list: [UInt32: UserMemoryRegion] = [:]
        for step in 0..<3000 {
            let id = UInt32(random.next() % 400)
            if list[id] != nil {
                try memory.set(UserMemoryRegion(id, frame: 0, pages: 0))
                list[id] = nil
            } else {
                let pages = 1 + (random.oneIn(8) ? random.next() % 500 : random.next() % 10)
                let region = UserMemoryRegion(
                    id, frame: UInt64(id) << 10, pages: pages, host: (random.next() % 1000) << 12)
                try memory.set(region)
                list[id] = region
            }
            if step % 16 == 0 { #expect(memory.brokenInvariant() == nil, "step \(step)") }
            let start = random.next() % (1600 << 12)
            let end = start + random.next() % (random.oneIn(2) ? 0x2000 : 0x20_0000)
            let expected = list.values
                .filter { start < end && $0.userspaceAddress < end && start < $0.userspaceAddress + $0.memorySize }
                .sorted { ($0.userspaceAddress, $0.slot) < ($1.userspaceAddress, $1.slot) }
                .map { UInt16($0.slot) }
            #expect(slots(UInt(start)..<UInt(end)) == expected, "step \(step)")
        }
    }
}
