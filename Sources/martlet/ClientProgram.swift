import CHost
import Glibc
import SystemPackage

/// A program that is to get a `/dev/kvm`: where it is, and whether the dynamic linker can load a library before it.
struct ClientProgram {
    let path: String

    /// Looks for a program as a shell does.
    /// - Throws: if it is not there or may not be executed.
    init(named name: String) throws {
        guard !name.isEmpty else { throw CommandFailure.badInput("the program's name is empty") }
        if name.contains("/") {
            path = name
        } else {
            let folders = getenv("PATH").map { String(cString: $0) } ?? "/usr/local/bin:/usr/bin:/bin"
            let places = folders.split(separator: ":", omittingEmptySubsequences: false).map {
                ($0.isEmpty ? "." : String($0)) + "/" + name
            }
            guard let found = places.first(where: { Self.isProgram($0) }) else {
                throw CommandFailure.badInput("there is no program '\(name)' in PATH; install it or give its path")
            }
            path = found
        }
        guard access(path, F_OK) == 0 else { throw CommandFailure.badInput("\(path) does not exist") }
        guard Self.isProgram(path) else { throw CommandFailure.badInput("\(path) is no program that you may execute") }
    }

    private static func isProgram(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFREG && access(path, X_OK) == 0
    }

    /// How many scripts the kernel follows to the program that runs the last of them.
    private static let maximumScriptCount = 5

    /// - Parameter scriptCount: how many scripts led here.
    /// - Throws: if a library cannot be loaded before the program.
    func check(scriptCount: Int = 0) throws {
        guard scriptCount <= Self.maximumScriptCount else {
            throw CommandFailure.badInput("\(path) is run by a script that is run by a script, and so on")
        }
        try checkPrivileges()
        let head = try read(path)
        guard head.starts(with: Array("#!".utf8)) else { return try checkELF(head) }
        // A script: what counts is the program that runs it.
        let line = head.dropFirst(2).prefix { $0 != UInt8(ascii: "\n") }
        let words = String(decoding: line, as: UTF8.self).split { $0 == " " || $0 == "\t" }
        guard let interpreter = words.first else { return }
        try ClientProgram(named: String(interpreter)).check(scriptCount: scriptCount + 1)
    }

    private func checkPrivileges() throws {
        var status = stat()
        guard stat(path, &status) == 0 else { return }
        let changesUser = status.st_mode & mode_t(S_ISUID) != 0 && status.st_uid != geteuid()
        let changesGroup = status.st_mode & mode_t(S_ISGID) != 0 && status.st_gid != getegid()
        guard !changesUser, !changesGroup, getxattr(path, "security.capability", nil, 0) < 0 || geteuid() == 0 else {
            throw CommandFailure.badInput(
                "\(path) runs with other privileges than yours (set-user-ID, set-group-ID or capabilities), so the dynamic "
                    + "linker loads nothing of yours before it; run a copy without them")
        }
    }

    private func read(_ path: String) throws -> [UInt8] {
        do {
            let file = try FileDescriptor.open(path, .readOnly)
            defer { try? file.close() }
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = try bytes.withUnsafeMutableBytes { try file.read(into: $0) }
            return Array(bytes[..<count])
        } catch {
            throw CommandFailure.badInput("\(path) cannot be read: \(error)")
        }
    }

    /// > Source: System V ABI, chapters 4 and 5.
    private func checkELF(_ head: [UInt8]) throws {
        guard head.count >= 64, head.starts(with: [0x7F, 0x45, 0x4C, 0x46]) else {
            throw CommandFailure.badInput("\(path) is neither an ELF program nor a script")
        }
        func number(_ offset: Int, _ byteCount: Int) -> Int {
            guard offset >= 0, offset <= head.count - byteCount else { return 0 }
            return (0..<byteCount).reduce(0) { $0 | Int(truncatingIfNeeded: UInt(head[offset + $1]) << UInt(8 * $1)) }
        }
        let (is64Bit, machine) = (head[4] == 2, number(18, 2))
        guard is64Bit, machine == 62 else {
            throw CommandFailure.badInput(
                "\(path) is a program for another processor (\(is64Bit ? 64 : 32) bits, ELF machine \(machine)); it must be "
                    + "one for x86-64")
        }
        let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2))
        // PT_INTERP names the dynamic linker.
        let isDynamic = (0..<count).contains { number(offset &+ $0 &* size, 4) == 3 }
        guard isDynamic else {
            throw CommandFailure.badInput(
                "\(path) is statically linked, so no library can be loaded before it; use a dynamically linked build of it"
            )
        }
    }
}
