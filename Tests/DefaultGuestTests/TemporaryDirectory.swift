import Glibc
import SystemPackage

/// A directory for one test, removed with the value.
final class TemporaryDirectory {
    let path: FilePath

    init() throws {
        var template = Array("/tmp/martlet-test-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        path = FilePath(platformString: template)
    }

    deinit { _ = system("rm -rf '\(path)'") }

    func write(_ bytes: [UInt8], to name: String) throws {
        let file = try FileDescriptor.open(
            path.appending(name), .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
        try file.closeAfter { _ = try file.writeAll(bytes) }
    }

    func read(_ name: String) throws -> String {
        let file = try FileDescriptor.open(path.appending(name), .readOnly)
        return try file.closeAfter {
            var text: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = try buffer.withUnsafeMutableBytes { try file.read(into: $0) }
                if count == 0 { return String(decoding: text, as: UTF8.self) }
                text += buffer[..<count]
            }
        }
    }

    /// Runs a shell command here and returns what it printed.
    func shell(_ command: String) throws -> String {
        guard system("cd '\(path)' && { \(command); } >output 2>&1") == 0 else { throw Errno.ioError }
        return try read("output")
    }
}
