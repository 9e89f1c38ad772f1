/// Why a file is not a kernel this loader can place in memory.
///
/// The descriptions are the ends of sentences that begin with the file's name; ``BootError`` completes them.
public enum KernelImageError: Error, Equatable, Sendable {
    /// The file is neither a bzImage nor an ELF file; `looksLike` says what it might be.
    case notAKernel(looksLike: String?)
    /// `part` needs bytes up to `needed`, but the file (or the unpacked payload) has `actual`.
    case truncated(part: Part, needed: UInt64, actual: UInt64)
    /// A field of `part` says something impossible.
    case malformed(part: Part, detail: String)
    /// A kernel, but not one this machine can run.
    case unsupported(detail: String)
    /// The payload's compression is not one the loader unpacks; the guest can.
    case unsupportedCompression(String)
    /// The payload does not unpack.
    case corruptPayload(PayloadCompression, detail: String)
    /// The payload unpacks to more than `limit` bytes, the size of the guest's low RAM.
    case payloadTooLarge(limit: UInt64)
    /// The host had no memory to unpack the payload into.
    case outOfHostMemory

    public enum Part: String, Sendable {
        case setupHeader = "bzImage setup header"
        case protectedMode = "protected-mode part"
        case payload = "compressed payload"
        case elfHeader = "ELF header"
        case programHeaders = "ELF program headers"
        case segment = "ELF segment"
        case note = "ELF note"
    }
}

extension KernelImageError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .notAKernel(let looksLike):
            let found = looksLike.map { "is \($0)" } ?? "is of no known kind"
            return "\(found); expected an x86-64 bzImage (vmlinuz) or an ELF vmlinux"
        case .truncated(let part, let needed, let actual):
            return "is truncated: its \(part.rawValue) ends at byte \(needed), but there are only \(actual); "
                + "copy or download it again"
        case .malformed(let part, let detail):
            return "is damaged: in its \(part.rawValue), \(detail); copy or download it again"
        case .unsupported(let detail):
            return "cannot run here: \(detail)"
        case .unsupportedCompression(let name):
            return "is compressed with \(name), expected LZ4, XZ, Zstandard or gzip; let the guest unpack it "
                + "(--unpack guest)"
        case .corruptPayload(let compression, let detail):
            return "is damaged: its \(compression.rawValue) payload \(detail); copy or download it again"
        case .payloadTooLarge(let limit):
            return "unpacks to more than the guest's \(describe(byteCount: limit)) of low RAM; "
                + "give the guest more memory (--memory), or copy the kernel again if it should fit"
        case .outOfHostMemory:
            return
                "cannot be unpacked: the host is out of memory; free some, or let the guest unpack it (--unpack guest)"
        }
    }
}

/// A size for messages: in MiB or KiB where it is a multiple, else in bytes.
func describe(byteCount: UInt64) -> String {
    if byteCount >= 1 << 20, byteCount.isMultiple(of: 1 << 20) { return "\(byteCount >> 20) MiB" }
    if byteCount >= 1 << 10, byteCount.isMultiple(of: 1 << 10) { return "\(byteCount >> 10) KiB" }
    return "\(byteCount) bytes"
}

/// A number for messages, in hexadecimal.
func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
