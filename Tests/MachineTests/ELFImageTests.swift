import Machine
import Testing

@Suite struct ELFImageTests {
    private static func parse(_ file: [UInt8]) throws -> ELFImage { try ELFImage(parsing: file.span.bytes) }

    /// The usual ELF file after `change`.
    private static func changed(_ change: (inout [UInt8]) -> Void) -> [UInt8] {
        var file = SyntheticKernel.elf(pvhEntry: 0x100_0040)
        change(&file)
        return file
    }

    @Test func readsSegmentsAndEntries() throws {
        let image = try Self.parse(SyntheticKernel.elf(pvhEntry: 0x100_0040))
        #expect(image.entry == 0x100_0000)
        #expect(image.pvhEntry == 0x100_0040)
        #expect(image.segments.map(\.physicalAddress) == [0x100_0000, 0x120_0000])
        #expect(image.segments.map(\.memoryByteCount) == [UInt64(SyntheticKernel.code.count), 70_000])
        #expect(image.physicalRange == 0x100_0000..<0x120_0000 + 70_000)
        #expect(try Self.parse(SyntheticKernel.elf(pvhEntry: 0x100_0040, pvhByteCount: 4)).pvhEntry == 0x100_0040)
        #expect(try Self.parse(SyntheticKernel.elf()).pvhEntry == nil)
    }

    @Test func virtualEntryIsTranslated() throws {
        let image = try Self.parse(SyntheticKernel.elf(entry: 0xFFFF_FFFF_8100_0123))
        #expect(image.entry == 0x100_0123)
    }

    @Test func headersEndingEarlyAreTruncated() {
        let file = SyntheticKernel.elf(pvhEntry: 0x100_0040)
        for count in [5, 63, 64, 100, 200, 100_000, file.count - 1] {
            #expect("\(count) bytes") {
                try Self.parse(Array(file.prefix(count)))
            } throws: {
                guard case .truncated = $0 as? KernelImageError else { return false }
                return true
            }
        }
    }

    @Test func otherMachinesAreUnsupported() {
        let changes: [(inout [UInt8]) -> Void] = [
            { $0[4] = 1 }, { $0[5] = 2 }, { $0.put(UInt16(183), at: 18) }, { $0.put(UInt16(1), at: 16) }
        ]
        for (index, change) in changes.enumerated() {
            #expect("change \(index)") {
                try Self.parse(Self.changed(change))
            } throws: {
                guard case .unsupported = $0 as? KernelImageError else { return false }
                return true
            }
        }
    }

    @Test func impossibleFieldsAreMalformed() {
        let changes: [(String, (inout [UInt8]) -> Void)] = [
            ("header size", { $0.put(UInt16(55), at: 54) }),
            ("no headers", { $0.put(UInt16(0), at: 56) }),
            ("extended numbering", { $0.put(UInt16(0xFFFF), at: 56) }),
            (
                "no segments",
                {
                    $0.put(UInt16(0), at: 64); $0.put(UInt16(0), at: 120)
                }
            ),
            ("file size above memory size", { $0.put(UInt64(1), at: 64 + 40) }),
            ("overlap", { $0.put(UInt64(0x100_1000), at: 120 + 24) }),
            ("wraps around", { $0.put(UInt64.max, at: 64 + 24) }),
            ("entry outside", { $0.put(UInt64(0x200), at: 24) }),
            ("entry in data", { $0.put(UInt64(0x120_0010), at: 24) }),
            ("PVH entry outside", { $0.put(UInt64(0x10), at: $0.count - 8) }),
            ("note too long", { $0.put(UInt32.max, at: $0.count - 24) })
        ]
        for (name, change) in changes {
            #expect("\(name)") {
                try Self.parse(Self.changed(change))
            } throws: {
                guard case .malformed = $0 as? KernelImageError else { return false }
                return true
            }
        }
    }

    @Test func hostileOffsetsAreTruncated() {
        let changes: [(inout [UInt8]) -> Void] = [
            { $0.put(UInt64.max, at: 32) },
            { $0.put(UInt64.max - 10, at: 64 + 8) },
            {
                $0.put(UInt64(1) << 40, at: 64 + 32); $0.put(UInt64(1) << 40, at: 64 + 40)
            },
            { $0.put(UInt64.max, at: 64 + 2 * 56 + 32) }
        ]
        for (index, change) in changes.enumerated() {
            #expect("change \(index)") {
                try Self.parse(Self.changed(change))
            } throws: {
                guard case .truncated = $0 as? KernelImageError else { return false }
                return true
            }
        }
    }

    @Test func findsTheLinuxBanner() throws {
        let linux = SyntheticKernel.elf()
        #expect(try Self.parse(linux).containsLinuxBanner(linux.span.bytes))
        var other = linux
        let banner = 64 + 2 * 56
        other[banner] = UInt8(ascii: "l")
        #expect(try !Self.parse(other).containsLinuxBanner(other.span.bytes))
    }
}
