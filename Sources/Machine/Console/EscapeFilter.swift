/// Finds the console's own commands in what the user types: Ctrl-A x leaves, Ctrl-A a or Ctrl-A Ctrl-A sends Ctrl-A.
///
/// Ctrl-A followed by anything else sends nothing, as in other programs with this prefix.
struct EscapeFilter {
    private var hasPrefix = false

    private static var prefix: UInt8 { 0x01 }

    /// What is left of `input` for the guest, and whether the user wants to leave; nothing after that is passed on.
    mutating func filter(_ input: some Sequence<UInt8>) -> (output: [UInt8], leaves: Bool) {
        var output: [UInt8] = []
        for byte in input {
            guard hasPrefix else {
                if byte == Self.prefix { hasPrefix = true } else { output.append(byte) }
                continue
            }
            hasPrefix = false
            switch byte {
            case UInt8(ascii: "x"): return (output, true)
            case UInt8(ascii: "a"), Self.prefix: output.append(Self.prefix)
            default: break
            }
        }
        return (output, false)
    }
}
