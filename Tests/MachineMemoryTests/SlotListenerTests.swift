import AddressSpace
import Addressing
import Machine
import SystemPackage
import Testing

/// The listener above a model of KVM's memory slots.
@Suite struct SlotListenerTests {
    /// A topology whose memory goes to a model.
    struct Fixture {
        let topology = MemoryTopology()
        let root: MemoryRegion
        let space: AddressSpace
        let target: ModelTarget
        let lock = MachineLock()
        let blocker: AccelBlocker
        let listener: SlotListener

        init(slotLimit: Int = 100, batchLimit: Int = 0) throws {
            root = topology.makeContainer("root", byteCount: 1 << 64)
            space = AddressSpace("space", root: root)
            target = ModelTarget(slotLimit: slotLimit, batchLimit: batchLimit)
            blocker = try AccelBlocker(lock: lock)
            let listener = SlotListener(target, blocker: blocker)
            self.listener = listener
            try lock.withLock { [space] in try space.add(listener) }
        }

        func ram(_ name: String, host: UInt, _ byteCount: UInt64) -> MemoryRegion {
            topology.makeRAM(name, host: HostVirtualAddress(host), byteCount: byteCount)
        }

        /// Makes changes with the machine lock held, and returns during how many calls requests were inhibited.
        @discardableResult
        func change(_ body: () throws -> Void) throws -> Int {
            var count = 0
            target.onCall = { if blocker.isInhibiting { count += 1 } }
            defer { target.onCall = {} }
            try lock.withLock { try body() }
            return count
        }
    }

    @Test(arguments: [0, 64]) func memoryBecomesSlots(batchLimit: Int) throws {
        let fixture = try Fixture(batchLimit: batchLimit)
        let (root, target) = (fixture.root, fixture.target)
        let ram = fixture.ram("ram", host: 0x10_0000, 0x8000)
        try fixture.change { try root.add(ram, at: 0) }
        #expect(target.text == ["0+8000 100000 0"])
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        // Splitting overlaps what was there: without a batch nobody may run meanwhile.
        let inhibited = try fixture.change { try root.add(device, at: 0x2000, priority: 1) }
        #expect(inhibited == (batchLimit == 0 ? 3 : 0))
        #expect(target.text == ["0+2000 100000 0", "3000+5000 103000 0"])
        try fixture.change { try ram.setReadOnly(true) }
        #expect(target.text == ["0+2000 100000 2", "3000+5000 103000 2"])
        try fixture.change { try device.setEnabled(false) }
        #expect(target.text == ["0+8000 100000 2"])
        #expect(target.slots.keys.max()! < 3)
        // What overlaps nothing needs no care.
        let apart = try fixture.change {
            try root.add(fixture.ram("more", host: 0x20_0000, 0x1000), at: 0x10000)
            try ram.move(to: 0x20000)
        }
        #expect(apart == 0)
        #expect(target.text == ["10000+1000 200000 0", "20000+8000 100000 2"])
        try fixture.change { try fixture.space.remove(fixture.listener) }
        #expect(target.slots.isEmpty)
    }

    @Test func aBatchIsOneCall() throws {
        let fixture = try Fixture(batchLimit: 3)
        let ram = fixture.ram("ram", host: 0x10_0000, 0x8000)
        try fixture.change { try fixture.root.add(ram, at: 0) }
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        let before = fixture.target.callCount
        try fixture.change { try fixture.root.add(device, at: 0x2000, priority: 1) }
        #expect(fixture.target.callCount == before + 1)
        // Four changes are too many for this accelerator: they are made one after the other.
        let inhibited = try fixture.change { try device.move(to: 0x4000) }
        #expect(fixture.target.callCount == before + 5 && inhibited == 4)
        #expect(fixture.target.text == ["0+4000 100000 0", "5000+3000 105000 0"])
    }

    @Test func whatSlotsCannotMapIsLeft() throws {
        let fixture = try Fixture()
        // In the guest: half a page at each end.
        try fixture.change { try fixture.root.add(fixture.ram("a", host: 0x10_0800, 0x3000), at: 0x800) }
        #expect(fixture.target.text == ["1000+2000 101000 0"])
        // Guest and host differ in their offset in a page; and less than a page.
        try fixture.change {
            try fixture.root.add(fixture.ram("b", host: 0x20_0000, 0x3000), at: 0x10800)
            try fixture.root.add(fixture.ram("c", host: 0x30_0200, 0xE00), at: 0x20200)
        }
        #expect(fixture.target.text == ["1000+2000 101000 0"])
        try fixture.change { try fixture.space.remove(fixture.listener) }
        #expect(fixture.target.slots.isEmpty)
    }

    /// No guest reaches these; the address space does.
    @Test func memoryAtTheEndOfTheAddressSpaceHasNoSlot() throws {
        let fixture = try Fixture()
        try fixture.change {
            try fixture.root.add(fixture.ram("end", host: 0x10_0000, 0x2000), at: 0xFFFF_FFFF_FFFF_E000)
            try fixture.root.add(fixture.ram("edge", host: 0x20_0000, 0x2000), at: 1 << 52 - 0x1000)
        }
        #expect(fixture.target.text == ["ffffffffff000+1000 200000 0"])
        #expect(fixture.space.view.ranges.count == 2)
    }

    /// The listener has a region while its slot is there, and no longer.
    @Test(arguments: [0, 64]) func regionsAreHeldOnce(batchLimit: Int) throws {
        let fixture = try Fixture(batchLimit: batchLimit)
        weak var region: MemoryRegion?
        do {
            let ram = fixture.ram("ram", host: 0x10_0000, 0x2000)
            region = ram
            try fixture.change { try fixture.root.add(ram, at: 0) }
        }
        try fixture.change { try fixture.root.setReadOnly(true) }
        #expect(region?.container === fixture.root)
        try fixture.change { try fixture.root.remove(fixture.root.subregions[0]) }
        #expect(region == nil && fixture.target.slots.isEmpty)
    }

