import Addressing

/// Where everything on the board is: RAM, the device hole, ports, interrupt lines and the pages the loader writes.
///
/// The loader, the ACPI tables and the devices all take their addresses from here.
///
///     0 ─ 0xA0000             RAM; the loader's pages below 0x30000, an empty EBDA at 0x9FC00
///     0xA0000 ─ 0xE0000       nothing the guest may use
///     0xE0000 ─ 0x100000      "BIOS": the ACPI root pointer
///     0x100000 ─ low end      RAM; ACPI tables in its last pages, the initramfs below them
///     low end ─ 4 GiB         the hole: device windows, IOAPIC, local APIC, KVM's own pages
///     4 GiB ─                 the rest of the RAM
public enum BoardLayout {
    // MARK: RAM

    /// RAM below this address is low RAM; the hole for devices begins here at the latest.
    public static var holeStart: GuestPhysicalAddress { GuestPhysicalAddress(0xC000_0000) }

    /// The RAM that does not fit below the hole continues here.
    public static var highRAMStart: GuestPhysicalAddress { GuestPhysicalAddress(0x1_0000_0000) }

    /// The most RAM a guest can have: what 46 address bits leave above the hole.
    public static var maximumRAMByteCount: UInt64 { 1 << 45 }

    /// The guest's address ranges that are RAM, lowest first.
    ///
    /// - Parameter byteCount: the size of the RAM, a multiple of 4096, at most ``maximumRAMByteCount``.
    public static func ramRanges(byteCount: UInt64) -> [Range<GuestPhysicalAddress>] {
        precondition(byteCount.isMultiple(of: pageSize) && byteCount <= maximumRAMByteCount, "a size no guest can have")
        let low = min(byteCount, holeStart.value)
        var ranges = [GuestPhysicalAddress(0)..<GuestPhysicalAddress(low)]
        if byteCount > low { ranges.append(highRAMStart..<highRAMStart + (byteCount - low)) }
        return ranges
    }

    // MARK: The hole

    /// Where memory-mapped devices may be placed.
    public static var deviceWindow: Range<GuestPhysicalAddress> {
        holeStart..<GuestPhysicalAddress(0xFEC0_0000)
    }

    public static var ioAPIC: GuestPhysicalAddress { GuestPhysicalAddress(0xFEC0_0000) }
    public static var localAPIC: GuestPhysicalAddress { GuestPhysicalAddress(0xFEE0_0000) }

    /// The page of `KVM_SET_IDENTITY_MAP_ADDR`.
    public static var identityMap: GuestPhysicalAddress { GuestPhysicalAddress(0xFFFB_C000) }

    /// The three pages of `KVM_SET_TSS_ADDR`.
    public static var taskState: GuestPhysicalAddress { GuestPhysicalAddress(0xFFFB_D000) }

    // MARK: Ports and interrupt lines

    /// The PM1a event block: status at +0, enable at +2; 4 bytes.
    public static var powerManagementEventPort: UInt16 { 0x600 }

    /// The PM1a control block, 2 bytes. `SLP_EN` with ``softOffSleepType`` turns the machine off.
    public static var powerManagementControlPort: UInt16 { 0x604 }

    /// The power-management timer, 3.579545 MHz, 24 bits in a 4-byte port.
    public static var powerManagementTimerPort: UInt16 { 0x608 }

    /// `SLP_TYP` in PM1a control for S5.
    public static var softOffSleepType: UInt8 { 5 }

    /// The reset register, one byte; writing ``resetValue`` resets the machine.
    public static var resetPort: UInt16 { 0xCF9 }
    public static var resetValue: UInt8 { 0x06 }

    public static var serialPort: UInt16 { 0x3F8 }
    public static var serialInterrupt: UInt8 { 4 }
    public static var realTimeClockPort: UInt16 { 0x70 }
    public static var realTimeClockInterrupt: UInt8 { 8 }

    /// The system control interrupt, level-triggered, active high.
    public static var systemControlInterrupt: UInt8 { 9 }

    /// The timer's ISA line 0 arrives at this GSI.
    public static var timerGSI: UInt32 { 2 }

    // MARK: Pages the loader writes

    /// The global descriptor table of the entry state.
    package static var descriptorTable: GuestPhysicalAddress { GuestPhysicalAddress(0x1000) }

    /// `hvm_start_info`, its module list and its memory map; one page.
    package static var startInfo: GuestPhysicalAddress { GuestPhysicalAddress(0x2000) }

    /// `boot_params`, one page.
    package static var bootParameters: GuestPhysicalAddress { GuestPhysicalAddress(0x7000) }

    /// The end of a page of stack for the entry state.
    package static var stackEnd: GuestPhysicalAddress { GuestPhysicalAddress(0x9000) }

    /// Six pages: one level 4 table, one level 3 table, four level 2 tables of 2 MiB pages.
    package static var pageTables: GuestPhysicalAddress { GuestPhysicalAddress(0x9000) }

    /// The kernel's command line with its NUL.
    package static var commandLine: Range<GuestPhysicalAddress> {
        GuestPhysicalAddress(0x2_0000)..<GuestPhysicalAddress(0x3_0000)
    }

    /// The extended BIOS data area, empty; conventional memory ends here.
    package static var extendedBIOSData: GuestPhysicalAddress { GuestPhysicalAddress(0x9_FC00) }

    /// Legacy video memory and ROMs: neither RAM nor reserved.
    package static var legacyVideo: Range<GuestPhysicalAddress> {
        GuestPhysicalAddress(0xA_0000)..<GuestPhysicalAddress(0xE_0000)
    }

    /// Where firmware would be; the ACPI root pointer is at its start.
    package static var firmware: Range<GuestPhysicalAddress> {
        GuestPhysicalAddress(0xE_0000)..<GuestPhysicalAddress(0x10_0000)
    }

    /// Kernels are loaded from here up.
    package static var extendedMemoryStart: GuestPhysicalAddress { GuestPhysicalAddress(0x10_0000) }
}
