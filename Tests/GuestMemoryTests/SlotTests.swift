import Addressing
import GuestMemory
import SystemPackage
import Testing

@Suite struct SlotTests {
    let memory = GuestMemory()

    @Test func aSlotBacksItsFramesOnly() throws {
        try memory.set(UserMemoryRegion(0, frame: 0, pages: 16, host: 0x10_0000))
        try memory.set(UserMemoryRegion(1, frame: 32, pages: 1))
        #expect(memory.owner(of: 0) == 0)
        #expect(memory.owner(of: 15) == 0)
        #expect(memory.owner(of: 16) == nil)
        #expect(memory.owner(of: 31) == nil)
        #expect(memory.owner(of: 32) == 1)
        #expect(memory.owner(of: 33) == nil)
        #expect(memory.owner(of: .max) == nil)
        #expect(memory.owner(of: 0, addressSpace: 1) == nil)
        let slot = try #require(memory.lookup(GuestFrameNumber(3), addressSpace: 0))
        let host = slot.pointee.hostPointer(for: GuestFrameNumber(3))
        #expect(UInt(bitPattern: host) == 0x10_3000)
    }

    @Test func addressSpacesAreSeparate() throws {
        try memory.set(UserMemoryRegion(5, frame: 0, pages: 16))
        try memory.set(UserMemoryRegion(0x1_0005, frame: 8, pages: 16))
        #expect(memory.owner(of: 0, addressSpace: 1) == nil)
        #expect(memory.owner(of: 20, addressSpace: 1) == 5)
        #expect(memory.owner(of: 20) == nil)
        #expect(memory.slot(0x1_0005)?.addressSpace == 1)
        #expect(memory.slot(0x2_0005) == nil)
    }

    @Test func everySlotNumberIsUsable() throws {
        for id in 0..<UInt32(GuestMemory.userSlotCount) {
            try memory.set(UserMemoryRegion(id, frame: UInt64(id) * 2, pages: 1))
        }
        #expect(memory.brokenInvariant() == nil)
        #expect(memory.owner(of: 2 * 32763) == 32763)
        #expect(memory.error(UserMemoryRegion(32764, frame: 1, pages: 1)) == .invalidArgument)
        for id in stride(from: UInt32(0), to: UInt32(GuestMemory.userSlotCount), by: 2) {
            try memory.set(UserMemoryRegion(id, frame: 0, pages: 0))
        }
        #expect(memory.brokenInvariant() == nil)
        var count = 0
        memory.forEachSlot { slot in
            #expect(slot.id % 2 == 1)
            count += 1
        }
        #expect(count == GuestMemory.userSlotCount / 2)
    }

    // MARK: Errors

