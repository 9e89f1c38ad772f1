import Addressing

extension ACPITables {
    /// The size of a revision 6 FADT.
    static let fixedDescriptionByteCount = 276

    /// The FADT: where the fixed power-management hardware is.
    ///
    /// > Source: ACPI 6.3, 5.2.9.
    /// - Parameter control: the FACS.
    static func fixedDescription(dsdt: GuestPhysicalAddress, control: GuestPhysicalAddress) -> ACPITable {
        var fields = Fields(byteCount: fixedDescriptionByteCount)
        fields.set(UInt32(truncatingIfNeeded: control.value), at: 36)
        fields.set(UInt32(truncatingIfNeeded: dsdt.value), at: 40)
        fields.set(UInt8(4), at: 45)  // an enterprise server
        fields.set(UInt16(BoardLayout.systemControlInterrupt), at: 46)
        // No SMI command port: the machine is always in ACPI mode.
        fields.set(UInt32(BoardLayout.powerManagementEventPort), at: 56)
        fields.set(UInt32(BoardLayout.powerManagementControlPort), at: 64)
        fields.set(UInt32(BoardLayout.powerManagementTimerPort), at: 76)
        fields.set(UInt8(4), at: 88)
        fields.set(UInt8(2), at: 89)
        fields.set(UInt8(4), at: 91)
        // Latencies that mean: no C2, no C3.
        fields.set(UInt16(0xFFF), at: 96)
        fields.set(UInt16(0xFFF), at: 98)
        // IA-PC: legacy devices (the serial port), no VGA, no PCIe ASPM; no 8042 by omission.
        fields.set(UInt16(1 << 0 | 1 << 2 | 1 << 4), at: 109)
        // WBINVD works; C1 on all processors; no sleep button; no fixed RTC wake; the reset register is there. The
        // power button is fixed hardware, the timer has 24 bits: both by omission.
        fields.set(UInt32(1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10), at: 112)
        fields.setPort(BoardLayout.resetPort, byteCount: 1, at: 116)
        fields.set(BoardLayout.resetValue, at: 128)
        fields.set(UInt8(3), at: 131)  // minor version
        fields.set(dsdt.value, at: 140)
        fields.setPort(BoardLayout.powerManagementEventPort, byteCount: 4, at: 148)
        fields.setPort(BoardLayout.powerManagementControlPort, byteCount: 2, at: 172)
        fields.setPort(BoardLayout.powerManagementTimerPort, byteCount: 4, at: 208)
        return ACPITable(signature: "FACP", revision: 6, body: fields.body)
    }

    /// A table body whose fields are set by their offset in the table.
    private struct Fields {
        private(set) var body: [UInt8]

        init(byteCount: Int) { body = [UInt8](repeating: 0, count: byteCount - ACPITable.headerByteCount) }

        mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
            let start = offset - ACPITable.headerByteCount
            for index in 0..<MemoryLayout<T>.size {
                body[start + index] = UInt8(truncatingIfNeeded: value >> (8 * T(index)))
            }
        }

        /// A generic address structure: a port block of `byteCount` bytes.
        mutating func setPort(_ port: UInt16, byteCount: UInt8, at offset: Int) {
            let isSystemIO: UInt8 = 1
            set(isSystemIO, at: offset)
            set(byteCount * 8, at: offset + 1)
            set(UInt8(0), at: offset + 2)
            // The access size is a power of two's exponent plus one.
            set(UInt8(byteCount.trailingZeroBitCount + 1), at: offset + 3)
            set(UInt64(port), at: offset + 4)
        }
    }
}
