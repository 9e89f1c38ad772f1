/// How the kernel inside a bzImage is packed.
///
/// The kernel's build appends the unpacked size, 4 bytes little-endian, to formats that do not end with it (LZ4, XZ
/// and Zstandard; gzip ends with it by itself). It serves as a hint and, afterwards, as a check.
///
/// > Source: Documentation/arch/x86/boot.rst, `payload_offset`; scripts/Makefile.lib, `size_append`.
public enum PayloadCompression: String, Sendable, CaseIterable {
    case none = "uncompressed"
    case lz4 = "LZ4"
    case xz = "XZ"
    case zstandard = "Zstandard"
    case gzip = "gzip"

    /// The compression of `payload` by its first bytes.
    package init(of payload: RawSpan) throws(KernelImageError) {
        if payload.matches([0x02, 0x21, 0x4C, 0x18]) {
            self = .lz4
        } else if payload.matches([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00]) {
            self = .xz
        } else if payload.matches([0x28, 0xB5, 0x2F, 0xFD]) {
            self = .zstandard
        } else if payload.matches([0x1F, 0x8B]) {
            self = .gzip
        } else if payload.matches(ELFImage.magic) {
            self = .none
        } else if payload.matches([0x42, 0x5A, 0x68]) {
            throw .unsupportedCompression("bzip2")
        } else if payload.matches([0x5D, 0x00, 0x00]) {
            throw .unsupportedCompression("LZMA")
        } else if payload.matches([0x89, 0x4C, 0x5A, 0x4F]) {
            throw .unsupportedCompression("LZO")
        } else {
            throw .malformed(part: .payload, detail: "the first bytes name no compression")
        }
    }

    /// Unpacks `payload`, which begins with this format's magic number.
    ///
    /// - Parameter limit: the most bytes the result may have.
    package func unpack(_ payload: RawSpan, limit: Int) throws(KernelImageError) -> HostBuffer {
        var output = HostBuffer(limit: limit)
        // A hint beyond the limit is left to the decoder, which knows whether there is a size at all.
        if payload.byteCount >= 4, let hint = payload.integer(at: payload.byteCount - 4, as: UInt32.self),
            hint > 0, hint <= limit
        {
            try reserve(Int(hint), in: &output)
        }
        let consumed =
            switch self {
            case .none: try copy(payload, into: &output)
            case .lz4: try unpackLZ4(payload, into: &output)
            case .xz: try unpackXZ(payload, into: &output)
            case .zstandard: try unpackZstandard(payload, into: &output)
            case .gzip: try unpackGzip(payload, into: &output)
            }
        if payload.byteCount - consumed == 4, let size = payload.integer(at: consumed, as: UInt32.self),
            size != output.count
        {
            throw .corruptPayload(self, detail: "unpacks to \(output.count) bytes, expected \(size)")
        }
        return output
    }

    private func copy(_ payload: RawSpan, into output: inout HostBuffer) throws(KernelImageError) -> Int {
        guard payload.byteCount <= output.limit else { throw .payloadTooLarge(limit: UInt64(output.limit)) }
        try reserve(payload.byteCount, in: &output)
        payload.withUnsafeBytes { source in
            output.fill { room, filled in
                filled = source.count
                room.copyMemory(from: source)
            }
        }
        return payload.byteCount
    }

    /// ``HostBuffer/reserve(_:)`` with this format's errors.
    func reserve(_ byteCount: Int, in output: inout HostBuffer) throws(KernelImageError) {
        do {
            try output.reserve(byteCount)
        } catch .limitReached {
            throw .payloadTooLarge(limit: UInt64(output.limit))
        } catch {
            throw .outOfHostMemory
        }
    }
}
