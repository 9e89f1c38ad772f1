import CZstd

extension PayloadCompression {
    /// Unpacks one Zstandard frame with a window of up to 128 MiB, what the kernel's build uses.
    ///
    /// - Returns: how many bytes of `payload` the frame takes.
    func unpackZstandard(_ payload: RawSpan, into output: inout HostBuffer) throws(KernelImageError) -> Int {
        guard let stream = ZSTD_createDStream() else { throw .outOfHostMemory }
        defer { ZSTD_freeDStream(stream) }
        var consumed = 0
        while true {
            try reserve(1 << 20, in: &output)
            let result = payload.withUnsafeBytes { source in
                output.fill { room, filled -> Int in
                    // SAFETY: the decoder stays inside the two buffers it is given the sizes of.
                    var input = ZSTD_inBuffer(src: source.baseAddress, size: source.count, pos: consumed)
                    var target = ZSTD_outBuffer(dst: room.baseAddress, size: room.count, pos: 0)
                    let result = ZSTD_decompressStream(stream, &target, &input)
                    consumed = input.pos
                    filled = target.pos
                    return result
                }
            }
            if ZSTD_isError(result) != 0 {
                let name = ZSTD_getErrorName(result).map { String(cString: $0) } ?? "unknown"
                throw .corruptPayload(self, detail: "does not unpack (\(name))")
            }
            if result == 0 { return consumed }
            if output.lastFill == 0, consumed == payload.byteCount { throw unfinished }
        }
    }
}
