import Machine
import TestSupport
import Testing

/// Kernels with random damage load or fail with a ``BootError``; nothing traps.
@Suite struct LoaderFuzzTests {
    private static let seed: UInt64 = 0x6D61_7274_6C65_7400

    /// Damages one to eight places in `range`: bytes, or integers with extreme values.
    private static func damage(_ file: inout [UInt8], _ range: Range<Int>, with generator: inout SeededGenerator) {
        for _ in 0..<Int.random(in: 1...8, using: &generator) {
            let offset = Int.random(in: range, using: &generator)
            switch generator.next() % 5 {
            case 0: file[offset] = UInt8(truncatingIfNeeded: generator.next())
            case 1: file[offset] ^= 1 << UInt8(generator.next() & 7)
            default:
                let extremes: [UInt64] = [
                    0, .max, 1 << 63, 1 << 32, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, UInt64(file.count), .max - 7
                ]
                let value = extremes[Int(generator.next() % UInt64(extremes.count))] &+ generator.next() % 3
                for index in 0..<min([2, 4, 8][Int(generator.next() % 3)], file.count - offset) {
                    file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(index)))
                }
            }
        }
        if generator.next() % 8 == 0 { file.removeLast(Int(generator.next() % UInt64(file.count))) }
    }

    /// Loads damaged copies of `file`; both outcomes must occur.
    private static func run(
        _ file: [UInt8], _ range: Range<Int>, rounds: Int, unpack: GuestLoader.Unpack = .host, salt: UInt64
    ) {
        print("loader fuzz: seed \(seed &+ salt)")
        var generator = SeededGenerator(seed: seed &+ salt)
        let memory = TestRAM(byteCount: 48 << 20)
        var (loaded, failed) = (0, 0)
        for round in 0..<rounds {
            var copy = file
            damage(&copy, range, with: &generator)
            do throws(BootError) {
                _ = try GuestLoader(
                    kernel: .bytes(copy, name: "fuzz"), initramfs: .bytes([1, 2, 3], name: "rd"), unpack: unpack
                ).load(into: memory.ram)
                loaded += 1
            } catch {
                failed += 1
                #expect(!error.description.contains("\n"), "round \(round)")
            }
        }
        #expect(loaded > 0 && failed > 0, "\(loaded) loaded, \(failed) failed")
    }

    private static let small = [
        SyntheticKernel.Segment(physicalAddress: 0x100_0000, contents: Array("Linux version 1".utf8) + .pattern(3000)),
        SyntheticKernel.Segment(physicalAddress: 0x110_0000, contents: .pattern(500), memoryByteCount: 9000, flags: 6)
    ]

    @Test func setupHeader() {
        let image = SyntheticKernel.bzImage(
            payload: SyntheticKernel.pack(SyntheticKernel.elf(segments: Self.small), .lz4))
        Self.run(image, 0x1F0..<0x270, rounds: 2000, salt: 1)
        Self.run(image, 0x1F0..<0x270, rounds: 2000, unpack: .guest, salt: 2)
    }

    @Test func elfHeaders() {
        let elf = SyntheticKernel.elf(segments: Self.small, pvhEntry: 0x100_0040)
        Self.run(elf, 4..<64 + 3 * 56, rounds: 2000, salt: 3)
        Self.run(elf, elf.count - 48..<elf.count, rounds: 2000, salt: 4)
    }

    @Test(arguments: zip([PayloadCompression.lz4, .xz, .zstandard, .gzip], [UInt64(5), 6, 7, 8]))
    func payloads(_ compression: PayloadCompression, _ salt: UInt64) {
        let packed = SyntheticKernel.pack(SyntheticKernel.elf(segments: Self.small), compression)
        let image = SyntheticKernel.bzImage(payload: packed)
        // Some of the bytes after the payload are among those damaged: damage there does no harm.
        let start = 2048 + SyntheticKernel.payloadOffset
        Self.run(image, start..<start + packed.count + 100, rounds: 500, salt: salt)
    }
}
