/// A port for a guest's debugging output: what is written goes out, reads tell that the port is there.
///
/// > Source: the convention of port 0xE9 of Bochs, also QEMU's `isa-debugcon`.
public final class DebugPort: Device {
    private let transmit: @Sendable (UInt8) -> Void

    /// - Parameter transmit: takes each byte; may be called by several threads at once.
    public init(transmit: @escaping @Sendable (UInt8) -> Void) { self.transmit = transmit }

    public var widestAccess: Int { 1 }

    public func read(at offset: Int, byteCount: Int) -> UInt64 { 0xE9 }

    public func write(at offset: Int, byteCount: Int, value: UInt64) { transmit(UInt8(truncatingIfNeeded: value)) }
}
