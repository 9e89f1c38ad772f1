/// The few constructs of the ACPI Machine Language that the DSDT needs, as bytes.
///
/// > Source: ACPI 6.3, chapter 20.
enum AML {
    /// A name of up to four characters, padded as AML wants it.
    static func nameSegment(_ name: String) -> [UInt8] {
        precondition(isNameSegment(name), "no ACPI name: \(name)")
        let characters = Array(name.utf8)
        return characters + [UInt8](repeating: UInt8(ascii: "_"), count: 4 - characters.count)
    }

    static func isNameSegment(_ name: String) -> Bool {
        func isLead(_ byte: UInt8) -> Bool { (0x41...0x5A).contains(byte) || byte == 0x5F }
        guard let first = name.utf8.first, name.utf8.count <= 4, isLead(first) else { return false }
        return name.utf8.allSatisfy { isLead($0) || (0x30...0x39).contains($0) }
    }

    /// `Name (name, value)`; a leading backslash makes the name absolute.
    static func name(_ name: String, _ value: [UInt8]) -> [UInt8] { [0x08] + path(name) + value }

    /// `Scope (name) { contents }`.
    static func scope(_ name: String, _ contents: [UInt8]) -> [UInt8] { [0x10] + sized(path(name) + contents) }

    /// `Device (name) { contents }`.
    static func device(_ name: String, _ contents: [UInt8]) -> [UInt8] {
        [0x5B, 0x82] + sized(nameSegment(name) + contents)
    }

    /// `Package { elements }`.
    static func package(_ elements: [[UInt8]]) -> [UInt8] {
        [0x12] + sized([UInt8(elements.count)] + elements.flatMap { $0 })
    }

    /// `Buffer { bytes }`.
    static func buffer(_ bytes: [UInt8]) -> [UInt8] { [0x11] + sized(integer(UInt64(bytes.count)) + bytes) }

    static func integer(_ value: UInt64) -> [UInt8] {
        var bytes: [UInt8] = []
        switch value {
        case 0: bytes = [0x00]
        case 1: bytes = [0x01]
        case ...0xFF: bytes = [0x0A, UInt8(value)]
        case ...0xFFFF:
            bytes = [0x0B]
            bytes.appendInteger(UInt16(value))
        case ...0xFFFF_FFFF:
            bytes = [0x0C]
            bytes.appendInteger(UInt32(value))
        default:
            bytes = [0x0E]
            bytes.appendInteger(value)
        }
        return bytes
    }

    /// A `_HID`: the packed form of "AAAxxxx" with hexadecimal digits, else the string.
    static func hardwareID(_ id: String) -> [UInt8] {
        let characters = Array(id.utf8)
        if characters.count == 7, characters[..<3].allSatisfy({ (0x41...0x5A).contains($0) }),
            let product = UInt16(String(id.suffix(4)), radix: 16)
        {
            let vendor = characters[..<3].reduce(UInt16(0)) { $0 << 5 | UInt16($1 - 0x40) }
            return [
                0x0C, UInt8(vendor >> 8), UInt8(vendor & 0xFF), UInt8(product >> 8), UInt8(product & 0xFF)
            ]
        }
        return [0x0D] + characters + [0]
    }

    private static func path(_ name: String) -> [UInt8] {
        name.hasPrefix("\\") ? [0x5C] + nameSegment(String(name.dropFirst())) : nameSegment(name)
    }

    /// `contents` behind its package length, which counts itself.
    private static func sized(_ contents: [UInt8]) -> [UInt8] {
        if contents.count + 1 <= 0x3F { return [UInt8(contents.count + 1)] + contents }
        for extra in 1...3 {
            let total = contents.count + 1 + extra
            guard total < 1 << (4 + 8 * extra) else { continue }
            var length = [UInt8(extra << 6 | total & 0xF)]
            for index in 0..<extra { length.append(UInt8(truncatingIfNeeded: total >> (4 + 8 * index))) }
            return length + contents
        }
        preconditionFailure("an AML package of \(contents.count) bytes")
    }
}
