import Glibc

/// A kernel file, recognised and its headers checked.
package enum KernelImage: Equatable, Sendable {
    case bzImage(SetupHeader)
    case elf(ELFImage)

    package init(parsing file: RawSpan) throws(KernelImageError) {
        if file.matches(ELFImage.magic) {
            self = .elf(try ELFImage(parsing: file))
        } else if SetupHeader.isPresent(in: file) {
            self = .bzImage(try SetupHeader(parsing: file))
        } else {
            throw .notAKernel(looksLike: Self.guess(file))
        }
    }

    /// What a file that is no kernel might be, for the message.
    private static func guess(_ file: RawSpan) -> String? {
        let kinds: [(magic: String, offset: Int, name: String)] = [
            ("070701", 0, "a cpio archive (an initramfs?)"),
            ("070702", 0, "a cpio archive (an initramfs?)"),
            ("!<arch>\n", 0, "a Debian package or an archive (unpack it and use boot/vmlinuz-…)"),
            ("ARMd", 56, "an ARM64 kernel"),
            ("RISCV", 48, "a RISC-V kernel"),
            ("QFI\u{FB}", 0, "a qcow2 disk image"),
            ("#!", 0, "a script"),
            ("MZ", 0, "an EFI or Windows program without a Linux header")
        ]
        for kind in kinds where file.matches(kind.magic.unicodeScalars.map { UInt8($0.value) }, at: kind.offset) {
            return kind.name
        }
        if let compression = try? PayloadCompression(of: file), compression != .none {
            return "a file compressed with \(compression.rawValue) (unpack it first, if it is a kernel)"
        }
        if SetupHeader.isPresent(in: file) == false, file.byteCount < 0x206 {
            return "only \(file.byteCount) bytes long"
        }
        return nil
    }
}

extension ELFImage {
    /// Whether the segments hold a Linux kernel, by its banner.
    package func containsLinuxBanner(_ file: RawSpan) -> Bool {
        segments.contains { file.extracting($0.file).contains(Array("Linux version ".utf8)) }
    }
}

extension RawSpan {
    /// Whether `pattern`, which is not empty, occurs anywhere.
    fileprivate func contains(_ pattern: [UInt8]) -> Bool {
        withUnsafeBytes { bytes in
            var rest = bytes[...]
            while rest.count >= pattern.count {
                let window = UnsafeRawBufferPointer(rebasing: rest)
                // SAFETY: both calls read only inside `window`, which has at least as many bytes as `pattern`.
                guard let base = window.baseAddress,
                    let found = memchr(base, Int32(pattern[0]), window.count - pattern.count + 1)
                else { return false }
                if memcmp(found, pattern, pattern.count) == 0 { return true }
                rest = rest[(rest.startIndex + (UnsafeRawPointer(found) - base) + 1)...]
            }
            return false
        }
    }
}
