import Addressing
import Machine
import SystemPackage
import Testing

@Suite struct GuestLoaderTests {
    private static func source(_ bytes: [UInt8]) -> BootSource { .bytes(bytes, name: "test-kernel") }

    private static func bzImage(_ compression: PayloadCompression = .lz4, pvhEntry: UInt64? = nil) -> BootSource {
        let elf = SyntheticKernel.elf(pvhEntry: pvhEntry)
        return source(SyntheticKernel.bzImage(payload: SyntheticKernel.pack(elf, compression)))
    }

    /// The segments of the usual kernel are in memory, zeroes after the second.
    private static func expectKernel(in memory: TestRAM) throws {
        #expect(try memory.bytes(0x100_0000, SyntheticKernel.code.count) == SyntheticKernel.code)
        let zeroes = [UInt8](repeating: 0, count: 65_000)
        #expect(try memory.bytes(0x120_0000, 70_000) == .pattern(5_000) + zeroes)
    }

    @Test(arguments: PayloadCompression.allCases)
    func hostUnpacksABzImage(_ compression: PayloadCompression) throws {
        let memory = TestRAM(byteCount: 64 << 20)
        try memory.ram.write([UInt8](repeating: 0xEE, count: 1 << 20), at: GuestPhysicalAddress(0x120_0000))
        let guest = try GuestLoader(kernel: Self.bzImage(compression), commandLine: "console=ttyS0").load(
            into: memory.ram)
        try Self.expectKernel(in: memory)
        #expect(guest.compression == compression)
        #expect(guest.kernelVersion == "9.9-test #")
        #expect(guest.kernelRange.lowerBound.value == 0x100_0000)
        #expect(guest.kernelRange.upperBound.value == 0x120_0000 + 70_000)
        #expect(guest.state == .linux64(entry: 0x100_0000))

        let page = guest.state.rsi
        #expect(try memory.bytes(page + 0x202, 4) == Array("HdrS".utf8))
        #expect(try memory.integer(page + 0x206, as: UInt16.self) == 0x020F)
        #expect(try memory.integer(page + 0x210, as: UInt8.self) == 0xFF)
        #expect(try memory.integer(page + 0x1EF, as: UInt8.self) == 0)
        #expect(try memory.integer(page + 0x250, as: UInt64.self) == 0)
        #expect(try memory.integer(page + 0x70, as: UInt64.self) == 0xE_0000)
        #expect(try memory.string(UInt64(try memory.integer(page + 0x228, as: UInt32.self))) == "console=ttyS0")
        #expect(try memory.integer(page + 0x218, as: UInt64.self) == 0, "no initramfs")
    }

