import DefaultGuest
import Glibc
import Testing

/// Debian's kernels, from the cache that `martlet guest build` fills.
private enum Cached {
    static func has(_ flavour: GuestFlavour) -> Bool { (try? GuestCache.standard())?.guest(flavour) != nil }

    static func arguments(_ flavour: GuestFlavour) throws -> [String] {
        guard let guest = try GuestCache.standard().guest(flavour) else { throw GuestBuildError("no guest") }
        return ["--kernel", guest.kernel.string, "--initramfs", guest.initramfs.string]
    }
}

@Suite(.serialized) struct DefaultGuestTests {
    @Test(
        .enabled(if: Cached.has(.cloud), "needs the cloud guest: martlet guest build"),
        arguments: [1, 2])
    func theCloudKernelReachesUserSpace(processors: Int) throws {
        let arguments = ["run", "--cpus", "\(processors)", "--append", #"martlet.run="nproc; echo $((6*7))""#]
        let result = try Command.run(arguments + Cached.arguments(.cloud))
        #expect(result.status == 0)
        #expect(result.output.contains("\(processors)\r\n42\r\n"), "\(result.output.suffix(2000))")
        #expect(result.output.contains("martlet.status=0"))
        #expect(result.errors == "")
    }

    @Test(
        .enabled(if: Cached.has(.standard), "needs the standard guest: martlet guest build --flavour standard"),
        arguments: [1, 2])
    func theStandardKernelReachesUserSpace(processors: Int) throws {
        let arguments = ["run", "--cpus", "\(processors)", "--append", "martlet.batch"]
        let result = try Command.run(arguments + Cached.arguments(.standard))
        #expect(result.status == 0)
        #expect(result.output.contains("Linux martlet "), "\(result.output.suffix(2000))")
    }

    @Test(.enabled(if: Cached.has(.cloud), "needs the cloud guest: martlet guest build"))
    func theShellIsInteractive() throws {
        let session = try Session(onTerminal: ["run"] + Cached.arguments(.cloud))
        try session.expect("/root # ")
        try session.type("echo $((6*7))-$(tty)\r")
        try session.expect("42-/dev/ttyS0")
        try session.expect("/root # ")
        // Job control: Ctrl-C reaches the guest's process, not ours.
        try session.type("sleep 1000\r")
        try session.expect("sleep 1000\r\n")
        try session.type("\u{3}")
        try session.expect("/root # ")
        try session.type("exit\r")
        try session.expect("Power down")
        #expect(try session.end() == 0)
        #expect(session.modeNow.c_lflag == session.modeBefore.c_lflag)
    }
}
