import Machine
import TestSupport
import Testing

@Suite struct PayloadCompressionTests {
    private static func unpack(_ payload: [UInt8], limit: Int = 1 << 30) throws -> [UInt8] {
        let bytes = payload.span.bytes
        let output = try PayloadCompression(of: bytes).unpack(bytes, limit: limit)
        return output.bytes.array(0..<output.count) ?? []
    }

    /// Not repetitive, so that truncation hits real data.
    private static let contents: [UInt8] = {
        var generator = SeededGenerator(seed: 7)
        return ELFImage.magic + (0..<200_000).map { _ in UInt8(truncatingIfNeeded: generator.next() & 0x3F) }
    }()

    @Test(arguments: PayloadCompression.allCases)
    func unpacksWhatTheKernelBuildPacks(_ compression: PayloadCompression) throws {
        let packed = SyntheticKernel.pack(Self.contents, compression)
        #expect(try PayloadCompression(of: packed.span.bytes) == compression)
        #expect(try Self.unpack(packed) == Self.contents)
    }

    @Test func unpacksSeveralLZ4Blocks() throws {
        let contents = ELFImage.magic + [UInt8].pattern(17 << 20)
        #expect(try Self.unpack(SyntheticKernel.pack(contents, .lz4)) == contents)
    }

    @Test func unpacksWithoutAppendedSize() throws {
        for compression in [PayloadCompression.lz4, .xz, .zstandard] {
            let packed = Array(SyntheticKernel.pack(Self.contents, compression).dropLast(4))
            #expect(try Self.unpack(packed) == Self.contents)
        }
    }

    @Test(arguments: [PayloadCompression.lz4, .xz, .zstandard, .gzip])
    func truncationIsAnError(_ compression: PayloadCompression) {
        let packed = SyntheticKernel.pack(Self.contents, compression)
        for count in [7, 13, 100, packed.count / 2, packed.count - 9] {
            #expect(throws: KernelImageError.self, "\(count) of \(packed.count) bytes") {
                try Self.unpack(Array(packed.prefix(count)))
            }
        }
    }

    @Test(arguments: [PayloadCompression.lz4, .xz, .zstandard])
    func wrongAppendedSizeIsAnError(_ compression: PayloadCompression) {
        var packed = SyntheticKernel.pack(Self.contents, compression)
        packed[packed.count - 4] ^= 1
        #expect(throws: KernelImageError.self) { try Self.unpack(packed) }
    }

    @Test(arguments: PayloadCompression.allCases)
    func theLimitHolds(_ compression: PayloadCompression) throws {
        let packed = SyntheticKernel.pack(Self.contents, compression)
        #expect(throws: KernelImageError.payloadTooLarge(limit: 100_000)) { try Self.unpack(packed, limit: 100_000) }
        #expect(try Self.unpack(packed, limit: Self.contents.count + 1) == Self.contents)
    }

    @Test func damagedChecksumsAreErrors() {
        for compression in [PayloadCompression.xz, .gzip] {
            var packed = SyntheticKernel.pack(Self.contents, compression)
            packed[packed.count / 2] ^= 0x10
            #expect(throws: KernelImageError.self) { try Self.unpack(packed) }
        }
    }

    @Test func unknownFormatsAreNamed() {
        let known: [([UInt8], KernelImageError)] = [
            (Array("BZh9".utf8), .unsupportedCompression("bzip2")),
            ([0x5D, 0, 0, 1], .unsupportedCompression("LZMA")),
            ([0x89, 0x4C, 0x5A, 0x4F], .unsupportedCompression("LZO")),
            ([1, 2, 3, 4], .malformed(part: .payload, detail: "the first bytes name no compression")),
            ([], .malformed(part: .payload, detail: "the first bytes name no compression"))
        ]
        for (bytes, error) in known {
            #expect(throws: error) { try Self.unpack(bytes) }
        }
    }

    @Test func hostileLZ4BlockSizes() {
        let huge: [UInt8] = [0x02, 0x21, 0x4C, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]
        #expect(throws: KernelImageError.self) { try Self.unpack(huge) }
        let beyond: [UInt8] = [0x02, 0x21, 0x4C, 0x18, 0xFF, 0xFF, 0, 0, 1, 2, 3, 4, 5]
        #expect(throws: KernelImageError.truncated(part: .payload, needed: 8 + 0xFFFF, actual: 13)) {
            try Self.unpack(beyond)
        }
    }
}
