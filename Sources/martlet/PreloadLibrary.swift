import Glibc
import SystemPackage

/// The library that `martlet kvm` has programs load.
enum PreloadLibrary {
    static let name = "libmartlet-kvm.so"

    /// Beside the command, as it is built, or where `make install` puts it.
    ///
    /// - Throws: if it is not there, or a library that it needs is not.
    static func find() throws -> String {
        let places = directories.map { $0 + "/" + name }
        guard let path = places.first(where: { access($0, R_OK) == 0 }) else {
            throw CommandFailure.hostFailure(
                "\(name) is not where it should be (\(places.joined(separator: ", "))); build or install martlet again")
        }
        guard !path.contains(where: { $0 == ":" || $0 == " " }) else {
            throw CommandFailure.hostFailure(
                "\(path) cannot be loaded before a program: its path has a space or a colon; move martlet")
        }
        // Loads what the library needs, not the library itself.
        for needed in neededLibraries where dlopen(needed, RTLD_LAZY) == nil {
            let package = needed.hasPrefix("libZydis") ? "; install the package libzydis4.0" : ""
            throw CommandFailure.hostFailure("\(name) needs \(needed), which is not there\(package)")
        }
        return path
    }

    /// What the dynamic linker must find, as the library's header says.
    private static let neededLibraries = [
        "libZydis.so.4.0", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"
    ]

    private static var directories: [String] {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard count > 0 else { return [] }
        let executable = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let directory = FilePath(executable).removingLastComponent()
        let installed = directory.removingLastComponent().appending("lib/martlet")
        return [directory.string, installed.string]
    }
}
