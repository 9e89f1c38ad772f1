import Addressing

/// What each part of the guest's physical memory is for, as firmware would tell it (e820).
public struct MemoryMap: Equatable, Sendable {
    public enum Kind: UInt32, Sendable {
        // The values of the e820 interface, which `hvm_start_info` shares.
        case ram = 1
        case reserved = 2
        /// Holds ACPI tables; RAM once the guest has read them.
        case acpiTables = 3
        /// Belongs to ACPI for good.
        case acpiStorage = 4
    }

    public struct Entry: Equatable, Sendable {
        public var range: Range<GuestPhysicalAddress>
        public var kind: Kind
    }

    /// Lowest first, not overlapping, none empty.
    public private(set) var entries: [Entry]

    /// The map of a board with nothing but `ram`.
    init(ram: [Range<GuestPhysicalAddress>]) {
        entries = ram.filter { !$0.isEmpty }.map { Entry(range: $0, kind: .ram) }
        entries.sort { $0.range.lowerBound < $1.range.lowerBound }
    }

    /// Makes `range` of `kind`, or of no kind at all, whatever it was before.
    mutating func set(_ range: Range<GuestPhysicalAddress>, to kind: Kind?) {
        guard !range.isEmpty else { return }
        entries = entries.flatMap { entry -> [Entry] in
            let (start, end) = (entry.range.lowerBound, entry.range.upperBound)
            let below = start..<max(start, min(end, range.lowerBound))
            let above = min(end, max(start, range.upperBound))..<end
            return [below, above].filter { !$0.isEmpty }.map { Entry(range: $0, kind: entry.kind) }
        }
        if let kind { entries.append(Entry(range: range, kind: kind)) }
        entries.sort { $0.range.lowerBound < $1.range.lowerBound }
    }
}

extension MemoryMap {
    /// The map of this board.
    ///
    /// - Parameters:
    ///   - tables: where the ACPI tables are.
    ///   - storage: where ACPI's firmware control structure is.
    init(ram: GuestRAM, tables: Range<GuestPhysicalAddress>, storage: Range<GuestPhysicalAddress>) {
        self.init(ram: ram.regions.map(\.range))
        set(BoardLayout.extendedBIOSData..<BoardLayout.legacyVideo.lowerBound, to: .reserved)
        set(BoardLayout.legacyVideo, to: nil)
        set(BoardLayout.firmware, to: .reserved)
        set(tables, to: .acpiTables)
        set(storage, to: .acpiStorage)
        set(BoardLayout.ioAPIC..<BoardLayout.highRAMStart, to: .reserved)
    }
}