    /// Requests made while slot 1 has frames 100–199, host address 2 MiB and dirty logging, and slot 2 frames 200–299.
    static let requests: [(String, UserMemoryRegion, Errno?)] = {
        func region(
            _ slot: UInt32, _ address: UInt64, _ size: UInt64, _ host: UInt64 = 0x20_0000, _ flags: UInt32 = 0
        ) -> UserMemoryRegion {
            UserMemoryRegion(
                slot: slot, flags: flags, guestPhysicalAddress: address, memorySize: size, userspaceAddress: host)
        }
        return [
            ("gpa not whole pages", region(3, 0x800, 0x1000), .invalidArgument),
            ("size not whole pages", region(3, 0, 0x1001), .invalidArgument),
            ("host address not whole pages", region(3, 0, 0x1000, 0x20_0010), .invalidArgument),
            ("gpa wraps", region(3, 0xffff_ffff_ffff_f000, 0x2000), .invalidArgument),
            ("gpa ends at 2^64", region(3, 0xffff_ffff_ffff_f000, 0x1000), .invalidArgument),
            ("gpa ends at 2^52", region(3, (1 << 52) - 0x1000, 0x1000), nil),
            ("gpa beyond 2^52", region(3, (1 << 52) - 0x1000, 0x2000), .invalidArgument),
            ("host address wraps", region(3, 0, 0x2000, 0xffff_ffff_ffff_f000), .invalidArgument),
            ("host address is the kernel's", region(3, 0, 0x1000, 0x7fff_ffff_f000), .invalidArgument),
            ("last host page", region(3, 0, 0x1000, 0x7fff_ffff_e000), nil),
            ("too many pages", region(3, 1 << 44, 1 << 43), .invalidArgument),
            ("most pages", region(3, 1 << 44, (1 << 43) - 0x1000), nil),
            ("unknown flag", region(3, 0, 0x1000, 0x20_0000, 4), .invalidArgument),
            ("core's flag", region(3, 0, 0x1000, 0x20_0000, 1 << 16), .invalidArgument),
            ("id of a private slot", region(32764, 0, 0x1000), .invalidArgument),
            ("greatest id", region(32763, 0, 0x1000), nil),
            ("unknown address space", region(0x2_0000, 0, 0x1000), .invalidArgument),
            ("delete what is not there", region(3, 0, 0), .invalidArgument),
            ("delete in the other address space", region(0x1_0001, 0, 0), .invalidArgument),
            ("delete with an unknown flag", region(1, 0, 0, 0, 8), .invalidArgument),
            ("delete", region(1, 0x5000, 0, 0), nil),
            ("larger", region(1, 100 << 12, 101 << 12, 0x20_0000, 1), .invalidArgument),
            ("smaller", region(1, 100 << 12, 99 << 12, 0x20_0000, 1), .invalidArgument),
            ("other host address", region(1, 100 << 12, 100 << 12, 0x30_0000, 1), .invalidArgument),
            ("becomes read-only", region(1, 100 << 12, 100 << 12, 0x20_0000, 3), .invalidArgument),
            ("no change", region(1, 100 << 12, 100 << 12, 0x20_0000, 1), nil),
            ("logging off", region(1, 100 << 12, 100 << 12, 0x20_0000, 0), nil),
            ("move", region(1, 0, 100 << 12, 0x20_0000, 1), nil),
            ("move onto itself", region(1, 50 << 12, 100 << 12, 0x20_0000, 1), nil),
            ("move onto another", region(1, 101 << 12, 100 << 12, 0x20_0000, 1), .fileExists),
            ("move too far", region(1, 1 << 52, 100 << 12, 0x20_0000, 1), .invalidArgument),
            ("first page overlaps", region(3, 299 << 12, 0x2000), .fileExists),
            ("last page overlaps", region(3, 99 << 12, 0x2000), .fileExists),
            ("inside another", region(3, 150 << 12, 0x1000), .fileExists),
            ("around others", region(3, 0, 1000 << 12), .fileExists),
            ("between", region(3, 98 << 12, 0x2000), nil),
            ("behind", region(3, 300 << 12, 0x1000), nil),
            ("overlaps in the other address space only", region(0x1_0003, 150 << 12, 0x1000), nil),
            ("host memory shared with another", region(3, 0, 0x1000, 0x20_0000), nil)
        ]
    }()

