import AddressSpace
import Addressing
import Testing

@Suite struct AccessTests {
    let topology = MemoryTopology()
    let pages = Pages(4)
    let root: MemoryRegion
    let ram: MemoryRegion
    let space: AddressSpace

    init() throws {
        root = topology.makeContainer("root", byteCount: 1 << 64)
        ram = topology.makeRAM("ram", host: pages.host, byteCount: 0x4000)
        try root.add(ram, at: 0x1000)
        space = AddressSpace("space", root: root)
    }

    @Test func memoryIsReadAndWritten() {
        for (address, byteCount) in [(UInt64(0x1000), 8), (0x1003, 4), (0x1FFF, 7), (0x4FF8, 8)] {
            let value = 0x8877_6655_4433_2211 & (UInt64.max >> UInt64(64 - 8 * byteCount))
            space.write(at: address, byteCount: byteCount, value: value)
            #expect(space.read(at: address, byteCount: byteCount) == value)
            #expect(pages.base.load(fromByteOffset: Int(address) - 0x1000, as: UInt8.self) == 0x11)
        }
    }

    @Test func nothingReadsAsOnes() {
        #expect(space.read(at: 0x5000, byteCount: 4) == 0xFFFF_FFFF)
        space.write(at: 0x5000, byteCount: 4, value: 0)
        space.write(at: 0x4FFE, byteCount: 2, value: 0x2211)
        #expect(space.read(at: 0x4FFE, byteCount: 4) == 0xFFFF_2211)
        #expect(space.read(at: 0xFFE, byteCount: 4) == 0xFFFF)
        // The last byte of the address space is followed by the first.
        #expect(space.read(at: .max, byteCount: 2) == 0xFFFF)
    }

    @Test func devicesGetAlignedPartsTheyCanTake() throws {
        let device = Probe(widestAccess: 4)
        try root.add(topology.makeDevice("device", device, byteCount: 0x100), at: 0x5000)
        #expect(space.read(at: 0x5010, byteCount: 8) == 0x1716_1514_1312_1110)
        #expect(device.readOffsets == [0x10, 0x14])
        space.write(at: 0x5001, byteCount: 4, value: 0x4433_2211)
        #expect(
            device.writes == [
                .init(offset: 1, byteCount: 1, value: 0x11), .init(offset: 2, byteCount: 2, value: 0x3322),
                .init(offset: 4, byteCount: 1, value: 0x44)
            ])
        // Half in memory, half in the device; and past the device's end.
        space.write(at: 0x4FFC, byteCount: 8, value: 0x8877_6655_4433_2211)
        #expect(pages.base.load(fromByteOffset: 0x3FFC, as: UInt32.self) == 0x4433_2211)
        #expect(device.writes.last == .init(offset: 0, byteCount: 4, value: 0x8877_6655))
        #expect(space.read(at: 0x50FE, byteCount: 4) == 0xFFFF_7F7E)
    }

    @Test func readOnlyMemoryTellsItsDeviceOfWrites() throws {
        let flash = Probe(widestAccess: 2)
        let rom = topology.makeROM("rom", host: pages.host, byteCount: 0x1000, writes: flash)
        pages.base.storeBytes(of: 0x1234_5678, as: UInt32.self)
        try root.add(rom, at: 0x8000)
        #expect(space.read(at: 0x8000, byteCount: 4) == 0x1234_5678)
        space.write(at: 0x8000, byteCount: 4, value: 0)
        #expect(
            flash.writes == [
                .init(offset: 0, byteCount: 2, value: 0), .init(offset: 2, byteCount: 2, value: 0)
            ])
        #expect(space.read(at: 0x8000, byteCount: 4) == 0x1234_5678)
        try rom.setReadOnly(false)
        space.write(at: 0x8000, byteCount: 4, value: 7)
        #expect(space.read(at: 0x8000, byteCount: 4) == 7)
        try ram.setReadOnly(true)
        space.write(at: 0x1000, byteCount: 4, value: 9)
        #expect(space.read(at: 0x1000, byteCount: 4) == 7)
    }

    @Test func writesAreRecorded() throws {
        #expect(ram.takeDirtyPages().isEmpty)
        try ram.setDirtyLogging(true)
        #expect(ram.takeDirtyPages() == [0])
        space.write(at: 0x1FFC, byteCount: 8, value: 1)
        space.write(at: 0x4000, byteCount: 1, value: 1)
        #expect(ram.takeDirtyPages() == [0b1011])
        #expect(ram.takeDirtyPages() == [0])
        ram.markDirty(offset: 0x2FFF, byteCount: .max)
        #expect(ram.takeDirtyPages()[0] & 0b1111 == 0b1100)
        try ram.setDirtyLogging(false)
        space.write(at: 0x1000, byteCount: 1, value: 1)
        #expect(ram.takeDirtyPages() == [0])
    }

    @Test func transfersAreBytes() {
        var data: [UInt8] = [1, 2, 3]
        data.withUnsafeMutableBytes { space.transfer(at: 0x1001, isWrite: true, data: $0) }
        data = [0, 0, 0, 0, 0]
        data.withUnsafeMutableBytes { space.transfer(at: 0x1000, isWrite: false, data: $0) }
        #expect(data == [0, 1, 2, 3, 0])
    }
}
