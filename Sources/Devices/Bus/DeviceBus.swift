/// The devices of a machine that are at ports.
public struct DeviceBus: Sendable {
    public let ports: DeviceMap

    public init(ports: DeviceMap) { self.ports = ports }

    /// Performs one exit's worth of port transfers: `count` of `byteCount` bytes each, one behind the other in `data`,
    /// all at the same port.
    public func transfer(
        port: UInt16, isWrite: Bool, byteCount: Int, count: Int, data: UnsafeMutableRawBufferPointer
    ) {
        for index in 0..<count {
            let part = UnsafeMutableRawBufferPointer(rebasing: data[(index * byteCount)..<((index + 1) * byteCount)])
            transfer(at: UInt64(port), isWrite: isWrite, data: part)
        }
    }

    private func transfer(at port: UInt64, isWrite: Bool, data: UnsafeMutableRawBufferPointer) {
        if isWrite {
            var value: UInt64 = 0
            for byte in data.reversed() { value = value << 8 | UInt64(byte) }
            ports.write(at: port, byteCount: data.count, value: value)
        } else {
            let value = ports.read(at: port, byteCount: data.count)
            for index in data.indices { data[index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
    }
}