    @Test(arguments: requests.indices)
    func errors(index: Int) throws {
        let (name, region, expected) = Self.requests[index]
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 100, host: 0x20_0000, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 200, pages: 100, host: 0x40_0000))
        let before = snapshot()
        #expect(memory.error(region) == expected, "\(name)")
        #expect(memory.brokenInvariant() == nil, "\(name)")
        if expected != nil { #expect(snapshot() == before, "\(name)") }
    }

    private func snapshot() -> [MemorySlotDescription] {
        var slots: [MemorySlotDescription] = []
        for space in 0..<2 { memory.forEachSlot(addressSpace: space) { slots.append($0) } }
        return slots
    }

    // MARK: Phases

    @Test func flushSeesNoOldSlot() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10))
        var flushes = 0
        // Moved: neither the old nor the new frames are there yet.
        try memory.setUserMemoryRegion(UserMemoryRegion(1, frame: 200, pages: 10)) { change in
            flushes += 1
            #expect(change.old?.baseFrame == GuestFrameNumber(100))
            #expect(change.new?.baseFrame == GuestFrameNumber(200))
            #expect(memory.owner(of: 105) == nil)
            #expect(memory.owner(of: 205) == nil)
        }
        #expect(memory.owner(of: 105) == nil)
        #expect(memory.owner(of: 205) == 1)
        // Flags: the new ones are there already.
        try memory.setUserMemoryRegion(UserMemoryRegion(1, frame: 200, pages: 10, flags: 1)) { change in
            flushes += 1
            let slot = memory.lookup(GuestFrameNumber(200), addressSpace: 0)
            #expect(slot?.pointee.flags == .logDirtyPages)
            #expect(change.new?.flags == .logDirtyPages)
        }
        try memory.setUserMemoryRegion(UserMemoryRegion(1, frame: 0, pages: 0)) { change in
            flushes += 1
            #expect(change.new == nil)
            #expect(memory.owner(of: 205) == nil)
        }
        #expect(flushes == 3)
        try memory.setUserMemoryRegion(UserMemoryRegion(1, frame: 0, pages: 1)) { _ in flushes += 1 }
        #expect(flushes == 3)
    }

    @Test func aRefusedChangeChangesNothing() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10, flags: 1))
        memory.lookup(GuestFrameNumber(104), addressSpace: 0)?.pointee.markDirty(frame: GuestFrameNumber(104))
        let before = snapshot()
        let changes = [
            UserMemoryRegion(2, frame: 0, pages: 1, flags: 1),
            UserMemoryRegion(1, frame: 0, pages: 0),
            UserMemoryRegion(1, frame: 105, pages: 10, flags: 1),
            UserMemoryRegion(1, frame: 105, pages: 10),
            UserMemoryRegion(1, frame: 100, pages: 10)
        ]
        for change in changes {
            #expect(throws: Errno.permissionDenied) {
                try memory.setUserMemoryRegion(
                    change, prepare: { (_) throws(Errno) in throw .permissionDenied }, flush: { _ in })
            }
            #expect(snapshot() == before)
            #expect(memory.owner(of: 100) == 1)
            #expect(memory.brokenInvariant() == nil)
        }
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [1 << 4])
    }

    // MARK: Generations

    @Test(arguments: [UInt64(0), (1 << 63) - 5, .max])
    func generationsChangeWithEveryCommit(initial: UInt64) throws {
        let memory = GuestMemory(initialGeneration: initial)
        var seen = Set([memory.generation(), memory.generation(addressSpace: 1)])
        #expect(seen.count == 2)
        let changes = [
            UserMemoryRegion(1, frame: 100, pages: 10),
            UserMemoryRegion(1, frame: 100, pages: 10, flags: 1),
            UserMemoryRegion(1, frame: 101, pages: 10, flags: 1),
            UserMemoryRegion(1, frame: 0, pages: 0),
            UserMemoryRegion(0x1_0001, frame: 100, pages: 10)
        ]
        for change in changes {
            let other = memory.generation(addressSpace: change.slot >> 16 == 0 ? 1 : 0)
            try memory.set(change)
            let generation = memory.generation(addressSpace: Int(change.slot >> 16))
            #expect(!generation.isUpdateInProgress)
            #expect(seen.insert(generation).inserted)
            #expect(memory.generation(addressSpace: change.slot >> 16 == 0 ? 1 : 0) == other)
        }
        try memory.set(UserMemoryRegion(0x1_0001, frame: 100, pages: 10))
        #expect(!seen.insert(memory.generation(addressSpace: 1)).inserted)
    }

    @Test func cachesForgetWhatChanged() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10))
        try memory.set(UserMemoryRegion(0x1_0002, frame: 100, pages: 10))
        var cache = MemorySlotCache()
        func owner(_ frame: UInt64, _ space: Int = 0) -> UInt16? {
            memory.lookup(GuestFrameNumber(frame), addressSpace: space, cache: &cache)?.pointee.id
        }
        #expect(owner(100) == 1)
        #expect(owner(109) == 1)
        #expect(owner(110) == nil)
        #expect(owner(105, 1) == 2)
        #expect(owner(105) == 1)
        try memory.set(UserMemoryRegion(1, frame: 105, pages: 10))
        #expect(owner(104) == nil)
        #expect(owner(105) == 1)
        try memory.set(UserMemoryRegion(1, frame: 0, pages: 0))
        #expect(owner(105) == nil)
    }

    // MARK: Access

    @Test func copiesCrossSlots() throws {
        let host = UnsafeMutableRawPointer.allocate(byteCount: 0x3000, alignment: 0x1000)
        defer { host.deallocate() }
        host.initializeMemory(as: UInt8.self, repeating: 0, count: 0x3000)
        let address = UInt64(UInt(bitPattern: host))
        try memory.set(UserMemoryRegion(1, frame: 10, pages: 1, host: address + 0x2000, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 11, pages: 1, host: address))
        try memory.set(UserMemoryRegion(3, frame: 12, pages: 1, host: address + 0x1000, flags: 2))
        let bytes: [UInt8] = [1, 2, 3, 4]
        try bytes.withUnsafeBytes { try memory.write(GuestPhysicalAddress(0xaffe), from: $0) }
        #expect(host.load(fromByteOffset: 0x2ffe, as: UInt16.self) == 0x0201)
        #expect(host.load(fromByteOffset: 0, as: UInt16.self) == 0x0403)
        var copy = [UInt8](repeating: 0, count: 4)
        try copy.withUnsafeMutableBytes { try memory.read(GuestPhysicalAddress(0xaffe), into: $0) }
        #expect(copy == bytes)
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [1])
        try copy.withUnsafeMutableBytes { try memory.read(GuestPhysicalAddress(0xbffe), into: $0) }
        #expect(throws: Errno.badAddress) {
            try bytes.withUnsafeBytes { try memory.write(GuestPhysicalAddress(0xbffe), from: $0) }
        }
        #expect(throws: Errno.badAddress) {
            try copy.withUnsafeMutableBytes { try memory.read(GuestPhysicalAddress(0xcffe), into: $0) }
        }
        #expect(throws: Errno.badAddress) {
            try copy.withUnsafeMutableBytes { try memory.read(GuestPhysicalAddress(.max - 1), into: $0) }
        }
    }
}
