/// One ACPI table: the common header and a body, with its checksum right.
///
/// > Source: ACPI 6.3, 5.2.6 "System Description Table Header".
package struct ACPITable: Sendable {
    package let bytes: [UInt8]

    /// The size of the header.
    static let headerByteCount = 36

    /// - Parameters:
    ///   - signature: four ASCII characters.
    ///   - body: what follows the header.
    init(signature: String, revision: UInt8, body: [UInt8]) {
        precondition(signature.utf8.count == 4, "a signature has four characters")
        var bytes = Array(signature.utf8)
        bytes.appendInteger(UInt32(Self.headerByteCount + body.count))
        bytes.append(revision)
        bytes.append(0)
        bytes += Array("MARTLT".utf8)
        bytes += Array("MARTLET ".utf8)
        bytes.appendInteger(UInt32(1))
        bytes += Array("MRTL".utf8)
        bytes.appendInteger(UInt32(1))
        bytes += body
        bytes[9] = Self.checksum(bytes)
        self.bytes = bytes
    }

    /// The byte that makes `bytes`, with 0 in its place, sum up to 0.
    static func checksum(_ bytes: [UInt8]) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}
