import Addressing

/// The ACPI tables that describe the board: processors, interrupt controllers, power management and fixed devices.
///
/// Written as bytes, at addresses chosen after their size is known: the root pointer in the firmware area, the
/// tables and the firmware control structure wherever the caller has room.
public struct ACPITables: Sendable {
    /// A processor in the MADT.
    public struct Processor: Equatable, Sendable {
        /// The APIC ID; from 255 on only x2APIC can address it.
        public var id: UInt32
        /// It is there at boot. If not, the guest may bring it up when it is plugged in.
        public var isEnabled: Bool

        public init(id: UInt32, isEnabled: Bool = true) {
            self.id = id
            self.isEnabled = isEnabled
        }
    }

    /// The most processors the tables describe.
    public static let processorLimit = 4096

    let dsdt: ACPITable
    let madt: ACPITable

    /// - Parameters:
    ///   - processors: at least one, at most ``processorLimit``; the first starts the guest.
    ///   - devices: what the DSDT describes.
    public init(processors: [Processor], devices: [ACPIDevice] = [.serialPort, .realTimeClock]) {
        precondition(!processors.isEmpty && processors.count <= Self.processorLimit, "a count no table holds")
        madt = Self.interruptControllers(processors)
        dsdt = Self.differentiatedDescription(devices)
    }

    /// The tables in place.
    package struct Placement: Sendable {
        /// Where the root pointer goes and what it is.
        package var rootPointer: (address: GuestPhysicalAddress, bytes: [UInt8])
        /// The tables, whole pages.
        package var tables: (range: Range<GuestPhysicalAddress>, bytes: [UInt8])
        /// The firmware control structure, a page.
        package var storage: (range: Range<GuestPhysicalAddress>, bytes: [UInt8])
    }

    /// The memory that ``place(endingAt:)`` takes, whole pages.
    package var byteCount: UInt64 { tablesByteCount + pageSize }

    private var tablesByteCount: UInt64 {
        let count = [madt.bytes.count, dsdt.bytes.count, Self.fixedDescriptionByteCount, Self.rootTableByteCount]
            .reduce(0) { $0 + Self.aligned($1) }
        return (UInt64(count) + pageSize - 1) & ~(pageSize - 1)
    }

    /// The tables for guest memory that ends at `end`, a page boundary below 4 GiB.
    package func place(endingAt end: GuestPhysicalAddress) -> Placement {
        precondition(
            end.offsetInPage == 0 && end.value >= byteCount && end <= BoardLayout.highRAMStart, "no place for tables")
        let storage = GuestPhysicalAddress(end.value - pageSize)
        let start = GuestPhysicalAddress(end.value - byteCount)
        var bytes: [UInt8] = []
        func append(_ table: ACPITable) -> GuestPhysicalAddress {
            let address = start + UInt64(bytes.count)
            bytes += table.bytes
            bytes += [UInt8](repeating: 0, count: Self.aligned(bytes.count) - bytes.count)
            return address
        }
        let dsdtAddress = append(dsdt)
        let fadtAddress = append(Self.fixedDescription(dsdt: dsdtAddress, control: storage))
        let madtAddress = append(madt)
        let root = append(Self.rootTable([fadtAddress, madtAddress]))
        return Placement(
            rootPointer: (BoardLayout.firmware.lowerBound, Self.rootPointer(to: root)),
            tables: (start..<storage, bytes),
            storage: (storage..<end, Self.firmwareControl))
    }

    private static func aligned(_ count: Int) -> Int { (count + 63) & ~63 }

    // MARK: Roots

    private static let rootTableByteCount = ACPITable.headerByteCount + 2 * 8

    /// The XSDT.
    private static func rootTable(_ tables: [GuestPhysicalAddress]) -> ACPITable {
        var body: [UInt8] = []
        for table in tables { body.appendInteger(table.value) }
        return ACPITable(signature: "XSDT", revision: 1, body: body)
    }

    /// The RSDP, revision 2.
    private static func rootPointer(to table: GuestPhysicalAddress) -> [UInt8] {
        var bytes = Array("RSD PTR ".utf8)
        bytes.append(0)
        bytes += Array("MARTLT".utf8)
        bytes.append(2)
        bytes.appendInteger(UInt32(0))  // no RSDT
        bytes[8] = ACPITable.checksum(bytes)
        bytes.appendInteger(UInt32(36))
        bytes.appendInteger(table.value)
        bytes += [0, 0, 0, 0]
        bytes[32] = ACPITable.checksum(bytes)
        return bytes
    }

    /// The FACS: no waking vector, a free global lock.
    private static var firmwareControl: [UInt8] {
        var bytes = Array("FACS".utf8)
        bytes.appendInteger(UInt32(64))
        bytes += [UInt8](repeating: 0, count: 24)
        bytes.append(2)
        return bytes + [UInt8](repeating: 0, count: 64 - bytes.count)
    }

    // MARK: DSDT

    private static func differentiatedDescription(_ devices: [ACPIDevice]) -> ACPITable {
        let softOff = AML.name(
            "\\_S5",
            AML.package([AML.integer(UInt64(BoardLayout.softOffSleepType)), [0], [0], [0]]))
        let body = softOff + AML.scope("\\_SB", devices.flatMap(\.aml))
        return ACPITable(signature: "DSDT", revision: 2, body: body)
    }
}
