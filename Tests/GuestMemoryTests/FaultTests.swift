import Addressing
import GuestMemory
import SystemPackage
import Testing

/// Changes that fail at each of their steps: nothing is changed, nothing leaks.
@Suite struct FaultTests {
    let memory = GuestMemory()

    static let changes: [(String, UserMemoryRegion)] = [
        ("create", UserMemoryRegion(2, frame: 0, pages: 1)),
        ("create, logged", UserMemoryRegion(2, frame: 0, pages: 1, flags: 1)),
        ("create, first of its ids", UserMemoryRegion(1000, frame: 0, pages: 1, flags: 1)),
        ("create in the other address space", UserMemoryRegion(0x1_0001, frame: 0, pages: 1, flags: 1)),
        ("delete", UserMemoryRegion(1, frame: 0, pages: 0)),
        ("delete, not logged", UserMemoryRegion(3, frame: 0, pages: 0)),
        ("move", UserMemoryRegion(1, frame: 105, pages: 10, flags: 1)),
        ("move, log off", UserMemoryRegion(1, frame: 105, pages: 10)),
        ("move, log on", UserMemoryRegion(3, frame: 405, pages: 10, flags: 1)),
        ("log off", UserMemoryRegion(1, frame: 100, pages: 10)),
        ("log on", UserMemoryRegion(3, frame: 400, pages: 10, flags: 1))
    ]

    private func snapshot() -> [MemorySlotDescription] {
        var slots: [MemorySlotDescription] = []
        for space in 0..<2 { memory.forEachSlot(addressSpace: space) { slots.append($0) } }
        return slots
    }

    @Test(arguments: changes.indices)
    func aFailedStepChangesNothing(index: Int) throws {
        let (name, region) = Self.changes[index]
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10, flags: 1))
        try memory.set(UserMemoryRegion(3, frame: 400, pages: 10))
        memory.lookup(GuestFrameNumber(104), addressSpace: 0)?.pointee.markDirty(frame: GuestFrameNumber(104))
        let before = snapshot()
        func checkNothingChanged(_ step: Int) {
            #expect(snapshot() == before, "\(name), step \(step)")
            #expect(memory.brokenInvariant() == nil, "\(name), step \(step)")
            #expect(memory.owner(of: 100) == 1)
            #expect(memory.owner(of: 0) == nil)
        }
        // Allocation number `step` fails; the last round has no allocation left to fail, and `prepare` refuses.
        var step = 0
        while true {
            var count = 0
            var isPrepared = false
            let generation = (memory.generation(), memory.generation(addressSpace: 1))
            memory.failAllocations {
                count += 1
                return count == step + 1
            }
            var thrown: Errno?
            do throws(Errno) {
                try memory.setUserMemoryRegion(
                    region,
                    prepare: { (_) throws(Errno) in
                        isPrepared = true
                        throw .permissionDenied
                    }, flush: { _ in })
            } catch { thrown = error }
            memory.failAllocations(nil)
            checkNothingChanged(step)
            if isPrepared {
                #expect(thrown == .permissionDenied)
                break
            }
            #expect(thrown == .noMemory, "\(name), step \(step)")
            // Memory is sought before anything is published.
            #expect(generation == (memory.generation(), memory.generation(addressSpace: 1)))
            step += 1
        }
        #expect(step > 0)
        #expect(try memory.getDirtyLog(slot: 1, keeping: true) { _ in } == [1 << 4])
        try memory.set(region)
        #expect(memory.brokenInvariant() == nil)
        #expect(memory.slot(region.slot)?.pageCount ?? 0 == region.memorySize >> 12)
    }
}
