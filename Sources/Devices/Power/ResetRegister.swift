import Host

/// The reset control register, the second byte of the ports 0xCF8–0xCFB: setting bit 2 resets the machine.
///
/// It shares its ports with the PCI configuration address, which is reached by 4-byte accesses only. There is no PCI
/// here, but a guest that looks for it must not reset the machine.
///
/// > Source: ACPI specification 6.5, section 4.8.3.6; Intel ICH9 data sheet, section 13.7.5.
public final class ResetRegister: Device {
    private let value = Locked<UInt8>(0)
    private let reset: @Sendable () -> Void

    public init(reset: @escaping @Sendable () -> Void) { self.reset = reset }

    /// The number of ports, from 0xCF8.
    public static var portCount: UInt64 { 4 }

    /// The register among them.
    private static var registerOffset: Int { 1 }

    public var widestAccess: Int { 4 }

    public func read(at offset: Int, byteCount: Int) -> UInt64 {
        guard offset == Self.registerOffset else { return .max >> UInt64(64 - 8 * byteCount) }
        return UInt64(value.withLock { $0 })
    }

    public func write(at offset: Int, byteCount: Int, value: UInt64) {
        guard offset == Self.registerOffset else { return }
        self.value.withLock { $0 = UInt8(truncatingIfNeeded: value) & 0x0A }
        if value & 0x04 != 0 { reset() }
    }
}
