import Glibc
import SystemPackage

/// Whole files and directory trees.
enum FileContents {
    static func read(_ path: FilePath) throws(Errno) -> [UInt8] {
        try rethrowing {
            let descriptor = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            return try descriptor.closeAfter {
                var bytes: [UInt8] = []
                var buffer = [UInt8](repeating: 0, count: 1 << 20)
                while true {
                    let count = try buffer.withUnsafeMutableBytes { try descriptor.read(into: $0) }
                    if count == 0 { return bytes }
                    bytes += buffer[..<count]
                }
            }
        }
    }

    /// Writes `bytes` to a new file and waits until they are on the disk.
    static func write(_ bytes: [UInt8], to path: FilePath) throws(Errno) {
        try rethrowing {
            let descriptor = try FileDescriptor.open(
                path, .writeOnly, options: [.create, .exclusiveCreate, .closeOnExec],
                permissions: [.ownerReadWrite, .groupRead, .otherRead])
            try descriptor.closeAfter {
                _ = try descriptor.writeAll(bytes)
                guard fsync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
            }
        }
    }

    /// Creates a directory and those above it, unless they exist.
    static func createDirectories(_ path: FilePath) throws(Errno) {
        if mkdir(path.string, 0o755) == 0 { return }
        if errno == ENOENT {
            try createDirectories(path.removingLastComponent())
            if mkdir(path.string, 0o755) == 0 { return }
        }
        let error = Errno(rawValue: errno)
        guard error == .fileExists, isDirectory(path) else { throw error }
    }

    /// Creates an empty directory with a name of its own in `parent`.
    static func createTemporaryDirectory(in parent: FilePath) throws(Errno) -> FilePath {
        var template = Array(parent.appending("\(temporaryPrefix)XXXXXX").string.utf8CString)
        guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        return FilePath(platformString: template)
    }

    private static var temporaryPrefix: String { ".build-" }

    /// Removes what ``createTemporaryDirectory(in:)`` has made in `parent`.
    static func removeTemporaryDirectories(in parent: FilePath) {
        for name in names(in: parent) where name.hasPrefix(temporaryPrefix) { removeTree(parent.appending(name)) }
    }

    /// Removes `path` and what is below it, as far as that is possible.
    static func removeTree(_ path: FilePath) {
        // Fails for a directory, which is emptied first.
        if unlink(path.string) == 0 { return }
        for name in names(in: path) { removeTree(path.appending(name)) }
        rmdir(path.string)
    }

    /// The entries of a directory, sorted; empty if it cannot be read.
    static func names(in path: FilePath) -> [String] {
        guard let directory = opendir(path.string) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    private static func isDirectory(_ path: FilePath) -> Bool {
        var status = stat()
        return stat(path.string, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }

    /// `SystemPackage` declares untyped throws although it throws nothing but `Errno`.
    private static func rethrowing<Result>(_ body: () throws -> Result) throws(Errno) -> Result {
        do {
            return try body()
        } catch {
            guard let error = error as? Errno else { fatalError("a system call threw \(error)") }
            throw error
        }
    }
}
