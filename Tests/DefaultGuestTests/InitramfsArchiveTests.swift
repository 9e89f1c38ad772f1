import DefaultGuest
import Glibc
import SystemPackage
import Testing

@Suite struct InitramfsArchiveTests {
    @Test func headersAndPaddingAreTheFormats() {
        var archive = InitramfsArchive()
        archive.addFile("a", permissions: 0o644, contents: Array("hello".utf8))
        archive.finish()
        let text = String(decoding: archive.bytes, as: UTF8.self)
        // Inode, mode, uid, gid, links, time, size, device ×2, special device ×2, length of the name, checksum.
        let first =
            "070701" + "00000001" + "000081A4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005"
            + "00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "a\0"
        #expect(text.hasPrefix(first + "hello\0\0\0070701"))
        #expect(archive.bytes.count % 4 == 0)
        #expect(text.contains("TRAILER!!!\0"))
    }

    @Test func directoriesAboveAnEntryComeFirstAndOnce() {
        var archive = InitramfsArchive()
        archive.addSymbolicLink("usr/bin/env", to: "/bin/busybox")
        archive.addSymbolicLink("usr/bin/vi", to: "/bin/busybox")
        archive.finish()
        #expect(names(in: archive.bytes) == ["usr", "usr/bin", "usr/bin/env", "usr/bin/vi", "TRAILER!!!"])
    }

    @Test(.enabled(if: access("/usr/bin/cpio", X_OK) == 0, "needs the Debian package cpio"))
    func cpioUnpacksIt() throws {
        var archive = InitramfsArchive()
        archive.addDirectory("empty")
        archive.addFile("bin/tool", permissions: 0o755, contents: Array("#!/bin/sh\n".utf8))
        archive.addSymbolicLink("bin/link", to: "tool")
        archive.addCharacterDevice("dev/console", permissions: 0o600, major: 5, minor: 1)
        archive.finish()

        let directory = try TemporaryDirectory()
        try directory.write(archive.bytes, to: "archive")
        let listing = try directory.shell("cpio --list --verbose --quiet <archive")
        let lines = listing.split(separator: "\n")
        #expect(lines.count == 6)
        #expect(lines.contains { $0.hasPrefix("drwxr-xr-x") && $0.hasSuffix(" empty") })
        #expect(lines.contains { $0.hasPrefix("-rwxr-xr-x") && $0.hasSuffix(" bin/tool") && $0.contains(" 10 ") })
        #expect(lines.contains { $0.hasPrefix("lrwxrwxrwx") && $0.hasSuffix(" bin/link -> tool") })
        #expect(lines.contains { $0.hasPrefix("crw-------") && $0.contains("5,   1") && $0.hasSuffix("dev/console") })
    }

    /// The names of all entries, found by walking the headers.
    private func names(in bytes: [UInt8]) -> [String] {
        var names: [String] = []
        var offset = 0
        func field(_ index: Int) -> Int {
            Int(String(decoding: bytes[(offset + 6 + index * 8)...].prefix(8), as: UTF8.self), radix: 16)!
        }
        while offset < bytes.count {
            let nameLength = field(11)
            let size = field(6)
            names.append(String(decoding: bytes[(offset + 110)...].prefix(nameLength - 1), as: UTF8.self))
            offset = (offset + 110 + nameLength + 3) & ~3
            offset = (offset + size + 3) & ~3
        }
        return names
    }
}
