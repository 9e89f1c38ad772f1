import Addressing

/// The structure `hvm_start_info` that the PVH entry finds in EBX, with its module list and memory map behind it.
///
/// > Source: xen/include/public/arch-x86/hvm/start_info.h.
struct PVHStartInfo {
    var commandLine: GuestPhysicalAddress
    var initramfs: Range<GuestPhysicalAddress>?
    var rootPointer: GuestPhysicalAddress
    var memoryMap: MemoryMap

    /// The structure, for guest memory at `address`.
    func bytes(at address: GuestPhysicalAddress) -> [UInt8] {
        let moduleList = address + 56
        let map = moduleList + (initramfs == nil ? 0 : 32)
        var bytes: [UInt8] = []
        bytes.appendInteger(UInt32(0x336E_C578))  // "xEn3" with the top bit of E set
        bytes.appendInteger(UInt32(1))  // version with memory map
        bytes.appendInteger(UInt32(0))
        bytes.appendInteger(UInt32(initramfs == nil ? 0 : 1))
        bytes.appendInteger(initramfs == nil ? 0 : moduleList.value)
        bytes.appendInteger(commandLine.value)
        bytes.appendInteger(rootPointer.value)
        bytes.appendInteger(map.value)
        bytes.appendInteger(UInt32(memoryMap.entries.count))
        bytes.appendInteger(UInt32(0))
        if let initramfs {
            bytes.appendInteger(initramfs.lowerBound.value)
            bytes.appendInteger(initramfs.upperBound.value - initramfs.lowerBound.value)
            bytes.appendInteger(UInt64(0))  // no command line of its own
            bytes.appendInteger(UInt64(0))
        }
        for entry in memoryMap.entries {
            bytes.appendInteger(entry.range.lowerBound.value)
            bytes.appendInteger(entry.range.upperBound.value - entry.range.lowerBound.value)
            bytes.appendInteger(entry.kind.rawValue)
            bytes.appendInteger(UInt32(0))
        }
        return bytes
    }
}

extension [UInt8] {
    /// Appends `value`, little-endian.
    mutating func appendInteger<T: FixedWidthInteger>(_ value: T) {
        for index in 0..<MemoryLayout<T>.size { append(UInt8(truncatingIfNeeded: value >> (8 * T(index)))) }
    }
}
