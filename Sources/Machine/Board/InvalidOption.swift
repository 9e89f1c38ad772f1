/// An option's value that makes no sense: what was given, what was expected and what to do.
public struct InvalidOption: Error, Equatable, Sendable, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// Values of the form `key=value,key=value`, as `cloud-hypervisor` takes them.
struct OptionFields {
    private(set) var values: [String: String] = [:]

    /// - Parameters:
    ///   - text: what the user gave.
    ///   - keys: the keys that are known.
    ///   - expected: the form of the whole option, for the message.
    init(parsing text: String, keys: [String], expected: String) throws(InvalidOption) {
        for field in text.split(separator: ",", omittingEmptySubsequences: false) {
            guard let equals = field.firstIndex(of: "=") else {
                throw InvalidOption("'\(field)' has no '='; expected \(expected)")
            }
            let key = String(field[..<equals])
            guard keys.contains(key) else {
                throw InvalidOption("'\(key)' is not known here; expected \(expected)")
            }
            guard values[key] == nil else {
                throw InvalidOption("'\(key)' is given twice; expected \(expected)")
            }
            values[key] = String(field[field.index(after: equals)...])
        }
    }
}
