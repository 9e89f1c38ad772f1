import SystemPackage

/// Where a kernel or an initramfs comes from.
public enum BootSource: Sendable {
    /// A file, or anything else that can be read to its end.
    case file(FilePath)
    /// Bytes in memory, and what messages call them.
    case bytes([UInt8], name: String)

    /// What messages call it.
    public var name: String {
        switch self {
        case .file(let path): path.string
        case .bytes(_, let name): name
        }
    }

    /// Everything it holds: at least one byte and at most `limit`.
    package func read(as file: BootFile, limit: UInt64) throws(BootError) -> HostBuffer {
        let limit = Int(clamping: limit)
        // One byte more than allowed is how a longer file shows.
        var buffer = HostBuffer(limit: limit == .max ? limit : limit + 1)
        switch self {
        case .bytes(let bytes, _):
            if !bytes.isEmpty { try append(bytes, to: &buffer, as: file) }
        case .file(let path):
            try append(contentsOf: path, to: &buffer, as: file)
        }
        guard buffer.count <= limit else { throw .tooLarge(file, name: name, limit: UInt64(limit)) }
        guard buffer.count > 0 else { throw .empty(file, name: name) }
        return buffer
    }

    private func append(_ bytes: [UInt8], to buffer: inout HostBuffer, as file: BootFile) throws(BootError) {
        try reserve(bytes.count, in: &buffer, as: file)
        bytes.withUnsafeBytes { source in
            buffer.fill { room, filled in
                filled = min(room.count, source.count)
                room.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[..<filled]))
            }
        }
    }

    private func append(
        contentsOf path: FilePath, to buffer: inout HostBuffer, as file: BootFile
    ) throws(BootError) {
        let descriptor: FileDescriptor
        do {
            descriptor = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        } catch {
            throw .unreadable(file, name: name, error as? Errno ?? .ioError)
        }
        defer { try? descriptor.close() }
        let chunk = 4 << 20
        // The size is only a hint: the file may change, and pipes have none.
        if let size = try? descriptor.seek(offset: 0, from: .end), size > 0 {
            _ = try? descriptor.seek(offset: 0, from: .start)
            try reserve(Int(clamping: size), in: &buffer, as: file)
        }
        while buffer.count < buffer.limit {
            try reserve(min(chunk, buffer.limit - buffer.count), in: &buffer, as: file)
            let failure = buffer.fill { room, filled -> Errno? in
                do {
                    filled = try descriptor.read(into: room)
                    return nil
                } catch {
                    return error as? Errno ?? .ioError
                }
            }
            if let failure { throw .unreadable(file, name: name, failure) }
            if buffer.lastFill == 0 { return }
        }
    }

    private func reserve(_ byteCount: Int, in buffer: inout HostBuffer, as file: BootFile) throws(BootError) {
        do {
            try buffer.reserve(byteCount)
        } catch .limitReached {
            throw .tooLarge(file, name: name, limit: UInt64(buffer.limit - 1))
        } catch {
            throw .outOfHostMemory(file, name: name)
        }
    }
}
