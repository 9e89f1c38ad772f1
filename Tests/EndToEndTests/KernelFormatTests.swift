import CZstd
import DefaultGuest
import Machine
import TestSupport
import Testing

extension EndToEnd {
    /// Debian's kernels in other packings than Debian's.
    @Suite(.needsGuests) struct KernelFormats {
        @Test(arguments: GuestFlavour.allCases)
        func zstandard(flavour: GuestFlavour) throws {
            let scratch = ScratchDirectory()
            let kernel = try Repacked(flavour)
            let path = scratch.write(try kernel.zstandard(), to: "vmlinuz.zst")
            let child = try Boot.start(Boot.arguments(flavour, running: Workload.command, kernel: path) + ["--verbose"])
            #expect(child.wait() == .exited(0), Boot.account(child))
            #expect(child.errorText.contains("unpacked by the host (Zstandard)"), Boot.account(child))
            #expect(child.outputText.contains("martlet.status=0"), Boot.account(child))
        }

        @Test(arguments: GuestFlavour.allCases, [1, 2])
        func elfWithPVHNote(flavour: GuestFlavour, cpus: Int) throws {
            let scratch = ScratchDirectory()
            let path = scratch.write(try Repacked(flavour).unpacked, to: "vmlinux")
            let child = try Boot.start(
                Boot.arguments(flavour, cpus: cpus, running: Workload.command, kernel: path))
            #expect(child.wait() == .exited(0), Boot.account(child))
            Workload.check(child, cpus: cpus)
        }
    }
}

/// One of Debian's kernels, taken apart.
struct Repacked {
    /// The ELF file inside, with the relocations behind it.
    let unpacked: [UInt8]
    private let file: [UInt8]
    private let protectedModeOffset: Int

    init(_ flavour: GuestFlavour) throws {
        let guest = try #require(MartletCommand.guest(flavour))
        let file = try #require(ScratchDirectory.contents(of: guest.kernel.string))
        let header = try SetupHeader(parsing: file.span.bytes)
        let payload = file.span.bytes.extracting(try header.payload(in: file.span.bytes))
        let buffer = try PayloadCompression(of: payload).unpack(payload, limit: 1 << 30)
        unpacked = buffer.bytes.withUnsafeBytes { [UInt8]($0) }
        self.file = file
        protectedModeOffset = Int(header.protectedModeOffset)
    }

    /// The kernel as a bzImage with a Zstandard payload, put behind what was there.
    func zstandard() throws -> [UInt8] {
        var packed = [UInt8](repeating: 0, count: ZSTD_compressBound(unpacked.count))
        let capacity = packed.count
        let count = ZSTD_compress(&packed, capacity, unpacked, unpacked.count, 1)
        try #require(ZSTD_isError(count) == 0)
        var size = UInt32(unpacked.count)
        let payload = packed.prefix(count) + withUnsafeBytes(of: &size) { Array($0) }
        var image = file + [UInt8](repeating: 0, count: -file.count & 15)
        func put(_ value: Int, at offset: Int) {
            for index in 0..<4 { image[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
        }
        put(image.count - protectedModeOffset, at: 0x248)
        put(payload.count, at: 0x24C)
        put((image.count - protectedModeOffset + payload.count + 15) / 16, at: 0x1F4)
        return image + payload
    }
}
