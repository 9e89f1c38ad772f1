import Glibc
import SystemPackage

/// A file that goes away with its owner.
final class TemporaryFile {
    let path: FilePath

    init(_ bytes: [UInt8]) throws {
        var template = Array("/tmp/martlet-test-XXXXXX".utf8CString)
        let descriptor = FileDescriptor(rawValue: mkstemp(&template))
        path = FilePath(String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
        try descriptor.closeAfter { _ = try descriptor.writeAll(bytes) }
    }

    deinit { unlink(path.string) }
}
