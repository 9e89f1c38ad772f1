import Addressing
import Machine
import SystemPackage
import Testing

/// Everything a user can get wrong is an error of its own, on one line.
@Suite struct BootErrorTests {
    private static func load(
        _ kernel: [UInt8], memory: UInt64 = 64 << 20, initramfs: BootSource? = nil, commandLine: String = "",
        unpack: GuestLoader.Unpack = .host, entry: GuestLoader.EntryProtocol = .automatic
    ) throws {
        let source = BootSource.bytes(kernel, name: "k")
        _ = try GuestLoader(
            kernel: source, initramfs: initramfs, commandLine: commandLine, unpack: unpack, entry: entry
        ).load(into: TestRAM(byteCount: memory).ram)
    }

    private static func bzImage(_ change: (inout SyntheticKernel.Options) -> Void = { _ in }) -> [UInt8] {
        var options = SyntheticKernel.Options()
        change(&options)
        return SyntheticKernel.bzImage(payload: SyntheticKernel.pack(SyntheticKernel.elf(), .lz4), options)
    }

    /// Expects `body` to fail with the error that `matches`, whose description is one line with each of `words`.
    private static func expect(
        _ words: String..., matches: (BootError) -> Bool, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) {
        #expect(sourceLocation: sourceLocation) {
            try body()
        } throws: {
            guard let error = $0 as? BootError, matches(error) else { return false }
            let line = error.description
            for word in words { #expect(line.contains(word), sourceLocation: sourceLocation) }
            return !line.contains("\n")
        }
    }

    private static func unsupported(_ error: BootError) -> Bool {
        if case .kernel("k", .unsupported) = error { true } else { false }
    }

    private static func malformed(_ error: BootError) -> Bool {
        if case .kernel("k", .malformed) = error { true } else { false }
    }

    private static func truncated(_ error: BootError) -> Bool {
        if case .kernel("k", .truncated) = error { true } else { false }
    }

    @Test func noKernel() {
        Self.expect("--kernel", matches: { $0 == .noKernel }) {
            _ = try GuestLoader(kernel: nil).load(into: TestRAM(byteCount: 64 << 20).ram)
        }
    }

