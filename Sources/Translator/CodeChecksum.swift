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

/// What a page was like when code was translated from it.
struct CodeSample {
    /// The host's page.
    var page: UnsafeMutableRawPointer
    /// 64-byte pieces that blocks were translated from, one bit each.
    var pieces: UInt64
    var checksum: UInt64

    /// Whether the page still is like that; nil if there is no memory any more.
    var isCurrent: Bool? {
        if pieces == 0 { return true }
        guard let checksum = CodeChecksum.of(page, pieces: pieces) else { return nil }
        return checksum == self.checksum
    }
}

/// The pages that a processor's jump cache may lead to, as they were when it learnt of them: a handful, for the boot loaders
/// and small programs that leave for the client again and again.
struct KnownCode {
    private var samples = InlineArray<4, CodeSample?>(repeating: nil)
    /// More than there is room for counts as unknown.
    private var count = 0
    /// `TranslationCache.codeCount` for all samples.
    private var codeCount: UInt64 = 0

    /// - Parameter codeCount: read before the sample was taken.
    mutating func note(_ sample: CodeSample, codeCount: UInt64) {
        if count == 0 { self.codeCount = codeCount }
        guard count < samples.count, self.codeCount == codeCount else {
            count = samples.count + 1
            return
        }
        samples[count] = sample
        count += 1
    }

    /// Whether everything is as it was.
    func isCurrent(codeCount: UInt64) -> Bool {
        if count == 0 { return true }
        guard count <= samples.count, self.codeCount == codeCount else { return false }
        for index in 0..<count where samples[index]?.isCurrent != true { return false }
        return true
    }

    mutating func forget() { count = 0 }
}
