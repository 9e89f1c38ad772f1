/// A guest of a few instructions, as an ELF file with a PVH note: it starts in 32-bit protected mode without paging.
enum BareGuest {
    /// Waits for interrupts that never come.
    static let idle: [UInt8] = [0xF4, 0xEB, 0xFD]  // hlt; jmp

    static func print(_ text: String) -> [UInt8] {
        out(0x3F8) + text.utf8.flatMap { [0xB0, $0, 0xEE] }  // mov al, c; out dx, al
    }

    /// PM1 control: SLP_EN with the type of S5.
    static let powerOff: [UInt8] = out(0x604) + [0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF] + idle  // mov ax, v; out dx, ax

    static let reset: [UInt8] = out(0xCF9) + [0xB0, 0x06, 0xEE] + idle

    /// An exception without an interrupt table.
    static let tripleFault: [UInt8] = [0x0F, 0x0B]  // ud2

    /// Raises RTS, then sends back every byte that arrives.
    static let echo: [UInt8] =
        out(0x3FC) + [0xB0, 0x0B, 0xEE]
        + [0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xF7]  // wait: in al, 0x3FD; test al, 1; jz wait
        + [0x66, 0xBA, 0xF8, 0x03, 0xEC, 0xEE, 0xEB, 0xEF]  // in al, 0x3F8; out 0x3F8, al; jmp wait

    /// mov dx, port
    private static func out(_ port: UInt16) -> [UInt8] { [0x66, 0xBA, UInt8(port & 0xFF), UInt8(port >> 8)] }

    /// The ELF file with `code` at 1 MiB.
    static func elf(_ code: [UInt8]) -> [UInt8] {
        let entry: UInt32 = 0x10_0000
        func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
            (0..<MemoryLayout<T>.size).map { UInt8(truncatingIfNeeded: value >> T(8 * $0)) }
        }
        func header(type: UInt32, flags: UInt32, offset: Int, address: UInt64, count: Int) -> [UInt8] {
            little(type) + little(flags) + little(UInt64(offset)) + little(address) + little(address)
                + little(UInt64(count)) + little(UInt64(count)) + little(UInt64(4))
        }
        // Name "Xen", type 18: the 32-bit entry.
        let note = little(UInt32(4)) + little(UInt32(4)) + little(UInt32(18)) + Array("Xen\0".utf8) + little(entry)
        let codeOffset = 64 + 2 * 56
        var file: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        file += little(UInt16(2)) + little(UInt16(62)) + little(UInt32(1)) + little(UInt64(entry))
        file += little(UInt64(64)) + little(UInt64(0)) + little(UInt32(0))
        file += little(UInt16(64)) + little(UInt16(56)) + little(UInt16(2))
        file += little(UInt16(0)) + little(UInt16(0)) + little(UInt16(0))
        file += header(type: 1, flags: 7, offset: codeOffset, address: UInt64(entry), count: code.count)
        file += header(type: 4, flags: 4, offset: codeOffset + code.count, address: 0, count: note.count)
        return file + code + note
    }
}
