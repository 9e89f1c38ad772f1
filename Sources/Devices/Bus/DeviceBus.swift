/// All devices of a machine: those at ports and those in memory.
public struct DeviceBus: Sendable {
    public let ports: DeviceMap
    public let memory: DeviceMap

    public init(ports: DeviceMap, memory: DeviceMap) {
        self.ports = ports
        self.memory = memory
    }

    /// Performs one exit's worth of port transfers: `count` of `byteCount` bytes each, one behind the other in `data`,
    /// all at the same port.
    public func transfer(
        port: UInt16, isWrite: Bool, byteCount: Int, count: Int, data: UnsafeMutableRawBufferPointer
    ) {
        for index in 0..<count {
            let part = UnsafeMutableRawBufferPointer(rebasing: data[(index * byteCount)..<((index + 1) * byteCount)])
            transfer(in: ports, at: UInt64(port), isWrite: isWrite, data: part)
        }
    }

    /// Performs a memory-mapped access of `data.count` (1…8) bytes.
    public func transfer(address: UInt64, isWrite: Bool, data: UnsafeMutableRawBufferPointer) {
        transfer(in: memory, at: address, isWrite: isWrite, data: data)
    }

    private func transfer(in map: DeviceMap, at address: UInt64, isWrite: Bool, data: UnsafeMutableRawBufferPointer) {
        if isWrite {
            var value: UInt64 = 0
            for byte in data.reversed() { value = value << 8 | UInt64(byte) }
            map.write(at: address, byteCount: data.count, value: value)
        } else {
            let value = map.read(at: address, byteCount: data.count)
            for index in data.indices { data[index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
    }
}
