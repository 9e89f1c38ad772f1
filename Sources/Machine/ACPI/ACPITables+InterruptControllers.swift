import Addressing

extension ACPITables {
    /// The MADT: one entry per processor, the IOAPIC, and how ISA lines reach it.
    ///
    /// A processor's unique ID is its APIC ID.
    ///
    /// > Source: ACPI 6.3, 5.2.12.
    static func interruptControllers(_ processors: [Processor]) -> ACPITable {
        var body: [UInt8] = []
        body.appendInteger(UInt32(truncatingIfNeeded: BoardLayout.localAPIC.value))
        body.appendInteger(UInt32(1))  // 8259s are there too
        for processor in processors {
            // Enabled, or else online-capable.
            let flags: UInt32 = processor.isEnabled ? 1 : 2
            if processor.id < 255 {
                body += [0, 8, UInt8(processor.id), UInt8(processor.id)]
                body.appendInteger(flags)
            } else {
                body += [9, 16, 0, 0]
                body.appendInteger(processor.id)
                body.appendInteger(flags)
                body.appendInteger(processor.id)
            }
        }
        body += [1, 12, 0, 0]
        body.appendInteger(UInt32(truncatingIfNeeded: BoardLayout.ioAPIC.value))
        body.appendInteger(UInt32(0))
        // The timer's line as the bus has it: edge-triggered, active high.
        body += override(line: 0, gsi: BoardLayout.timerGSI, flags: 0)
        let activeHighLevel: UInt16 = 0b1101
        body += override(
            line: BoardLayout.systemControlInterrupt, gsi: UInt32(BoardLayout.systemControlInterrupt),
            flags: activeHighLevel)
        // NMIs arrive at every processor's LINT1.
        body += [4, 6, 0xFF, 0, 0, 1]
        if processors.contains(where: { $0.id >= 255 }) {
            body += [10, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]
        }
        return ACPITable(signature: "APIC", revision: 5, body: body)
    }

    private static func override(line: UInt8, gsi: UInt32, flags: UInt16) -> [UInt8] {
        var bytes: [UInt8] = [2, 10, 0, line]
        bytes.appendInteger(gsi)
        bytes.appendInteger(flags)
        return bytes
    }
}
