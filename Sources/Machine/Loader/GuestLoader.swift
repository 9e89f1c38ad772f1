import Addressing

/// Puts a kernel, its initramfs and the tables it reads into guest RAM, and says how the first vCPU starts.
///
/// It stands for firmware and boot loader. The host unpacks the kernel by default: native code is faster than the
/// guest's, and a kernel loaded where it is linked needs no relocation.
///
/// > Concurrency: no vCPU may run while ``load(into:)`` writes.
public struct GuestLoader: Sendable {
    /// Who unpacks a bzImage's compressed kernel.
    public enum Unpack: String, Sendable, CaseIterable {
        /// The loader does, and enters the kernel proper.
        case host
        /// The kernel's own decompressor does, inside the guest; any compression will do.
        case guest
    }

    /// How a kernel is entered.
    public enum EntryProtocol: String, Sendable, CaseIterable {
        /// PVH for an ELF file that offers it, else the 64-bit Linux protocol.
        case automatic
        /// The 64-bit Linux boot protocol.
        case linux64
        /// The Xen project's PVH protocol.
        case pvh
    }

    /// Nil is an error of its own: the user named no kernel.
    public var kernel: BootSource?
    public var initramfs: BootSource?
    public var commandLine: String
    public var unpack: Unpack
    public var entry: EntryProtocol
    /// The processors for the ACPI tables; the first starts the guest.
    public var processors: [ACPITables.Processor]
    public var devices: [ACPIDevice]

    public init(
        kernel: BootSource?, initramfs: BootSource? = nil, commandLine: String = "", unpack: Unpack = .host,
        entry: EntryProtocol = .automatic, processors: [ACPITables.Processor] = [.init(id: 0)],
        devices: [ACPIDevice] = [.serialPort, .realTimeClock]
    ) {
        self.kernel = kernel
        self.initramfs = initramfs
        self.commandLine = commandLine
        self.unpack = unpack
        self.entry = entry
        self.processors = processors
        self.devices = devices
    }

    /// The least low RAM the loader works with; any real kernel needs more.
    static let minimumLowRAMByteCount: UInt64 = 4 << 20

    /// The largest kernel file it reads; debugging information can be large.
    static let kernelFileLimit: UInt64 = 2 << 30

    /// Loads everything.
    ///
    /// RAM that it does not write keeps its contents, so the same guest can be loaded again after a reset.
    /// - Throws: ``BootError``, one case for each thing that can be wrong. RAM may have been written by then.
    public func load(into ram: GuestRAM) throws(BootError) -> LoadedGuest {
        guard let kernel else { throw .noKernel }
        guard !processors.isEmpty else { throw .noProcessor }
        guard processors.count <= ACPITables.processorLimit else {
            throw .tooManyProcessors(count: processors.count, limit: ACPITables.processorLimit)
        }
        guard !commandLine.utf8.contains(0) else { throw .commandLineHasNUL }
        guard ram.lowEnd.value >= Self.minimumLowRAMByteCount else { throw .noLowMemory(given: ram.lowEnd.value) }

        let tables = ACPITables(processors: processors, devices: devices)
        let tablesEnd = GuestPhysicalAddress(min(ram.lowEnd, BoardLayout.holeStart).value & ~(pageSize - 1))
        let placement = tables.place(endingAt: tablesEnd)
        let map = MemoryMap(ram: ram, tables: placement.tables.range, storage: placement.storage.range)
        guard map.entries.count <= BootParameters.memoryMapLimit else {
            throw .tooManyRAMRegions(count: map.entries.count, limit: BootParameters.memoryMapLimit)
        }
        let usable = BoardLayout.extendedMemoryStart..<placement.tables.range.lowerBound
        let placed = try placeKernel(kernel, in: ram, usable: usable, aboveUsable: tables.byteCount)
        let initramfsRange = try placeInitramfs(in: ram, usable: usable, kernel: placed)

        let state: BootState
        do {
            try writeCommandLine(to: ram, limit: placed.header?.commandLineLimit)
            try ram.write(placement.rootPointer.bytes, at: placement.rootPointer.address)
            try ram.write(placement.tables.bytes, at: placement.tables.range.lowerBound)
            try ram.write(placement.storage.bytes, at: placement.storage.range.lowerBound)
            try writeBIOSData(to: ram)
            if let entry = placed.pvhEntry {
                let info = PVHStartInfo(
                    commandLine: BoardLayout.commandLine.lowerBound, initramfs: initramfsRange,
                    rootPointer: placement.rootPointer.address, memoryMap: map)
                try ram.write(info.bytes(at: BoardLayout.startInfo), at: BoardLayout.startInfo)
                state = .pvh(entry: entry)
            } else {
                var parameters = BootParameters(header: placed.header)
                parameters.setCommandLine(BoardLayout.commandLine.lowerBound)
                parameters.setRootPointer(placement.rootPointer.address)
                parameters.setMemoryMap(map)
                if placed.unpacksItself { parameters.setLoadAddress(placed.range.lowerBound) }
                if let initramfsRange { parameters.setInitramfs(initramfsRange) }
                try ram.write(parameters.bytes, at: BoardLayout.bootParameters)
                state = .linux64(entry: placed.entry)
            }
            try state.writeTables(to: ram)
        } catch let error as BootError {
            throw error
        } catch {
            // Everything written here is below the low end that was checked.
            preconditionFailure("the board's own pages are not in RAM")
        }
        return LoadedGuest(
            state: state, kernelRange: placed.range, initramfsRange: initramfsRange, memoryMap: map,
            kernelVersion: placed.header?.kernelVersion, compression: placed.compression)
    }

    // MARK: Small pages

    private func writeCommandLine(to ram: GuestRAM, limit: UInt32?) throws {
        let room = UInt64(BoardLayout.commandLine.upperBound.value - BoardLayout.commandLine.lowerBound.value) - 1
        let limit = Int(min(room, UInt64(limit ?? BootParameters.usualCommandLineLimit)))
        let bytes = Array(commandLine.utf8)
        guard bytes.count <= limit else { throw BootError.commandLineTooLong(byteCount: bytes.count, limit: limit) }
        try ram.write(bytes + [0], at: BoardLayout.commandLine.lowerBound)
    }

    /// The two words of the BIOS data area by which guests find the end of conventional memory.
    private func writeBIOSData(to ram: GuestRAM) throws(GuestRAM.OutsideRAM) {
        let extended = BoardLayout.extendedBIOSData.value
        try ram.write(UInt16(truncatingIfNeeded: extended >> 4), at: GuestPhysicalAddress(0x40E))
        try ram.write(UInt16(truncatingIfNeeded: extended >> 10), at: GuestPhysicalAddress(0x413))
    }
}

/// A guest ready to start.
public struct LoadedGuest: Sendable {
    /// How the first vCPU starts.
    public let state: BootState
    /// The memory the kernel takes until it manages memory itself.
    public let kernelRange: Range<GuestPhysicalAddress>
    public let initramfsRange: Range<GuestPhysicalAddress>?
    public let memoryMap: MemoryMap
    /// The version string of a bzImage.
    public let kernelVersion: String?
    /// What the host unpacked; nil if it unpacked nothing.
    public let compression: PayloadCompression?
}
