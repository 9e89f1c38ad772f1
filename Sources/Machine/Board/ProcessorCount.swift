/// How many processors a machine has.
public struct ProcessorCount: Equatable, Sendable {
    /// Processors present when the machine starts.
    public let boot: Int
    /// Processors that can be present.
    public let maximum: Int

    /// The largest ``maximum``: local APIC identifiers have 8 bits, and 255 addresses all of them.
    public static var limit: Int { 254 }

    /// - Throws: ``InvalidOption`` unless 1 ≤ `boot` ≤ `maximum` ≤ ``limit``.
    public init(boot: Int, maximum: Int) throws(InvalidOption) {
        guard boot >= 1 else { throw InvalidOption("there are \(boot) processors; expected \(Self.form)") }
        guard maximum <= Self.limit else {
            throw InvalidOption("\(maximum) processors are too many; expected \(Self.form)")
        }
        guard boot <= maximum else {
            throw InvalidOption("boot=\(boot) is more than max=\(maximum); expected \(Self.form)")
        }
        self.boot = boot
        self.maximum = maximum
    }

    /// Parses `2` or `boot=2,max=8`; without `max` it is the same as `boot`.
    public init(parsing text: String) throws(InvalidOption) {
        guard text.contains("=") else {
            let count = try Self.number(text)
            try self.init(boot: count, maximum: count)
            return
        }
        let fields = try OptionFields(parsing: text, keys: ["boot", "max"], expected: Self.form)
        guard let bootText = fields.values["boot"] else {
            throw InvalidOption("'\(text)' does not say 'boot='; expected \(Self.form)")
        }
        let boot = try Self.number(bootText)
        let maximum = if let text = fields.values["max"] { try Self.number(text) } else { boot }
        try self.init(boot: boot, maximum: maximum)
    }

    private static func number(_ text: String) throws(InvalidOption) -> Int {
        guard !text.isEmpty, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            throw InvalidOption("'\(text)' is not a number of processors; expected \(form)")
        }
        return Int(text) ?? .max
    }

    private static var form: String { "1 to \(limit), as in 2 or boot=2,max=8" }
}
