/// The part of an ELF file that concerns loading a kernel: segments, entry points, notes.
///
/// It holds no bytes of the file. Every size and offset it keeps was checked against the file it was parsed from.
package struct ELFImage: Equatable, Sendable {
    package struct Segment: Equatable, Sendable {
        /// Where its bytes are in the file.
        package var file: Range<Int>
        package var physicalAddress: UInt64
        package var virtualAddress: UInt64
        /// At least the size in the file; the rest is zero.
        package var memoryByteCount: UInt64
        package var isExecutable: Bool

        package var physicalEnd: UInt64 { physicalAddress + memoryByteCount }
    }

    package static let magic: [UInt8] = [0x7F, 0x45, 0x4C, 0x46]

    /// The loadable segments with any memory, lowest physical address first, not overlapping.
    package var segments: [Segment] = []
    /// The entry as a physical address, inside an executable segment.
    package var entry: UInt64
    /// The 32-bit entry of the PVH protocol.
    package var pvhEntry: UInt64?
    /// It names an interpreter: a program for an operating system.
    package var isUserProgram = false

    /// The memory from the first segment to the last.
    package var physicalRange: Range<UInt64> {
        guard let first = segments.first, let last = segments.last else { return 0..<0 }
        return first.physicalAddress..<last.physicalEnd
    }

    /// Reads the headers of `file`, which begins with ``magic``.
    package init(parsing file: RawSpan) throws(KernelImageError) {
        let size = UInt64(file.byteCount)
        func field<T: FixedWidthInteger & BitwiseCopyable>(
            _ offset: Int, _: T.Type, _ part: KernelImageError.Part
        ) throws(KernelImageError) -> T {
            if let value = file.integer(at: offset, as: T.self) { return value }
            throw .truncated(part: part, needed: UInt64(offset + MemoryLayout<T>.size), actual: size)
        }
        try Self.checkKind(file)
        entry = try field(24, UInt64.self, .elfHeader)
        let tableOffset = try field(32, UInt64.self, .elfHeader)
        let entrySize = UInt64(try field(54, UInt16.self, .elfHeader))
        let entryCount = UInt64(try field(56, UInt16.self, .elfHeader))
        guard entrySize >= 56 else {
            throw .malformed(part: .elfHeader, detail: "program headers have \(entrySize) bytes, expected 56")
        }
        guard entryCount > 0, entryCount < 0xFFFF else {
            throw .malformed(part: .elfHeader, detail: "there are \(entryCount) program headers")
        }
        guard let table = file.offsets(at: tableOffset, count: entrySize * entryCount) else {
            let end = tableOffset.addingReportingOverflow(entrySize * entryCount)
            throw .truncated(part: .programHeaders, needed: end.overflow ? .max : end.partialValue, actual: size)
        }
        var notes: [(range: Range<Int>, alignment: UInt64)] = []
        for header in stride(from: table.lowerBound, to: table.upperBound, by: Int(entrySize)) {
            switch try field(header, UInt32.self, .programHeaders) {
            case 1:
                if let segment = try Self.segment(at: header, in: file) { segments.append(segment) }
            case 3:
                isUserProgram = true
            case 4:
                let offset = try field(header + 8, UInt64.self, .programHeaders)
                let count = try field(header + 32, UInt64.self, .programHeaders)
                guard let range = file.offsets(at: offset, count: count) else {
                    let end = offset.addingReportingOverflow(count)
                    throw .truncated(part: .note, needed: end.overflow ? .max : end.partialValue, actual: size)
                }
                notes.append((range, try field(header + 48, UInt64.self, .programHeaders) == 8 ? 8 : 4))
            default:
                break
            }
        }
        guard !segments.isEmpty else {
            throw .malformed(part: .programHeaders, detail: "there is no loadable segment")
        }
        segments.sort { $0.physicalAddress < $1.physicalAddress }
        for (lower, upper) in zip(segments, segments.dropFirst()) where lower.physicalEnd > upper.physicalAddress {
            throw .malformed(
                part: .programHeaders, detail: "two segments overlap at \(hexadecimal(upper.physicalAddress))")
        }
        entry = try physicalEntry(entry)
        for note in notes where pvhEntry == nil {
            pvhEntry = try Self.pvhEntry(in: file, note.range, alignment: note.alignment)
        }
        if let pvhEntry, !isExecutable(pvhEntry) || pvhEntry > UInt32.max {
            throw .malformed(
                part: .note, detail: "the PVH entry \(hexadecimal(pvhEntry)) is in no executable segment below 4 GiB")
        }
    }

    private static func checkKind(_ file: RawSpan) throws(KernelImageError) {
        guard file.byteCount >= 64 else {
            throw .truncated(part: .elfHeader, needed: 64, actual: UInt64(file.byteCount))
        }
        guard file.integer(at: 4, as: UInt8.self) == 2 else {
            throw .unsupported(detail: "it is a 32-bit ELF file, expected a 64-bit one; use an x86-64 (amd64) kernel")
        }
        let machine = file.integer(at: 18, as: UInt16.self) ?? 0
        guard file.integer(at: 5, as: UInt8.self) == 1, machine == 62 else {
            throw .unsupported(
                detail: "it is an ELF file for machine \(machine), expected x86-64 (62); use an x86-64 (amd64) kernel")
        }
        let type = file.integer(at: 16, as: UInt16.self) ?? 0
        guard type == 2 || type == 3 else {
            throw .unsupported(
                detail:
                    "it is an ELF file of type \(type), expected an executable (2 or 3); use vmlinux, not an object file"
            )
        }
    }

    /// The loadable segment that the program header at `header` describes; nil if it takes no memory.
    private static func segment(at header: Int, in file: RawSpan) throws(KernelImageError) -> Segment? {
        guard let flags = file.integer(at: header + 4, as: UInt32.self),
            let offset = file.integer(at: header + 8, as: UInt64.self),
            let virtualAddress = file.integer(at: header + 16, as: UInt64.self),
            let physicalAddress = file.integer(at: header + 24, as: UInt64.self),
            let fileByteCount = file.integer(at: header + 32, as: UInt64.self),
            let memoryByteCount = file.integer(at: header + 40, as: UInt64.self)
        else {
            throw .truncated(part: .programHeaders, needed: UInt64(header) + 56, actual: UInt64(file.byteCount))
        }
        guard memoryByteCount > 0 else { return nil }
        guard fileByteCount <= memoryByteCount else {
            throw .malformed(
                part: .programHeaders,
                detail: "a segment has \(fileByteCount) bytes in the file but \(memoryByteCount) in memory")
        }
        guard let range = file.offsets(at: offset, count: fileByteCount) else {
            let end = offset.addingReportingOverflow(fileByteCount)
            throw .truncated(
                part: .segment, needed: end.overflow ? .max : end.partialValue, actual: UInt64(file.byteCount))
        }
        guard !physicalAddress.addingReportingOverflow(memoryByteCount).overflow else {
            throw .malformed(
                part: .programHeaders,
                detail: "a segment at \(hexadecimal(physicalAddress)) wraps around the address space")
        }
        return Segment(
            file: range, physicalAddress: physicalAddress, virtualAddress: virtualAddress,
            memoryByteCount: memoryByteCount, isExecutable: flags & 1 != 0)
    }

    /// `entry` as a physical address: kernels give that, or else the virtual address of the same byte.
    private func physicalEntry(_ entry: UInt64) throws(KernelImageError) -> UInt64 {
        if isExecutable(entry) { return entry }
        for segment in segments where segment.isExecutable && entry >= segment.virtualAddress {
            let offset = entry - segment.virtualAddress
            if offset < segment.memoryByteCount { return segment.physicalAddress + offset }
        }
        throw .malformed(part: .elfHeader, detail: "the entry \(hexadecimal(entry)) is in no executable segment")
    }

    private func isExecutable(_ address: UInt64) -> Bool {
        segments.contains { $0.isExecutable && $0.physicalAddress <= address && address < $0.physicalEnd }
    }

    /// The `XEN_ELFNOTE_PHYS32_ENTRY` among the notes in `range`; nil if there is none.
    ///
    /// > Source: xen/include/public/elfnote.h.
    private static func pvhEntry(
        in file: RawSpan, _ range: Range<Int>, alignment: UInt64
    ) throws(KernelImageError) -> UInt64? {
        let end = UInt64(range.upperBound)
        var position = UInt64(range.lowerBound)
        func padded(_ count: UInt32) -> UInt64 { (UInt64(count) + alignment - 1) & ~(alignment - 1) }
        while end - position >= 12 {
            guard let nameByteCount = file.integer(at: Int(position), as: UInt32.self),
                let byteCount = file.integer(at: Int(position) + 4, as: UInt32.self),
                let type = file.integer(at: Int(position) + 8, as: UInt32.self)
            else { break }
            // The description begins at the alignment's next multiple from the note's start.
            let name = position + 12
            let description = position + ((12 + UInt64(nameByteCount) + alignment - 1) & ~(alignment - 1))
            guard description <= end, UInt64(byteCount) <= end - description else {
                throw .malformed(part: .note, detail: "a note reaches beyond its segment")
            }
            if type == 18, nameByteCount == 4, file.matches([0x58, 0x65, 0x6E, 0], at: Int(name)) {
                if byteCount >= 8, let value = file.integer(at: Int(description), as: UInt64.self) { return value }
                if byteCount >= 4, let value = file.integer(at: Int(description), as: UInt32.self) {
                    return UInt64(value)
                }
                throw .malformed(part: .note, detail: "the PVH entry has \(byteCount) bytes, expected 4 or 8")
            }
            position = min(description + padded(byteCount), end)
        }
        return nil
    }
}