    @Test func largeMemoryIsSplit() throws {
        let fixture = try Fixture()
        let ram = fixture.ram("ram", host: 0x1000, 9 << 40)
        try fixture.change { try fixture.root.add(ram, at: 0) }
        #expect(
            fixture.target.text == [
                "0+40000000000 1000 0", "40000000000+40000000000 40000001000 0", "80000000000+10000000000 80000001000 0"
            ])
        try fixture.change { try ram.setDirtyLogging(true) }
        #expect(fixture.target.text.allSatisfy { $0.hasSuffix(" 1") })
        try fixture.change { try fixture.root.remove(ram) }
        #expect(fixture.target.slots.isEmpty)
    }

    /// What is written through a slot is in the region's record, whichever way the slot goes.
    @Test(arguments: [0, 64]) func writtenPagesAreKept(batchLimit: Int) throws {
        let fixture = try Fixture(batchLimit: batchLimit)
        let target = fixture.target
        let ram = fixture.ram("ram", host: 0x10_0000, 0x8000)
        try fixture.change {
            try ram.setDirtyLogging(true)
            try fixture.root.add(ram, at: 0x4000)
        }
        #expect(target.write(page: 0x5000) && target.write(page: 0xB000) && !target.write(page: 0xC000))
        try fixture.listener.synchronizeDirtyPages()
        #expect(ram.takeDirtyPages() == [0b1000_0010])
        #expect(target.write(page: 0x6000))
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        try fixture.change { try fixture.root.add(device, at: 0x5000, priority: 1) }
        #expect(target.write(page: 0x8000) && !target.write(page: 0x5000))
        try fixture.listener.synchronizeDirtyPages()
        #expect(ram.takeDirtyPages() == [0b1_0100])
        // A slot that goes and overlaps nothing: nobody may write between the reading of its pages and its end.
        #expect(target.write(page: 0x4000))
        let inhibited = try fixture.change { try ram.move(to: 0x10_0000) }
        #expect((inhibited > 0) == (batchLimit == 0))
        #expect(ram.takeDirtyPages() == [1])
        #expect(target.write(page: 0x10_3000))
        try fixture.change { try ram.setDirtyLogging(false) }
        #expect(target.write(page: 0x10_4000))
        try fixture.listener.synchronizeDirtyPages()
        #expect(ram.takeDirtyPages() == [0b1000])
        #expect(target.text == ["100000+8000 100000 0"])
    }

    @Test func tooFewSlots() throws {
        let fixture = try Fixture(slotLimit: 2)
        try fixture.change {
            try fixture.root.add(fixture.ram("a", host: 0x10_0000, 0x8000), at: 0)
            try fixture.root.add(fixture.ram("b", host: 0x20_0000, 0x1000), at: 0x10_0000)
        }
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        let error = fixture.lock.withLock {
            errno { () throws(Errno) in try fixture.root.add(device, at: 0x2000, priority: 1) }
        }
        #expect(error == .noSpace && device.container == nil)
        #expect(fixture.target.text == ["0+8000 100000 0", "100000+1000 200000 0"])
        #expect(fixture.space.view.ranges.count == 2)
    }

    /// An error in the middle: slots, view and regions are as before.
    @Test(arguments: 0..<3) func errorsAreTakenBack(position: Int) throws {
        let fixture = try Fixture()
        let target = fixture.target
        let ram = fixture.ram("ram", host: 0x10_0000, 0x8000)
        try fixture.change {
            try ram.setDirtyLogging(true)
            try fixture.root.add(ram, at: 0)
        }
        let before = target.text
        #expect(target.write(page: 0x3000))
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        target.errors = [Errno?](repeating: nil, count: position) + [.noMemory]
        let error = fixture.lock.withLock {
            errno { () throws(Errno) in try fixture.root.add(device, at: 0x2000, priority: 1) }
        }
        #expect(error == .noMemory && target.text == before && fixture.space.view.ranges.count == 1)
        // The old slot's pages were fetched before it went.
        try fixture.listener.synchronizeDirtyPages()
        #expect(ram.takeDirtyPages() == [0b1000])
    }

    /// The accelerator refuses the change in the middle, and all that would take it back.
    @Test func whatCannotBeTakenBackIsDeletedLater() throws {
        let fixture = try Fixture()
        let target = fixture.target
        let ram = fixture.ram("ram", host: 0x10_0000, 0x8000)
        try fixture.change { try fixture.root.add(ram, at: 0) }
        let device = fixture.topology.makeDevice("device", Nothing(), byteCount: 0x1000)
        // Deletion, first addition; then nothing works.
        target.errors = [nil, nil, .noMemory, .noMemory, .noMemory]
        let error = fixture.lock.withLock {
            errno { () throws(Errno) in try fixture.root.add(device, at: 0x2000, priority: 1) }
        }
        #expect(error == .noMemory)
        #expect(target.text == ["0+2000 100000 0"])
        #expect(fixture.space.view.ranges.count == 1)
        target.errors = []
        // The next change of whatever puts it right.
        try fixture.change { try fixture.root.add(fixture.ram("more", host: 0x20_0000, 0x1000), at: 0x10000) }
        #expect(target.text == ["0+8000 100000 0", "10000+1000 200000 0"])
        #expect(Set(target.slots.keys) == [0, 1])
    }
}

/// Reads as zero.
private final class Nothing: MemoryDevice {
    let widestAccess = 8
    func read(at offset: UInt64, byteCount: Int) -> UInt64 { 0 }
    func write(at offset: UInt64, byteCount: Int, value: UInt64) {}
}
