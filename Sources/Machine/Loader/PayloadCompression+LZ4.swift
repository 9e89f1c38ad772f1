import CLZ4

extension PayloadCompression {
    /// Unpacks the legacy frame format: after the magic number, blocks of a 4-byte size and that many packed bytes,
    /// each at most 8 MiB unpacked; no end mark and no checksum.
    ///
    /// > Source: lz4_Frame_format.md, "Legacy frame".
    /// - Returns: how many bytes of `payload` the blocks take.
    func unpackLZ4(_ payload: RawSpan, into output: inout HostBuffer) throws(KernelImageError) -> Int {
        let magic: UInt32 = 0x184C_2102
        let blockByteCount = 8 << 20
        var position = 4
        while true {
            let rest = payload.byteCount - position
            // Four last bytes are the appended size.
            if rest == 0 || rest == 4 { return position }
            guard let size = payload.integer(at: position, as: UInt32.self) else {
                throw .corruptPayload(self, detail: "has \(rest) bytes after its last block")
            }
            position += 4
            // Files joined end to end repeat the magic number.
            if size == magic { continue }
            guard size > 0, Int64(size) <= Int64(LZ4_compressBound(Int32(blockByteCount))) else {
                throw .corruptPayload(self, detail: "has a block of \(size) bytes at \(position - 4)")
            }
            guard let block = payload.offsets(at: UInt64(position), count: UInt64(size)) else {
                throw .truncated(
                    part: .payload, needed: UInt64(position) + UInt64(size), actual: UInt64(payload.byteCount))
            }
            try reserve(blockByteCount, in: &output)
            let result = payload.extracting(block).withUnsafeBytes { source in
                output.fill { room, filled -> Int32 in
                    let capacity = Int32(clamping: min(room.count, blockByteCount))
                    // SAFETY: the decoder reads and writes only inside the two buffers it is given the sizes of.
                    let written = LZ4_decompress_safe(
                        source.assumingMemoryBound(to: CChar.self).baseAddress,
                        room.assumingMemoryBound(to: CChar.self).baseAddress, Int32(source.count), capacity)
                    filled = max(0, Int(written))
                    return written
                }
            }
            guard result > 0 else {
                // The decoder says the same of a full buffer as of a bad block.
                if output.limit - output.count < blockByteCount { throw .payloadTooLarge(limit: UInt64(output.limit)) }
                throw .corruptPayload(self, detail: "has a bad block at \(position - 4)")
            }
            position = block.upperBound
        }
    }
}
