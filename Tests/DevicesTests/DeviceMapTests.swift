import Devices
import Synchronization
import Testing

/// Reads as its own offsets; remembers writes.
private final class Pattern: Device {
    struct Write: Equatable {
        var offset: Int
        var byteCount: Int
        var value: UInt64
    }

    let widestAccess: Int
    let writes = Recorder<Write>()
    let readSizes = Recorder<Int>()

    init(widestAccess: Int) { self.widestAccess = widestAccess }

    func read(at offset: Int, byteCount: Int) -> UInt64 {
        readSizes.add(byteCount)
        return (0..<byteCount).reduce(0) { $0 | UInt64(offset + $1 + 1) << UInt64(8 * $1) }
    }

    func write(at offset: Int, byteCount: Int, value: UInt64) {
        writes.add(Write(offset: offset, byteCount: byteCount, value: value))
    }
}

@Suite struct DeviceMapTests {
    @Test func nobodyAnswersWithAllOnes() {
        let map = DeviceMap([])
        #expect(map.read(at: 0x80, byteCount: 1) == 0xFF)
        #expect(map.read(at: 0x80, byteCount: 4) == 0xFFFF_FFFF)
        #expect(map.read(at: .max, byteCount: 8) == .max)
        map.write(at: 0x80, byteCount: 1, value: 0)
    }

    @Test func theRangeDecidesWhoAnswers() {
        let first = Pattern(widestAccess: 1)
        let second = Pattern(widestAccess: 1)
        let map = DeviceMap([.init(0x70..<0x72, second), .init(0x3F8..<0x400, first)])
        #expect(map.read(at: 0x6F, byteCount: 1) == 0xFF)
        #expect(map.read(at: 0x70, byteCount: 1) == 1)
        #expect(map.read(at: 0x71, byteCount: 1) == 2)
        #expect(map.read(at: 0x72, byteCount: 1) == 0xFF)
        #expect(map.read(at: 0x3F7, byteCount: 1) == 0xFF)
        #expect(map.read(at: 0x3FF, byteCount: 1) == 8)
    }

    @Test func wideAccessesAreSplitForNarrowDevices() {
        let device = Pattern(widestAccess: 1)
        let map = DeviceMap([.init(0x3F8..<0x400, device)])
        #expect(map.read(at: 0x3F8, byteCount: 4) == 0x0403_0201)
        #expect(device.readSizes.values == [1, 1, 1, 1])
        map.write(at: 0x3FA, byteCount: 2, value: 0xBBAA)
        #expect(
            device.writes.values == [
                .init(offset: 2, byteCount: 1, value: 0xAA), .init(offset: 3, byteCount: 1, value: 0xBB)
            ])
    }

    @Test func wideDevicesGetAlignedPartsThatFit() {
        let device = Pattern(widestAccess: 4)
        let map = DeviceMap([.init(0x600..<0x60C, device)])
        _ = map.read(at: 0x600, byteCount: 8)
        #expect(device.readSizes.values == [4, 4])
        map.write(at: 0x601, byteCount: 4, value: 0x4433_2211)
        #expect(
            device.writes.values == [
                .init(offset: 1, byteCount: 1, value: 0x11), .init(offset: 2, byteCount: 2, value: 0x3322),
                .init(offset: 4, byteCount: 1, value: 0x44)
            ])
    }

    @Test func anAccessMayLeaveTheDevice() {
        let device = Pattern(widestAccess: 4)
        let map = DeviceMap([.init(0x600..<0x602, device)])
        #expect(map.read(at: 0x600, byteCount: 4) == 0xFFFF_0201)
        #expect(map.read(at: 0x5FE, byteCount: 4) == 0x0201_FFFF)
        map.write(at: 0x600, byteCount: 4, value: 0x4433_2211)
        #expect(device.writes.values == [.init(offset: 0, byteCount: 2, value: 0x2211)])
    }

    @Test func oneDeviceCanBeInTwoPlaces() {
        let device = Pattern(widestAccess: 1)
        let map = DeviceMap([.init(0x60..<0x61, device), .init(0x64..<0x65, device, deviceOffset: 4)])
        #expect(map.read(at: 0x60, byteCount: 1) == 1)
        #expect(map.read(at: 0x64, byteCount: 1) == 5)
    }

    @Test func repeatedTransfersGoToTheSamePort() {
        let device = Pattern(widestAccess: 1)
        let bus = DeviceBus(ports: DeviceMap([.init(0x3F8..<0x400, device)]))
        var data: [UInt8] = [0x61, 0x62, 0x63]
        data.withUnsafeMutableBytes { bus.transfer(port: 0x3F8, isWrite: true, byteCount: 1, count: 3, data: $0) }
        #expect(device.writes.values.map(\.value) == [0x61, 0x62, 0x63])
        #expect(device.writes.values.allSatisfy { $0.offset == 0 })
        data = [0, 0, 0, 0]
        data.withUnsafeMutableBytes { bus.transfer(port: 0x3FE, isWrite: false, byteCount: 2, count: 2, data: $0) }
        #expect(data == [7, 8, 7, 8])
    }
}
