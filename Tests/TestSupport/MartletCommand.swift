import DefaultGuest
import Glibc

/// The built `martlet` command, and the guests in the cache.
public enum MartletCommand {
    /// `MARTLET_COMMAND`, or the command beside this test program; nil if there is none.
    public static let path: String? = {
        var candidates: [String] = []
        if let given = getenv("MARTLET_COMMAND") { candidates.append(String(cString: given)) }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = buffer.withUnsafeMutableBytes {
            readlink("/proc/self/exe", $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
        }
        for argument in CommandLine.arguments + [String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)] {
            guard let slash = argument.lastIndex(of: "/") else { continue }
            candidates.append(argument[..<slash] + "/martlet")
        }
        return candidates.first { access($0, X_OK) == 0 && !isDirectory($0) }
    }()

    public static let missing = "needs the martlet command: set MARTLET_COMMAND or build it (make build)"

    /// The guest of `flavour`; nil if it was never built here, as without a network.
    public static func guest(_ flavour: GuestFlavour) -> DefaultGuest? {
        (try? GuestCache.standard())?.guest(flavour)
    }

    public static var hasGuests: Bool { GuestFlavour.allCases.allSatisfy { guest($0) != nil } }

    public static let missingGuests =
        "needs both default guests: martlet guest build, and with --flavour standard (once, with a network)"

    private static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}
