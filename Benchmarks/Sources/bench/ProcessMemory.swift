import Glibc

/// What a process keeps in memory.
struct ProcessMemory {
    let residentBytes: UInt64
    /// As resident, but a page that n processes share counts as its nth part.
    let proportionalBytes: UInt64

    /// What the process keeps now.
    ///
    /// - Throws: ``BenchmarkError`` if the kernel does not tell.
    init(of processID: pid_t) throws {
        let path = "/proc/\(processID)/smaps_rollup"
        guard let text = contents(of: path) else { throw BenchmarkError("cannot read \(path): \(errorText(errno))") }
        func bytes(_ key: String) throws -> UInt64 {
            for line in text.split(separator: "\n") where line.hasPrefix(key) {
                if let kibibytes = line.split(separator: " ").dropFirst().first.flatMap({ UInt64($0) }) {
                    return kibibytes * 1024
                }
            }
            throw BenchmarkError("\(path) has no \(key)")
        }
        residentBytes = try bytes("Rss:")
        proportionalBytes = try bytes("Pss:")
    }
}

/// The text of a small file, or nil with the reason in `errno`.
func contents(of path: String) -> String? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    while case let count = fread(&buffer, 1, buffer.count, file), count > 0 { bytes += buffer[..<count] }
    return String(decoding: bytes, as: UTF8.self)
}