    @Test func unreadableFiles() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        Self.expect(
            "/nonexistent/vmlinuz",
            matches: { $0 == .unreadable(.kernel, name: "/nonexistent/vmlinuz", .noSuchFileOrDirectory) }
        ) {
            _ = try GuestLoader(kernel: .file("/nonexistent/vmlinuz")).load(into: memory.ram)
        }
        Self.expect("/tmp", matches: { $0 == .unreadable(.kernel, name: "/tmp", .isDirectory) }) {
            _ = try GuestLoader(kernel: .file("/tmp")).load(into: memory.ram)
        }
        Self.expect(
            "initramfs", "/nonexistent/rd",
            matches: { $0 == .unreadable(.initramfs, name: "/nonexistent/rd", .noSuchFileOrDirectory) }
        ) {
            try Self.load(Self.bzImage(), initramfs: .file("/nonexistent/rd"))
        }
        let empty = try TemporaryFile([])
        Self.expect("empty", matches: { $0 == .empty(.kernel, name: empty.path.string) }) {
            _ = try GuestLoader(kernel: .file(empty.path)).load(into: memory.ram)
        }
    }

    @Test func endlessInitramfs() {
        Self.expect("/dev/zero", "64 MiB", matches: { $0 == .tooLarge(.initramfs, name: "/dev/zero", limit: 64 << 20) })
        {
            try Self.load(Self.bzImage(), initramfs: .file("/dev/zero"))
        }
    }

    @Test func otherFilesAreGuessed() {
        let files: [([UInt8], String?)] = [
            (Array("070701".utf8) + .pattern(1000), "a cpio archive (an initramfs?)"),
            (Array("#!/bin/sh\n".utf8) + .pattern(1000), "a script"),
            ([0x1F, 0x8B] + .pattern(1000), "a file compressed with gzip (unpack it first, if it is a kernel)"),
            (Array("MZ".utf8) + .pattern(1000), "an EFI or Windows program without a Linux header"),
            ([1, 2, 3], "only 3 bytes long"),
            ([9] + .pattern(1000), nil)
        ]
        for (file, guess) in files {
            Self.expect(
                "bzImage", guess ?? "no known kind",
                matches: { $0 == .kernel(name: "k", .notAKernel(looksLike: guess)) }
            ) {
                try Self.load(file)
            }
        }
    }

    @Test func unsupportedKernels() {
        Self.expect("2.05", "2.06", matches: Self.unsupported) { try Self.load(Self.bzImage { $0.version = 0x0205 }) }
        Self.expect("zImage", matches: Self.unsupported) { try Self.load(Self.bzImage { $0.loadFlags = 0 }) }
        Self.expect("2.08", matches: Self.unsupported) { try Self.load(Self.bzImage { $0.version = 0x0207 }) }
        Self.expect("XLF_KERNEL_64", matches: Self.unsupported) {
            try Self.load(Self.bzImage { $0.extendedFlags = 0 }, unpack: .guest)
        }
        Self.expect("PVH", matches: Self.unsupported) { try Self.load(Self.bzImage(), entry: .pvh) }
        Self.expect("--unpack host", matches: Self.unsupported) {
            try Self.load(Self.bzImage(), unpack: .guest, entry: .pvh)
        }
        let stranger = [SyntheticKernel.Segment(physicalAddress: 0x100_0000, contents: .pattern(100))]
        Self.expect("neither", matches: Self.unsupported) { try Self.load(SyntheticKernel.elf(segments: stranger)) }
        var program = SyntheticKernel.elf(pvhEntry: 0x100_0040)
        program.put(UInt32(3), at: 64 + 56)
        Self.expect("operating system", matches: Self.unsupported) { try Self.load(program) }
    }

    @Test func unsupportedCompressionAdvisesTheGuest() throws {
        let image = SyntheticKernel.bzImage(payload: Array("BZh9".utf8) + .pattern(100))
        Self.expect("bzip2", "--unpack guest", matches: { $0 == .kernel(name: "k", .unsupportedCompression("bzip2")) })
        {
            try Self.load(image)
        }
        try Self.load(image, unpack: .guest)
    }

    @Test func truncatedKernels() {
        let image = Self.bzImage()
        for count in [0x206, 0x210, 0x240, 0x264, 0x26B, 0x500, 2048, 2048 + 0x2CC, image.count / 2] {
            Self.expect("truncated", matches: Self.truncated) { try Self.load(Array(image.prefix(count))) }
            Self.expect("truncated", matches: Self.truncated) {
                try Self.load(Array(image.prefix(count)), unpack: .guest)
            }
        }
        let elf = SyntheticKernel.bzImage(payload: SyntheticKernel.pack(Array(SyntheticKernel.elf().dropLast()), .lz4))
        Self.expect("ELF segment", matches: Self.truncated) { try Self.load(elf) }
    }

    @Test func damagedKernels() {
        Self.expect("payload", matches: Self.malformed) {
            try Self.load(SyntheticKernel.bzImage(payload: SyntheticKernel.pack(.pattern(1000), .lz4)))
        }
        Self.expect("no compression", matches: Self.malformed) {
            try Self.load(SyntheticKernel.bzImage(payload: .pattern(1000)))
        }
        Self.expect("setup header", matches: Self.malformed) { try Self.load(Self.bzImage { $0.headerEnd = 0x220 }) }
        var image = Self.bzImage()
        image.put(UInt32(0), at: 0x24C)
        Self.expect("no bytes", matches: Self.malformed) { try Self.load(image) }
        image.put(UInt32.max, at: 0x24C)
        Self.expect("truncated", matches: Self.truncated) { try Self.load(image) }
        image = Self.bzImage()
        image.put(UInt32.max, at: 0x1F4)
        Self.expect("truncated", matches: Self.truncated) { try Self.load(image, unpack: .guest) }
        image.put(UInt32(1), at: 0x1F4)
        Self.expect("protected-mode", matches: Self.malformed) { try Self.load(image, unpack: .guest) }
        Self.expect("inside a page", matches: Self.malformed) {
            try Self.load(Self.bzImage { $0.preferredAddress = 0x100_0010 }, unpack: .guest)
        }
    }

    @Test func kernelsThatDoNotFit() {
        Self.expect("16 MiB", "21 MiB", matches: { $0 == .memoryTooSmall(given: 16 << 20, needed: 0x140_2000) }) {
            try Self.load(Self.bzImage(), memory: 16 << 20, unpack: .guest)
        }
        func isOutside(_ error: BootError) -> Bool { if case .kernelOutsideRAM = error { true } else { false } }
        for address: UInt64 in [0, 0x7000, 0xF_F000, 0xBFFF_F000, 0xFEE0_0000, 1 << 40] {
            let segment = SyntheticKernel.Segment(physicalAddress: address, contents: SyntheticKernel.code)
            Self.expect("0x" + String(address, radix: 16), matches: isOutside) {
                try Self.load(SyntheticKernel.elf(segments: [segment], entry: address), memory: 8 << 30)
            }
        }
        Self.expect(matches: isOutside) {
            try Self.load(Self.bzImage { $0.preferredAddress = UInt64.max - 4095 }, unpack: .guest)
        }
        Self.expect("16 MiB", matches: { if case .kernel("k", .payloadTooLarge) = $0 { true } else { false } }) {
            let big = SyntheticKernel.pack(ELFImage.magic + .pattern(20 << 20), .lz4)
            try Self.load(SyntheticKernel.bzImage(payload: big), memory: 16 << 20)
        }
        Self.expect("4 MiB", matches: { $0 == .noLowMemory(given: 1 << 20) }) {
            try Self.load(Self.bzImage(), memory: 1 << 20)
        }
    }

    @Test func initramfsThatDoesNotFit() {
        Self.expect(
            "rd", "64 MiB",
            matches: { if case .initramfsDoesNotFit("rd", 50_000_000, _, 0x400_0000) = $0 { true } else { false } }
        ) {
            try Self.load(Self.bzImage(), initramfs: .bytes([UInt8](repeating: 1, count: 50_000_000), name: "rd"))
        }
        Self.expect(
            "1000 bytes",
            matches: { $0 == .initramfsDoesNotFit(name: "rd", byteCount: 1000, available: 0, ramByteCount: 64 << 20) }
        ) {
            try Self.load(
                Self.bzImage { $0.initramfsAddressMaximum = 0x10_0000 }, initramfs: .bytes(.pattern(1000), name: "rd"))
        }
        Self.expect("empty", matches: { $0 == .empty(.initramfs, name: "rd") }) {
            try Self.load(Self.bzImage(), initramfs: .bytes([], name: "rd"))
        }
    }

    @Test func commandLines() throws {
        let line = String(repeating: "x", count: 2048)
        Self.expect("2048", "2047", matches: { $0 == .commandLineTooLong(byteCount: 2048, limit: 2047) }) {
            try Self.load(Self.bzImage(), commandLine: line)
        }
        try Self.load(Self.bzImage(), commandLine: String(line.dropLast()))
        try Self.load(Self.bzImage { $0.commandLineLimit = 4096 }, commandLine: line)
        Self.expect("65535", matches: { $0 == .commandLineTooLong(byteCount: 70_000, limit: 65_535) }) {
            try Self.load(
                Self.bzImage { $0.commandLineLimit = .max }, commandLine: String(repeating: "y", count: 70_000))
        }
        Self.expect("NUL", matches: { $0 == .commandLineHasNUL }) {
            try Self.load(Self.bzImage(), commandLine: "a\0b")
        }
    }

    @Test func processorCounts() {
        let memory = TestRAM(byteCount: 64 << 20)
        let kernel = BootSource.bytes(Self.bzImage(), name: "k")
        Self.expect("--cpus", matches: { $0 == .noProcessor }) {
            _ = try GuestLoader(kernel: kernel, processors: []).load(into: memory.ram)
        }
        Self.expect("4097", "4096", matches: { $0 == .tooManyProcessors(count: 4097, limit: 4096) }) {
            let processors = (0..<4097).map { ACPITables.Processor(id: UInt32($0)) }
            _ = try GuestLoader(kernel: kernel, processors: processors).load(into: memory.ram)
        }
    }
}
