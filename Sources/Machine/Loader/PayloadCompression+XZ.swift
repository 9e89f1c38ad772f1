import CLZMA

extension PayloadCompression {
    /// Unpacks one XZ stream; the library knows the x86 branch filter the kernel's build applies.
    ///
    /// - Returns: how many bytes of `payload` the stream takes.
    func unpackXZ(_ payload: RawSpan, into output: inout HostBuffer) throws(KernelImageError) -> Int {
        // The kernel's dictionaries have 32 MiB; a header that asks for gigabytes is not obeyed.
        let memoryLimit: UInt64 = 512 << 20
        var stream = lzma_stream()
        guard lzma_stream_decoder(&stream, memoryLimit, 0) == LZMA_OK else { throw .outOfHostMemory }
        defer { lzma_end(&stream) }
        var consumed = 0
        while true {
            try reserve(1 << 20, in: &output)
            let result = payload.withUnsafeBytes { source in
                output.fill { room, filled -> lzma_ret in
                    // SAFETY: the decoder stays inside the room and the input it is given the sizes of.
                    stream.next_in = source.assumingMemoryBound(to: UInt8.self).baseAddress.map { $0 + consumed }
                    stream.avail_in = source.count - consumed
                    stream.next_out = room.assumingMemoryBound(to: UInt8.self).baseAddress
                    stream.avail_out = room.count
                    let result = lzma_code(&stream, LZMA_RUN)
                    consumed = source.count - stream.avail_in
                    filled = room.count - stream.avail_out
                    return result
                }
            }
            switch result {
            case LZMA_STREAM_END: return consumed
            case LZMA_OK:
                if output.lastFill == 0, consumed == payload.byteCount { throw unfinished }
            case LZMA_BUF_ERROR: throw unfinished
            case LZMA_MEM_ERROR: throw .outOfHostMemory
            case LZMA_MEMLIMIT_ERROR:
                throw .corruptPayload(self, detail: "asks for more than \(describe(byteCount: memoryLimit)) to unpack")
            case LZMA_OPTIONS_ERROR:
                throw .corruptPayload(self, detail: "uses options this XZ library does not know")
            default: throw .corruptPayload(self, detail: "does not unpack (XZ error \(result.rawValue))")
            }
        }
    }

    /// The error of a payload that ends before its stream does.
    var unfinished: KernelImageError { .corruptPayload(self, detail: "ends before its data does") }
}
