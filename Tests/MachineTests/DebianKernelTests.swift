import Addressing
import Glibc
import Machine
import SystemPackage
import Testing

/// A stock kernel of this machine's cache of guests, if there is one.
enum StockKernel {
    static let path: FilePath? = {
        if let given = getenv("MARTLET_TEST_KERNEL") { return FilePath(String(cString: given)) }
        let cache: String
        if let given = getenv("XDG_CACHE_HOME") {
            cache = String(cString: given)
        } else if let home = getenv("HOME") {
            cache = String(cString: home) + "/.cache"
        } else {
            return nil
        }
        return find(in: cache + "/martlet/guests", depth: 4)
    }()

    /// The first file named `vmlinuz…` in `directory` or below.
    private static func find(in directory: String, depth: Int) -> FilePath? {
        guard depth > 0, let stream = opendir(directory) else { return nil }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            names.append(
                withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
        }
        for name in names.sorted() where !name.hasPrefix(".") {
            let path = directory + "/" + name
            var status = stat()
            guard stat(path, &status) == 0 else { continue }
            if status.st_mode & S_IFMT == S_IFDIR {
                if let found = find(in: path, depth: depth - 1) { return found }
            } else if name.hasPrefix("vmlinuz") {
                return FilePath(path)
            }
        }
        return nil
    }
}

@Suite(
    .enabled(
        if: StockKernel.path != nil,
        "needs a Debian kernel: set MARTLET_TEST_KERNEL or put vmlinuz into the cache of guests (~/.cache/martlet/guests)"
    ))
struct DebianKernelTests {
    private static func load(
        memory: TestRAM, unpack: GuestLoader.Unpack = .host, entry: GuestLoader.EntryProtocol = .automatic
    ) throws -> LoadedGuest {
        let path = try #require(StockKernel.path)
        return try GuestLoader(
            kernel: .file(path), initramfs: .bytes(.pattern(1 << 20), name: "initramfs"), commandLine: "console=ttyS0",
            unpack: unpack, entry: entry
        ).load(into: memory.ram)
    }

    @Test func hostUnpacks() throws {
        let memory = TestRAM(byteCount: 128 << 20)
        let guest = try Self.load(memory: memory)
        let version = try #require(guest.kernelVersion)
        #expect(guest.state.rip == 0x100_0000)
        #expect(guest.compression != nil)
        #expect(guest.kernelRange.lowerBound.value == 0x100_0000)
        // The kernel's banner has the version that the setup header has.
        let kernel = try memory.bytes(0x100_0000, Int(guest.kernelRange.upperBound.value - 0x100_0000))
        let banner = Array("Linux version \(version.prefix { $0 != " " }) ".utf8)
        let found = kernel.withUnsafeBytes { bytes in
            (0..<bytes.count - banner.count).contains { memcmp(bytes.baseAddress! + $0, banner, banner.count) == 0 }
        }
        #expect(found)
    }

    @Test func guestUnpacks() throws {
        let memory = TestRAM(byteCount: 128 << 20)
        let guest = try Self.load(memory: memory, unpack: .guest)
        #expect(guest.state.rip == 0x100_0200)
        let range = try #require(guest.initramfsRange)
        #expect(range.lowerBound >= guest.kernelRange.upperBound)
    }

    @Test func offersPVH() throws {
        let memory = TestRAM(byteCount: 128 << 20)
        let guest = try Self.load(memory: memory, entry: .pvh)
        #expect(guest.kernelRange.contains(GuestPhysicalAddress(guest.state.rip)))
        #expect(guest.state.cr0 & 0x8000_0000 == 0)
    }

    @Test func needsItsMemory() throws {
        let memory = TestRAM(byteCount: 32 << 20)
        #expect(throws: BootError.self) { try Self.load(memory: memory) }
    }
}
