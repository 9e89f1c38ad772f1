import CLZ4
import CLZMA
import CZlib
import CZstd
import Machine

/// Kernels built by the tests.
enum SyntheticKernel {
    struct Segment {
        var physicalAddress: UInt64
        var contents: [UInt8]
        var memoryByteCount: UInt64?
        var flags: UInt32 = 5
    }

    /// The code of the usual test kernel, with the banner by which the loader knows Linux.
    static let code: [UInt8] = Array("Linux version 9.9 (test)".utf8) + .pattern(300_000)

    static let usualSegments = [
        Segment(physicalAddress: 0x100_0000, contents: code),
        Segment(physicalAddress: 0x120_0000, contents: .pattern(5_000), memoryByteCount: 70_000, flags: 6)
    ]

    /// An ELF executable.
    ///
    /// - Parameter pvhEntry: a PVH note with this entry, of `pvhByteCount` bytes.
    static func elf(
        segments: [Segment] = usualSegments, entry: UInt64 = 0x100_0000, pvhEntry: UInt64? = nil, pvhByteCount: Int = 8
    ) -> [UInt8] {
        let headerCount = segments.count + (pvhEntry == nil ? 0 : 1)
        var file = [UInt8](repeating: 0, count: 64 + 56 * headerCount)
        file.replaceSubrange(0..<8, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1, 0])
        file.put(UInt16(2), at: 16)
        file.put(UInt16(62), at: 18)
        file.put(UInt32(1), at: 20)
        file.put(entry, at: 24)
        file.put(UInt64(64), at: 32)
        file.put(UInt16(64), at: 52)
        file.put(UInt16(56), at: 54)
        file.put(UInt16(headerCount), at: 56)
        for (index, segment) in segments.enumerated() {
            let header = 64 + 56 * index
            file.put(UInt32(1), at: header)
            file.put(segment.flags, at: header + 4)
            file.put(UInt64(file.count), at: header + 8)
            file.put(0xFFFF_FFFF_8000_0000 &+ segment.physicalAddress, at: header + 16)
            file.put(segment.physicalAddress, at: header + 24)
            file.put(UInt64(segment.contents.count), at: header + 32)
            file.put(segment.memoryByteCount ?? UInt64(segment.contents.count), at: header + 40)
            file += segment.contents
        }
        if let pvhEntry {
            // Another note comes first.
            var notes: [UInt8] = [4, 0, 0, 0, 6, 0, 0, 0, 6, 0, 0, 0] + Array("Xen\0linux\0\0\0".utf8)
            notes += [4, 0, 0, 0, UInt8(pvhByteCount), 0, 0, 0, 18, 0, 0, 0] + Array("Xen\0".utf8)
            for index in 0..<pvhByteCount { notes.append(UInt8(truncatingIfNeeded: pvhEntry >> (8 * UInt64(index)))) }
            let header = 64 + 56 * segments.count
            file.put(UInt32(4), at: header)
            file.put(UInt64(file.count), at: header + 8)
            file.put(UInt64(notes.count), at: header + 32)
            file.put(UInt64(notes.count), at: header + 40)
            file.put(UInt64(4), at: header + 48)
            file += notes
        }
        return file
    }

    /// What a test may want different in a bzImage.
    struct Options {
        var version: UInt16 = 0x020F
        var setupSectors: UInt8 = 3
        var loadFlags: UInt8 = 1
        var extendedFlags: UInt16 = 1
        var isRelocatable = true
        var preferredAddress: UInt64 = 0x100_0000
        var initByteCount: UInt32 = 0x40_0000
        var initramfsAddressMaximum: UInt32 = 0x7FFF_FFFF
        var commandLineLimit: UInt32 = 2047
        var headerEnd = 0x26C
    }

    static let payloadOffset = 0x2CC

    /// A bzImage around `payload`, which is already packed.
    static func bzImage(payload: [UInt8], _ options: Options = Options()) -> [UInt8] {
        let setupByteCount = (Int(options.setupSectors) + 1) * 512
        var protectedMode = [UInt8](repeating: 0x90, count: payloadOffset) + payload + [UInt8](repeating: 0, count: 100)
        protectedMode += [UInt8](repeating: 0, count: -protectedMode.count & 15)
        var file = [UInt8](repeating: 0, count: setupByteCount)
        file[0x1F1] = options.setupSectors
        file.put(UInt32(protectedMode.count / 16), at: 0x1F4)
        file.put(UInt16(0xAA55), at: 0x1FE)
        file[0x200] = 0xEB
        file[0x201] = UInt8(options.headerEnd - 0x202)
        file.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        file.put(options.version, at: 0x206)
        file.put(UInt16(0x100), at: 0x20E)
        file.replaceSubrange(0x300..<0x30A, with: Array("9.9-test #".utf8))
        file[0x211] = options.loadFlags
        file.put(UInt32(0x10_0000), at: 0x214)
        file.put(options.initramfsAddressMaximum, at: 0x22C)
        file.put(UInt32(0x20_0000), at: 0x230)
        file[0x234] = options.isRelocatable ? 1 : 0
        file.put(options.extendedFlags, at: 0x236)
        file.put(options.commandLineLimit, at: 0x238)
        file.put(UInt32(payloadOffset), at: 0x248)
        file.put(UInt32(payload.count), at: 0x24C)
        file.put(UInt64(0xDEAD), at: 0x250)
        file.put(options.preferredAddress, at: 0x258)
        file.put(options.initByteCount, at: 0x260)
        return file + protectedMode
    }

    /// `contents` packed as the kernel's build does it.
    static func pack(_ contents: [UInt8], _ compression: PayloadCompression) -> [UInt8] {
        let size = (0..<4).map { UInt8(truncatingIfNeeded: contents.count >> (8 * $0)) }
        return switch compression {
        case .none: contents
        case .lz4: lz4(contents) + size
        case .xz: xz(contents) + size
        case .zstandard: zstandard(contents) + size
        case .gzip: gzip(contents)
        }
    }

    private static func lz4(_ contents: [UInt8]) -> [UInt8] {
        var packed: [UInt8] = [0x02, 0x21, 0x4C, 0x18]
        for start in stride(from: 0, to: contents.count, by: 8 << 20) {
            let block = Array(contents[start..<min(start + 8 << 20, contents.count)])
            var output = [UInt8](repeating: 0, count: Int(LZ4_compressBound(Int32(block.count))))
            let capacity = Int32(output.count)
            let count = block.withUnsafeBytes { source in
                output.withUnsafeMutableBytes { target in
                    LZ4_compress_default(
                        source.assumingMemoryBound(to: CChar.self).baseAddress,
                        target.assumingMemoryBound(to: CChar.self).baseAddress, Int32(source.count), capacity)
                }
            }
            precondition(count > 0, "LZ4 does not pack")
            packed += (0..<4).map { UInt8(truncatingIfNeeded: count >> (8 * Int32($0))) } + output.prefix(Int(count))
        }
        return packed
    }

    /// With the x86 branch filter before LZMA2, as `scripts/xz_wrap.sh` has it.
    private static func xz(_ contents: [UInt8]) -> [UInt8] {
        var options = lzma_options_lzma()
        precondition(lzma_lzma_preset(&options, 6) == 0, "no such preset")
        var output = [UInt8](repeating: 0, count: lzma_stream_buffer_bound(contents.count))
        var position = 0
        let result = withUnsafeMutablePointer(to: &options) { options in
            let filters = [
                lzma_filter(id: 0x04, options: nil), lzma_filter(id: 0x21, options: options),
                lzma_filter(id: UInt64.max, options: nil)
            ]
            var copy = filters
            return lzma_stream_buffer_encode(
                &copy, LZMA_CHECK_CRC32, nil, contents, contents.count, &output, &position, output.count)
        }
        precondition(result == LZMA_OK, "XZ does not pack")
        return Array(output.prefix(position))
    }

    private static func zstandard(_ contents: [UInt8]) -> [UInt8] {
        var output = [UInt8](repeating: 0, count: ZSTD_compressBound(contents.count))
        let count = ZSTD_compress(&output, output.count, contents, contents.count, 3)
        precondition(ZSTD_isError(count) == 0, "Zstandard does not pack")
        return Array(output.prefix(count))
    }

    private static func gzip(_ contents: [UInt8]) -> [UInt8] {
        var stream = z_stream()
        precondition(
            deflateInit2_(
                &stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
                Int32(MemoryLayout<z_stream>.size)) == Z_OK, "no zlib")
        defer { deflateEnd(&stream) }
        var output = [UInt8](repeating: 0, count: Int(deflateBound(&stream, UInt(contents.count))))
        var input = contents
        let (inputCount, outputCount) = (UInt32(input.count), UInt32(output.count))
        let left = input.withUnsafeMutableBytes { source in
            output.withUnsafeMutableBytes { target in
                stream.next_in = source.assumingMemoryBound(to: UInt8.self).baseAddress
                stream.avail_in = inputCount
                stream.next_out = target.assumingMemoryBound(to: UInt8.self).baseAddress
                stream.avail_out = outputCount
                precondition(deflate(&stream, Z_FINISH) == Z_STREAM_END, "gzip does not pack")
                return Int(stream.avail_out)
            }
        }
        return Array(output.dropLast(left))
    }
}
