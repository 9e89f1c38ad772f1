import Addressing

/// The page `boot_params` ("zero page") that the 64-bit entry finds in RSI.
///
/// > Source: Documentation/arch/x86/zero-page.rst; arch/x86/include/uapi/asm/bootparam.h.
struct BootParameters {
    /// The page.
    private(set) var bytes = [UInt8](repeating: 0, count: Int(pageSize))

    /// How many memory map entries the page holds.
    static let memoryMapLimit = 128

    /// The size of `COMMAND_LINE_SIZE` on x86 less the NUL, for kernels that do not tell theirs.
    static let usualCommandLineLimit: UInt32 = 2047

    /// - Parameter header: the kernel's own setup header; nil for a kernel that came without, as an ELF file.
    init(header: SetupHeader?) {
        if let header {
            bytes.replaceSubrange(SetupHeader.start..<SetupHeader.start + header.bytes.count, with: header.bytes)
        } else {
            set(UInt16(0xAA55), at: 0x1FE)
            bytes.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
            set(UInt16(0x020F), at: 0x206)
            set(UInt32(0x20_0000), at: 0x230)
        }
        set(UInt16(0xFFFF), at: 0x1FA)  // vid_mode: normal
        set(UInt8(0xFF), at: 0x210)  // type_of_loader: unassigned
        set(bytes[0x211] | 1, at: 0x211)  // loadflags: LOADED_HIGH
        set(UInt64(0), at: 0x250)  // setup_data: none
    }

    mutating func setCommandLine(_ start: GuestPhysicalAddress) {
        set(UInt32(truncatingIfNeeded: start.value), at: 0x228)
    }

    mutating func setInitramfs(_ range: Range<GuestPhysicalAddress>) {
        set(UInt32(truncatingIfNeeded: range.lowerBound.value), at: 0x218)
        set(UInt32(truncatingIfNeeded: range.upperBound.value - range.lowerBound.value), at: 0x21C)
    }

    /// - Parameter start: where the protected-mode part is, for kernels that unpack themselves.
    mutating func setLoadAddress(_ start: GuestPhysicalAddress) {
        set(UInt32(truncatingIfNeeded: start.value), at: 0x214)
    }

    mutating func setRootPointer(_ address: GuestPhysicalAddress) { set(address.value, at: 0x70) }

    /// - Parameter map: at most ``memoryMapLimit`` entries.
    mutating func setMemoryMap(_ map: MemoryMap) {
        set(UInt8(map.entries.count), at: 0x1E8)
        for (index, entry) in map.entries.enumerated() {
            let offset = 0x2D0 + index * 20
            set(entry.range.lowerBound.value, at: offset)
            set(entry.range.upperBound.value - entry.range.lowerBound.value, at: offset + 8)
            set(entry.kind.rawValue, at: offset + 16)
        }
    }

    private mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        for index in 0..<MemoryLayout<T>.size {
            bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * T(index)))
        }
    }
}
