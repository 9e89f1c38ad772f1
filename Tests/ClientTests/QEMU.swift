import DefaultGuest
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Debian's QEMU with a guest of the cache, as a client of Martlet.
final class QEMU {
    let child: ChildProcess
    /// QEMU may write here.
    let directory: ScratchDirectory
    private(set) var monitor: Monitor?

    private static let program = "qemu-system-x86_64"

    static var isAvailable: Bool {
        MartletCommand.path != nil && Client.hasProgram(program) && MartletCommand.hasGuests
    }

    static let missing: Comment =
        "needs the martlet command (make build), the package qemu-system-x86, and both default guests (martlet guest build)"

    /// Starts a machine that boots the kernel directly.
    ///
    /// - Parameter machine: for `-machine`.
    /// - Parameter processors: for `-smp`.
    /// - Parameter memory: for `-m`.
    /// - Parameter command: what the guest's shell runs before it powers off. It has no double quotes. The kernel shows it on
    ///   the console, so what a test waits for is written with a pair of quotes inside.
    static func boot(
        _ machine: String, processors: String = "1", memory: String = "256", cpu: String? = "host",
        flavour: GuestFlavour = .cloud, initramfs: String? = nil, kernelArguments: String = "",
        running command: String, options: [String] = [], input: ChildProcess.Input = .empty,
        in directory: ScratchDirectory = sharedDirectory()
    ) throws -> QEMU {
        let files = try #require(readableGuests[flavour], "the guest could not be copied")
        let line = "console=ttyS0 panic=-1 \(kernelArguments) martlet.run=\"\(command)\""
        return try QEMU(
            ["-machine", machine, "-smp", processors, "-m", memory] + (cpu.map { ["-cpu", $0] } ?? [])
                + ["-kernel", files.kernel, "-initrd", initramfs ?? files.initramfs, "-append", line] + options,
            input: input, in: directory)
    }

    /// Starts a machine of which everything but the console and the monitor is given.
    init(
        _ options: [String], input: ChildProcess.Input = .empty, in directory: ScratchDirectory = sharedDirectory()
    ) throws {
        self.directory = directory
        let hasDisplay = options.contains("-vnc")
        child = try Client.start(
            [Self.program, "-accel", "kvm", "-nodefaults", "-serial", "stdio"]
                + (hasDisplay ? [] : ["-display", "none"])
                + ["-monitor", "unix:\(directory.path)/monitor,server=on,wait=off"] + options, input: input)
    }

    /// A directory in which the ordinary user may write.
    static func sharedDirectory() -> ScratchDirectory {
        let directory = ScratchDirectory()
        chmod(directory.path, 0o777)
        return directory
    }

    /// Guests where the ordinary user may read them; lives as long as the tests.
    private static let guestsDirectory = sharedDirectory()

    static let readableGuests: [GuestFlavour: (kernel: String, initramfs: String)] = {
        var guests: [GuestFlavour: (kernel: String, initramfs: String)] = [:]
        for flavour in GuestFlavour.allCases {
            guard let guest = MartletCommand.guest(flavour),
                let kernel = ScratchDirectory.contents(of: guest.kernel.string),
                let initramfs = ScratchDirectory.contents(of: guest.initramfs.string)
            else { continue }
            guests[flavour] = (
                guestsDirectory.write(kernel, to: "kernel-\(flavour)"),
                guestsDirectory.write(initramfs, to: "initramfs-\(flavour)")
            )
        }
        return guests
    }()

    /// Waits for a line of the guest's.
    func waitForLine(_ line: String, count: Int = 1) -> Bool {
        child.waitForOutput(containing: "\(line)\r\n", count: count)
    }

    /// Has QEMU's monitor perform a command.
    /// - Returns: what it said.
    func perform(_ command: String) throws -> String {
        if monitor == nil { monitor = try Monitor(path: "\(directory.path)/monitor") }
        return try #require(monitor?.perform(command), "the monitor did not answer \(command)\n\(account)")
    }

    var account: Comment { Client.account(child) }

    /// Expects that the guest's command succeeded and the guest powered off.
    func expectSuccess(_ location: SourceLocation = #_sourceLocation) {
        #expect(child.wait() == .exited(0), account, sourceLocation: location)
        #expect(child.outputText.contains("martlet.status=0\r\n"), account, sourceLocation: location)
        for trouble in ["Call Trace:", "BUG:", "Kernel panic", "soft lockup"] {
            #expect(!child.outputText.contains(trouble), account, sourceLocation: location)
        }
    }
}

/// A stream socket of QEMU's.
final class UnixStream {
    private let descriptor: CInt

    /// Connects, for which the other side is given some time to begin to listen.
    init(path: String) throws(Errno) {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { throw Errno(rawValue: errno) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix($0.count - 1)) }
        var patience = timeval(tv_sec: Int(ChildProcess.patienceSeconds), tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
        let deadline = ChildProcess.now() + ChildProcess.patienceSeconds
        while true {
            let result = withUnsafePointer(to: &address) {
                // SAFETY: the address is as long as the size says.
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
            if result == 0 { return }
            guard ChildProcess.now() < deadline else { throw Errno(rawValue: errno) }
            usleep(20_000)
        }
    }

    deinit { close(descriptor) }

    func write(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    }

    /// Reads at most `count` bytes; none at the end, and when nothing comes.
    func readSome(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = Glibc.read(descriptor, &bytes, count)
        return Array(bytes.prefix(max(0, got)))
    }

    /// nil if fewer come.
    func read(exactly count: Int) -> [UInt8]? {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let more = readSome(count - bytes.count)
            guard !more.isEmpty else { return nil }
            bytes += more
        }
        return bytes
    }
}

/// QEMU's monitor for humans.
final class Monitor {
    private let stream: UnixStream
    private static let prompt = "(qemu) "

    init(path: String) throws {
        stream = try UnixStream(path: path)
        try #require(readToPrompt() != nil, "the monitor has no prompt")
    }

    /// nil if it went away.
    func perform(_ command: String) -> String? {
        stream.write(Array("\(command)\n".utf8))
        guard let answer = readToPrompt() else { return nil }
        // The first line is what was typed, as a terminal shows it.
        return answer.firstIndex(of: "\n").map { String(answer[$0...]) } ?? answer
    }

    private func readToPrompt() -> String? {
        var bytes: [UInt8] = []
        while bytes.end(of: Self.prompt) == nil {
            let more = stream.readSome(4096)
            guard !more.isEmpty else { return nil }
            bytes += more
        }
        // A line break would be one character with the carriage return before it.
        return String(decoding: bytes.filter { $0 != 13 }, as: UTF8.self)
    }
}