    @Test func guestUnpacksABzImage() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let loader = GuestLoader(kernel: Self.bzImage(.xz), unpack: .guest)
        let guest = try loader.load(into: memory.ram)
        #expect(guest.state == .linux64(entry: 0x100_0200))
        #expect(guest.compression == nil)
        #expect(guest.kernelRange == GuestPhysicalAddress(0x100_0000)..<GuestPhysicalAddress(0x140_0000))
        let packed = SyntheticKernel.pack(SyntheticKernel.elf(), .xz)
        #expect(try memory.bytes(0x100_0000 + UInt64(SyntheticKernel.payloadOffset), packed.count) == packed)
        #expect(try memory.integer(guest.state.rsi + 0x214, as: UInt32.self) == 0x100_0000)
    }

    @Test func unrelocatableKernelsStayAtOneMebibyte() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        var options = SyntheticKernel.Options()
        options.isRelocatable = false
        let image = SyntheticKernel.bzImage(payload: SyntheticKernel.pack(SyntheticKernel.elf(), .gzip), options)
        let guest = try GuestLoader(kernel: Self.source(image), unpack: .guest).load(into: memory.ram)
        #expect(guest.state.rip == 0x10_0200)
        #expect(guest.kernelRange.upperBound.value == 0x140_0000)
    }

    @Test func elfWithANoteIsEnteredByPVH() throws {
        let memory = TestRAM(byteCount: 8 << 30)
        let loader = GuestLoader(
            kernel: Self.source(SyntheticKernel.elf(pvhEntry: 0x100_0040)),
            initramfs: .bytes(.pattern(5000), name: "rd"),
            commandLine: "quiet")
        let guest = try loader.load(into: memory.ram)
        try Self.expectKernel(in: memory)
        #expect(guest.state == .pvh(entry: 0x100_0040))
        let info = guest.state.rbx
        #expect(try memory.integer(info, as: UInt32.self) == 0x336E_C578)
        #expect(try memory.integer(info + 4, as: UInt32.self) == 1)
        #expect(try memory.integer(info + 12, as: UInt32.self) == 1)
        let module: UInt64 = try memory.integer(info + 16)
        #expect(try memory.bytes(try memory.integer(module), 5000) == .pattern(5000))
        #expect(try memory.integer(module + 8, as: UInt64.self) == 5000)
        #expect(try memory.string(try memory.integer(info + 24)) == "quiet")
        #expect(try memory.integer(info + 32, as: UInt64.self) == 0xE_0000)
        let map: UInt64 = try memory.integer(info + 40)
        let count: UInt32 = try memory.integer(info + 48)
        #expect(Int(count) == guest.memoryMap.entries.count)
        for (index, entry) in guest.memoryMap.entries.enumerated() {
            let address = map + UInt64(index) * 24
            #expect(try memory.integer(address, as: UInt64.self) == entry.range.lowerBound.value)
            #expect(
                try memory.integer(address + 8, as: UInt64.self)
                    == entry.range.upperBound.value - entry.range.lowerBound.value)
            #expect(try memory.integer(address + 16, as: UInt32.self) == entry.kind.rawValue)
        }
    }

    @Test func entryProtocolCanBeChosen() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let elf = Self.source(SyntheticKernel.elf(pvhEntry: 0x100_0040))
        #expect(
            try GuestLoader(kernel: elf, entry: .linux64).load(into: memory.ram).state == .linux64(entry: 0x100_0000))
        let packed = Self.bzImage(pvhEntry: 0x100_0040)
        #expect(try GuestLoader(kernel: packed).load(into: memory.ram).state == .linux64(entry: 0x100_0000))
        #expect(try GuestLoader(kernel: packed, entry: .pvh).load(into: memory.ram).state == .pvh(entry: 0x100_0040))
    }

    @Test func plainLinuxELFGetsBootParameters() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let loader = GuestLoader(
            kernel: Self.source(SyntheticKernel.elf()), initramfs: .bytes(.pattern(99), name: "rd"))
        let guest = try loader.load(into: memory.ram)
        #expect(guest.state == .linux64(entry: 0x100_0000))
        #expect(try memory.bytes(guest.state.rsi + 0x202, 4) == Array("HdrS".utf8))
        let start: UInt32 = try memory.integer(guest.state.rsi + 0x218)
        #expect(try memory.bytes(UInt64(start), 99) == .pattern(99))
        #expect(try memory.integer(guest.state.rsi + 0x21C, as: UInt32.self) == 99)
    }

    @Test func memoryMapTellsTheBoard() throws {
        let memory = TestRAM(byteCount: 8 << 30)
        let guest = try GuestLoader(kernel: Self.bzImage()).load(into: memory.ram)
        let page = guest.state.rsi
        let entries = guest.memoryMap.entries
        #expect(try memory.integer(page + 0x1E8, as: UInt8.self) == UInt8(entries.count))
        for (index, entry) in entries.enumerated() {
            let address = page + 0x2D0 + UInt64(index) * 20
            #expect(try memory.integer(address, as: UInt64.self) == entry.range.lowerBound.value)
            #expect(
                try memory.integer(address + 8, as: UInt64.self)
                    == entry.range.upperBound.value - entry.range.lowerBound.value)
            #expect(try memory.integer(address + 16, as: UInt32.self) == entry.kind.rawValue)
        }
        for (lower, upper) in zip(entries, entries.dropFirst()) {
            #expect(lower.range.upperBound <= upper.range.lowerBound)
        }
        func kind(_ address: UInt64) -> MemoryMap.Kind? {
            entries.first { $0.range.contains(GuestPhysicalAddress(address)) }?.kind
        }
        #expect(kind(0) == .ram)
        #expect(kind(0x9_FC00) == .reserved)
        #expect(kind(0xA_0000) == nil)
        #expect(kind(0xE_0000) == .reserved)
        #expect(kind(0x10_0000) == .ram)
        #expect(kind(0xBFFF_E000) == .acpiTables)
        #expect(kind(0xBFFF_F000) == .acpiStorage)
        #expect(kind(0xC000_0000) == nil)
        #expect(kind(0xFEE0_0000) == .reserved)
        #expect(kind(0x1_0000_0000) == .ram)
        #expect(kind(0x2_3FFF_FFFF) == .ram)
        #expect(kind(0x2_4000_0000) == nil)
    }

    @Test func initramfsIsHighAndBelowTheKernelsMaximum() throws {
        let memory = TestRAM(byteCount: 256 << 20)
        let initramfs = [UInt8].pattern(3 << 20 | 5)
        var options = SyntheticKernel.Options()
        for (maximum, end) in [(0x7FFF_FFFF, UInt64(255 << 20)), (0x37F_FFFF, 0x380_0000)] {
            options.initramfsAddressMaximum = UInt32(maximum)
            let image = SyntheticKernel.bzImage(payload: SyntheticKernel.pack(SyntheticKernel.elf(), .lz4), options)
            let loader = GuestLoader(kernel: Self.source(image), initramfs: .bytes(initramfs, name: "rd"))
            let guest = try loader.load(into: memory.ram)
            let range = try #require(guest.initramfsRange)
            #expect(range.lowerBound.offsetInPage == 0)
            #expect(range.upperBound.value <= UInt64(maximum) + 1)
            #expect(range.upperBound.value + (1 << 20) > end, "as high as it can be")
            #expect(try memory.bytes(range.lowerBound.value, initramfs.count) == initramfs)
            #expect(
                try memory.integer(guest.state.rsi + 0x218, as: UInt32.self)
                    == UInt32(range.lowerBound.value))
            #expect(try memory.integer(guest.state.rsi + 0x21C, as: UInt32.self) == UInt32(initramfs.count))
        }
    }

    @Test func linux64StateHasItsTables() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let state = try GuestLoader(kernel: Self.bzImage()).load(into: memory.ram).state
        #expect(state.cs.selector == 0x10 && state.data.selector == 0x18)
        #expect(state.rflags & 0x200 == 0)
        #expect(state.cr0 & 0x8000_0001 == 0x8000_0001 && state.cr4 & 0x20 != 0 && state.efer & 0x500 == 0x500)
        #expect(try memory.integer(state.gdtBase + 0x10, as: UInt64.self) == 0x00AF_9B00_0000_FFFF)
        #expect(try memory.integer(state.gdtBase + 0x18, as: UInt64.self) == 0x00CF_9300_0000_FFFF)
        for address: UInt64 in [0, 0x100_0000, 0x3FFF_FFFF, 0x8765_4321, 0xFFFF_FFFF] {
            let top: UInt64 = try memory.integer(state.cr3 + (address >> 39) * 8)
            let directory: UInt64 = try memory.integer((top & ~0xFFF) + (address >> 30 & 511) * 8)
            let page: UInt64 = try memory.integer((directory & ~0xFFF) + (address >> 21 & 511) * 8)
            #expect(top & 3 == 3 && directory & 3 == 3 && page & 0x83 == 0x83)
            #expect(page & ~0x1F_FFFF | address & 0x1F_FFFF == address)
        }
    }

    @Test func loadsAgainAfterTheGuestScribbled() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let loader = GuestLoader(kernel: Self.bzImage(), commandLine: "x")
        let first = try loader.load(into: memory.ram)
        for start in [UInt64(0), 0x100_0000, 0x300_0000] {
            try memory.ram.write([UInt8](repeating: 0xA5, count: 0x20_0000), at: GuestPhysicalAddress(start))
        }
        #expect(try loader.load(into: memory.ram).state == first.state)
        try Self.expectKernel(in: memory)
        #expect(try memory.integer(first.state.rsi + 0x1EF, as: UInt8.self) == 0)
    }

    @Test func kernelsComeFromFilesToo() throws {
        let memory = TestRAM(byteCount: 64 << 20)
        let file = try TemporaryFile(
            SyntheticKernel.bzImage(payload: SyntheticKernel.pack(SyntheticKernel.elf(), .lz4)))
        let guest = try GuestLoader(kernel: .file(file.path)).load(into: memory.ram)
        #expect(guest.state.rip == 0x100_0000)
        try Self.expectKernel(in: memory)
    }
}
