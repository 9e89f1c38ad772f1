import KVMInterface

/// How interrupt lines reach the board's controllers.
enum BoardInterrupts {
    private static var ioapicPinCount: UInt32 { 24 }

    /// The lines of ISA devices go to both PICs and to the IOAPIC, the others to the IOAPIC only. The timer's line arrives at
    /// the IOAPIC where the ACPI tables say; line 2 of the PIC carries the second one.
    static var routes: [IRQRoutingEntry] {
        var routes: [IRQRoutingEntry] = []
        for line in 0..<ioapicPinCount where line != BoardLayout.timerGSI {
            if line < 8 { routes.append(.irqChip(gsi: line, chip: .picMaster, pin: line)) }
            if line >= 8, line < 16 { routes.append(.irqChip(gsi: line, chip: .picSlave, pin: line - 8)) }
            routes.append(.irqChip(gsi: line, chip: .ioapic, pin: line == 0 ? BoardLayout.timerGSI : line))
        }
        return routes
    }
}
