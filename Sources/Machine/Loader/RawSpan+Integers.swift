/// Checked reads for formats whose every offset and size is the file's claim.
extension RawSpan {
    /// The little-endian integer at `offset`, which needs no alignment; nil if any of it is outside.
    package func integer<T: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: T.Type = T.self) -> T? {
        guard offset >= 0, offset <= byteCount, byteCount - offset >= MemoryLayout<T>.size else { return nil }
        // SAFETY: inside by the check; every bit pattern is an integer.
        return T(littleEndian: unsafeLoadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// The offsets `start ..< start + count`; nil if any of them is outside.
    package func offsets(at start: UInt64, count: UInt64) -> Range<Int>? {
        let size = UInt64(byteCount)
        guard start <= size, count <= size - start else { return nil }
        return Int(start)..<Int(start + count)
    }

    /// A copy of the bytes in `range`; nil if any of them is outside.
    package func array(_ range: Range<Int>) -> [UInt8]? {
        guard range.lowerBound >= 0, range.upperBound <= byteCount else { return nil }
        return extracting(range).withUnsafeBytes { [UInt8]($0) }
    }

    /// Whether the bytes at `offset` are `expected`.
    package func matches(_ expected: [UInt8], at offset: Int = 0) -> Bool {
        guard offset >= 0, offset <= byteCount, byteCount - offset >= expected.count else { return false }
        return array(offset..<offset + expected.count) == expected
    }
}
