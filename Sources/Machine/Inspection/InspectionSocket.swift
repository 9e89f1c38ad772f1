import Glibc
import Host
import SystemPackage

/// Where running guests answer: a socket for each process, in a directory that only its user can enter.
public enum InspectionSocket {
    /// `$XDG_RUNTIME_DIR/martlet`, or else `/tmp/martlet-UID`.
    static var directory: FilePath {
        if let value = getenv("XDG_RUNTIME_DIR"), value[0] == UInt8(ascii: "/") {
            return FilePath(String(cString: value)).appending("martlet")
        }
        return FilePath("/tmp/martlet-\(getuid())")
    }

    static func path(process: Int32) -> FilePath { directory.appending("\(process).sock") }

    /// The processes that seem to run a guest, in the order of their numbers.
    public static func processes() -> [Int32] {
        guard let folder = opendir(directory.string) else { return [] }
        defer { closedir(folder) }
        var found: [Int32] = []
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard name.hasSuffix(".sock"), let process = Int32(name.dropLast(5)) else { continue }
            // A process that was killed leaves its socket behind.
            if kill(process, 0) == 0 || errno == EPERM { found.append(process) } else { remove(process) }
        }
        return found.sorted()
    }

    /// Asks a running guest.
    ///
    /// - Returns: a ``BoardInspection`` as JSON.
    /// - Throws: `Errno.noSuchFileOrDirectory` or `Errno.connectionRefused` if the process runs no guest.
    public static func ask(process: Int32) throws(Errno) -> [UInt8] {
        let connection = try makeSocket()
        try withAddress(path(process: process)) { address, length in connect(connection.rawValue, address, length) }
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = read(connection.rawValue, &buffer, buffer.count)
            if count == 0 { return answer }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw Errno(rawValue: errno) }
            answer += buffer[..<count]
        }
    }

    // MARK: The server's side

    /// A socket that waits for connections; its place is this process's.
    static func listen() throws(Errno) -> OwnedDescriptor {
        let directory = directory
        if mkdir(directory.string, 0o700) != 0, errno != EEXIST { throw Errno(rawValue: errno) }
        // In /tmp the directory may be somebody else's.
        var status = stat()
        guard lstat(directory.string, &status) == 0 else { throw Errno(rawValue: errno) }
        guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == getuid(), status.st_mode & 0o077 == 0
        else { throw .permissionDenied }
        let path = path(process: getpid())
        unlink(path.string)
        let socket = try makeSocket()
        try withAddress(path) { address, length in bind(socket.rawValue, address, length) }
        guard Glibc.listen(socket.rawValue, 4) == 0 else { throw Errno(rawValue: errno) }
        return socket
    }

    static func remove(_ process: Int32) { unlink(path(process: process).string) }

    private static func makeSocket() throws(Errno) -> OwnedDescriptor {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Errno(rawValue: errno) }
        return OwnedDescriptor(owning: descriptor)
    }

    private static func withAddress(
        _ path: FilePath, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) throws(Errno) {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let characters = Array(path.string.utf8)
        guard characters.count < MemoryLayout.size(ofValue: address.sun_path) else { throw .fileNameTooLong }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: characters) }
        let result = withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else { throw Errno(rawValue: errno) }
    }
}
