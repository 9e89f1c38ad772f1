/// The setup header of a bzImage: what the kernel's build tells boot loaders.
///
/// Fields that came with later protocol versions have the value that means "absent" for earlier ones.
///
/// > Source: Documentation/arch/x86/boot.rst.
package struct SetupHeader: Equatable, Sendable {
    /// The oldest protocol this loader reads: 2.06 gave the command line its size.
    package static let oldestVersion: UInt16 = 0x0206

    /// The protocol version, major in the high byte.
    package var version: UInt16
    /// Where the protected-mode part begins in the file.
    package var protectedModeOffset: UInt64
    /// The size of the protected-mode part as the header gives it, in 16-byte units rounded up.
    package var protectedModeByteCount: UInt64
    /// The highest address an initramfs byte may have.
    package var initramfsAddressMaximum: UInt32
    package var isRelocatable: Bool
    /// The alignment a relocatable kernel needs.
    package var alignment: UInt32
    /// There is a 64-bit entry 0x200 bytes into the protected-mode part.
    package var has64BitEntry: Bool
    /// The longest command line, without its NUL.
    package var commandLineLimit: UInt32
    /// The compressed kernel, relative to the protected-mode part; nil before protocol 2.08.
    package var payload: (offset: UInt32, byteCount: UInt32)? {
        version >= 0x0208 ? (payloadOffset, payloadByteCount) : nil
    }
    private var payloadOffset: UInt32
    private var payloadByteCount: UInt32
    /// Where the kernel is linked to run.
    package var preferredAddress: UInt64
    /// The memory the kernel needs from its load address on while it unpacks itself and starts.
    package var initByteCount: UInt32
    /// The header's bytes, for `boot_params`; they begin at offset 0x1F1.
    package var bytes: [UInt8]
    /// The kernel's version string, such as "6.1.0-13-amd64 (…) #1 SMP …".
    package var kernelVersion: String?

    /// Where the header is, in the file and in `boot_params`.
    package static let start = 0x1F1
    /// The end of the room `boot_params` has for it.
    package static let limit = 0x290

    /// Whether `file` has the two marks of a setup header.
    package static func isPresent(in file: RawSpan) -> Bool {
        file.matches([0x55, 0xAA], at: 0x1FE) && file.matches(Array("HdrS".utf8), at: 0x202)
    }

    /// Reads the header of `file`, in which ``isPresent(in:)`` found one.
    package init(parsing file: RawSpan) throws(KernelImageError) {
        func field<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _: T.Type) throws(KernelImageError) -> T {
            if let value = file.integer(at: offset, as: T.self) { return value }
            throw .truncated(
                part: .setupHeader, needed: UInt64(offset + MemoryLayout<T>.size), actual: UInt64(file.byteCount))
        }
        version = try field(0x206, UInt16.self)
        guard version >= Self.oldestVersion else {
            let (major, minor) = (version >> 8, version & 0xFF)
            throw .unsupported(
                detail: "it speaks boot protocol \(major).\(minor < 10 ? "0" : "")\(minor), expected 2.06 or newer; "
                    + "use Linux 2.6.22 or newer")
        }
        guard try field(0x211, UInt8.self) & 1 != 0 else {
            throw .unsupported(
                detail: "it is a zImage loaded below 1 MiB, expected a bzImage; build it with `make bzImage`")
        }
        let setupSectors = try field(0x1F1, UInt8.self)
        // 0 means 4, for very old loaders' sake; the boot sector is not counted.
        protectedModeOffset = (UInt64(setupSectors == 0 ? 4 : setupSectors) + 1) * 512
        protectedModeByteCount = UInt64(try field(0x1F4, UInt32.self)) * 16
        initramfsAddressMaximum = try field(0x22C, UInt32.self)
        alignment = try field(0x230, UInt32.self)
        isRelocatable = try field(0x234, UInt8.self) != 0
        commandLineLimit = try field(0x238, UInt32.self)
        has64BitEntry = version >= 0x020C ? try field(0x236, UInt16.self) & 1 != 0 : false
        payloadOffset = version >= 0x0208 ? try field(0x248, UInt32.self) : 0
        payloadByteCount = version >= 0x0208 ? try field(0x24C, UInt32.self) : 0
        preferredAddress = version >= 0x020A ? try field(0x258, UInt64.self) : 0x10_0000
        initByteCount = version >= 0x020A ? try field(0x260, UInt32.self) : 0
        // The jump over the header at its start, two bytes, says where it ends.
        let end = min(0x202 + Int(try field(0x201, UInt8.self)), Self.limit)
        guard end >= 0x23C else {
            throw .malformed(
                part: .setupHeader, detail: "it ends at \(hexadecimal(UInt64(end))), expected 0x23c or more")
        }
        guard let bytes = file.array(Self.start..<min(end, file.byteCount)), bytes.count == end - Self.start else {
            throw .truncated(part: .setupHeader, needed: UInt64(end), actual: UInt64(file.byteCount))
        }
        self.bytes = bytes
        let versionOffset = Int(try field(0x20E, UInt16.self))
        kernelVersion = versionOffset == 0 ? nil : Self.string(in: file, at: versionOffset + 0x200)
    }

    /// The NUL-terminated printable string at `offset`; nil if there is none.
    private static func string(in file: RawSpan, at offset: Int) -> String? {
        var characters: [UInt8] = []
        while characters.count < 256, let byte = file.integer(at: offset + characters.count, as: UInt8.self), byte != 0
        {
            guard (0x20..<0x7F).contains(byte) else { return nil }
            characters.append(byte)
        }
        return characters.isEmpty ? nil : String(decoding: characters, as: UTF8.self)
    }

    /// Where the protected-mode part is in `file`.
    package func protectedMode(in file: RawSpan) throws(KernelImageError) -> Range<Int> {
        let size = UInt64(file.byteCount)
        guard protectedModeOffset < size else {
            throw .truncated(part: .protectedMode, needed: protectedModeOffset + protectedModeByteCount, actual: size)
        }
        guard protectedModeByteCount > 0x200 else {
            throw .malformed(part: .setupHeader, detail: "the protected-mode part has \(protectedModeByteCount) bytes")
        }
        let rest = size - protectedModeOffset
        // The size is rounded up, and not every build pads the file.
        guard protectedModeByteCount <= rest + 15 else {
            throw .truncated(part: .protectedMode, needed: protectedModeOffset + protectedModeByteCount, actual: size)
        }
        return Int(protectedModeOffset)..<Int(protectedModeOffset + min(protectedModeByteCount, rest))
    }

    /// Where the compressed kernel is in `file`.
    package func payload(in file: RawSpan) throws(KernelImageError) -> Range<Int> {
        guard let payload else {
            throw .unsupported(
                detail: "its boot protocol is older than 2.08 and does not say where the compressed kernel is")
        }
        guard payload.byteCount > 0 else {
            throw .malformed(part: .setupHeader, detail: "the compressed payload has no bytes")
        }
        let start = protectedModeOffset + UInt64(payload.offset)
        guard let range = file.offsets(at: start, count: UInt64(payload.byteCount)) else {
            throw .truncated(
                part: .payload, needed: start + UInt64(payload.byteCount), actual: UInt64(file.byteCount))
        }
        return range
    }
}
