/// A sum over the bytes of a page that code was translated from, to find out whether they were changed from outside.
///
/// Pieces of 64 bytes are summed one by one, so more of them can be added later. Each word is multiplied by an odd number of
/// its place in the page: a change of one word always shows, one of several with all but certainty. Client's changes are no
/// attack on it: who changes the bytes could as well change the code.
enum CodeChecksum {
    /// - Parameters:
    ///   - page: a page of guest memory, or a copy of one.
    ///   - pieces: which pieces count, one bit each.
    /// - Returns: nil if there is no memory any more.
    static func of(_ page: UnsafeRawPointer, pieces: UInt64) -> UInt64? {
        var words = InlineArray<8, UInt64>(repeating: 0)
        var left = pieces
        var sum: UInt64 = 0
        while left != 0 {
            let piece = left.trailingZeroBitCount
            left &= left &- 1
            let isCopied = withUnsafeMutableBytes(of: &words) { copy in
                // SAFETY: both have 64 bytes.
                copy.baseAddress.unsafelyUnwrapped.copyGuestBytes(from: page + piece * 64, byteCount: 64)
            }
            guard isCopied else { return nil }
            var factor = UInt64(piece * 16 + 1) &* 0x9E37_79B9_7F4A_7C15 | 1
            for index in 0..<8 {
                let word = words[index]
                sum &+= (word ^ word >> 32) &* factor
                factor &+= 0x3C6E_F372_FE94_F82A
            }
        }
        return sum
    }
}
