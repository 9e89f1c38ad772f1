import Addressing

/// How much memory a machine has: at least one page, and whole pages.
public struct MemorySize: Equatable, Sendable, CustomStringConvertible {
    public let byteCount: UInt64

    /// - Throws: ``InvalidOption`` unless `byteCount` is a positive multiple of 4 KiB.
    public init(byteCount: UInt64) throws(InvalidOption) {
        guard byteCount > 0 else { throw InvalidOption("the memory size is 0; expected \(Self.form)") }
        guard byteCount.isMultiple(of: pageSize) else {
            throw InvalidOption("\(byteCount) bytes of memory are not a multiple of 4 KiB; expected \(Self.form)")
        }
        self.byteCount = byteCount
    }

    /// Parses `512M` or `size=512M`; the suffixes K, M, G and T stand for powers of 1024, no suffix for bytes.
    public init(parsing text: String) throws(InvalidOption) {
        var number = text
        if text.contains("=") {
            let fields = try OptionFields(parsing: text, keys: ["size"], expected: Self.form)
            number = fields.values["size"] ?? ""
        }
        let shift: Int
        switch number.last {
        case "K", "k": shift = 10
        case "M", "m": shift = 20
        case "G", "g": shift = 30
        case "T", "t": shift = 40
        default: shift = 0
        }
        let digits = shift == 0 ? Substring(number) : number.dropLast()
        guard digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let count = UInt64(digits) else {
            throw InvalidOption("'\(text)' is not a memory size; expected \(Self.form)")
        }
        guard count <= UInt64.max >> UInt64(shift + 1) else {
            throw InvalidOption("'\(text)' is more memory than can be addressed; expected \(Self.form)")
        }
        try self.init(byteCount: count << UInt64(shift))
    }

    /// The size with the largest suffix that keeps it whole.
    public var description: String {
        for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M")] where byteCount.trailingZeroBitCount >= shift {
            return "\(byteCount >> UInt64(shift))\(suffix)"
        }
        return "\(byteCount >> 10)K"
    }

    private static var form: String { "a multiple of 4K such as 512M, 2G or size=512M" }
}
