import CZlib

extension PayloadCompression {
    /// Unpacks one gzip member.
    ///
    /// - Returns: how many bytes of `payload` the member takes.
    func unpackGzip(_ payload: RawSpan, into output: inout HostBuffer) throws(KernelImageError) -> Int {
        var stream = z_stream()
        let gzipOnly: Int32 = 16
        guard
            inflateInit2_(&stream, gzipOnly + MAX_WBITS, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK
        else { throw .outOfHostMemory }
        defer { inflateEnd(&stream) }
        var consumed = 0
        while true {
            try reserve(1 << 20, in: &output)
            let result = payload.withUnsafeBytes { source in
                output.fill { room, filled -> Int32 in
                    let inputCount = min(source.count - consumed, 1 << 30)
                    let outputCount = min(room.count, 1 << 30)
                    // SAFETY: the decoder stays inside the room and the input it is given the sizes of, and does not
                    // write to the input in spite of the type.
                    stream.next_in = source.assumingMemoryBound(to: UInt8.self).baseAddress.map {
                        UnsafeMutablePointer(mutating: $0 + consumed)
                    }
                    stream.avail_in = UInt32(inputCount)
                    stream.next_out = room.assumingMemoryBound(to: UInt8.self).baseAddress
                    stream.avail_out = UInt32(outputCount)
                    let result = inflate(&stream, Z_NO_FLUSH)
                    consumed += inputCount - Int(stream.avail_in)
                    filled = outputCount - Int(stream.avail_out)
                    return result
                }
            }
            switch result {
            case Z_STREAM_END: return consumed
            case Z_OK:
                if output.lastFill == 0, consumed == payload.byteCount { throw unfinished }
            case Z_BUF_ERROR: throw unfinished
            case Z_MEM_ERROR: throw .outOfHostMemory
            default: throw .corruptPayload(self, detail: "does not unpack (zlib error \(result))")
            }
        }
    }
}
