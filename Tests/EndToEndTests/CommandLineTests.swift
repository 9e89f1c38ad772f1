import Testing

/// What the command says and how it leaves when no guest runs.
@Suite struct CommandLineTests {
    /// One line on standard error, nothing on standard output, status 2.
    private static func expectBadInput(
        _ arguments: [String], naming part: String, environment: [String] = [], redirection: String = "",
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let result = try Command.run(arguments, environment: environment, redirection: redirection)
        #expect(result.status == 2, "\(arguments)", sourceLocation: sourceLocation)
        #expect(result.output == "", sourceLocation: sourceLocation)
        #expect(result.errors.hasPrefix("martlet: error: "), "\(result.errors)", sourceLocation: sourceLocation)
        #expect(result.errors.contains(part), "\(result.errors)", sourceLocation: sourceLocation)
        #expect(result.errors.split(separator: "\n").count == 1, "\(result.errors)", sourceLocation: sourceLocation)
    }

    @Test(arguments: [
        (["--cpus", "0"], "0"), (["--cpus", "100000"], "100000"), (["--cpus", "boot=2,max=1"], "boot=2"),
        (["--memory", "0"], "0"), (["--memory", "5K"], "5K"), (["--memory", "lots"], "lots"),
        (["--memory", "16777215T"], "16777215T"), (["--unpack", "nobody"], "nobody"), (["--bogus"], "--bogus"),
        (["--kernel"], "--kernel"), (["stray"], "stray")
    ])
    func optionsAreChecked(arguments: [String], part: String) throws {
        try Self.expectBadInput(["run"] + arguments, naming: part)
    }

    @Test func kernelsAreChecked() throws {
        try Self.expectBadInput(["run", "--kernel", "/proc/no-such-file"], naming: "/proc/no-such-file")
        let text = try TemporaryFile(Array("not a kernel".utf8))
        try Self.expectBadInput(["run", "--kernel", text.path], naming: text.path)
        let kernel = BareGuest.elf(BareGuest.powerOff)
        let truncated = try TemporaryFile(Array(kernel.prefix(100)))
        try Self.expectBadInput(["run", "--kernel", truncated.path], naming: truncated.path)
        let whole = try TemporaryFile(kernel)
        try Self.expectBadInput(["run", "--kernel", whole.path, "--memory", "8K"], naming: "8")
        try Self.expectBadInput(["run", "--kernel", whole.path, "--memory", "100T"], naming: "100T")
        try Self.expectBadInput(
            ["run", "--kernel", whole.path, "--initramfs", "/proc/no-such-file"], naming: "/proc/no-such-file")
        let large = try TemporaryFile([UInt8](repeating: 1, count: 20 << 20))
        try Self.expectBadInput(
            ["run", "--kernel", whole.path, "--memory", "16M", "--initramfs", large.path], naming: large.path)
    }

    @Test func withoutGuestsTheWayToOneIsNamed() throws {
        try Self.expectBadInput(
            ["run"], naming: "martlet guest build", environment: ["XDG_CACHE_HOME=/proc/no-such-directory"])
    }

    @Test func aClosedOutputIsNamed() throws {
        let kernel = try TemporaryFile(BareGuest.elf(BareGuest.powerOff))
        try Self.expectBadInput(["run", "--kernel", kernel.path], naming: "standard output", redirection: ">&-")
        try Self.expectBadInput(["--help"], naming: "standard output", redirection: ">&-")
    }

    @Test func helpAndVersion() throws {
        let version = try Command.run(["--version"])
        #expect(version.status == 0)
        #expect(version.output.hasPrefix("martlet "))
        for arguments in [["--help"], ["help", "run"], ["run", "--help"], ["guest", "--help"], ["doctor", "--help"], []]
        {
            let help = try Command.run(arguments)
            #expect(help.status == 0, "\(arguments)")
            #expect(help.output.contains("USAGE"), "\(arguments)")
            #expect(help.errors == "")
        }
    }

    @Test(arguments: ["bash", "zsh", "fish"])
    func completions(shell: String) throws {
        let script = try Command.run(["--generate-completion-script", shell])
        #expect(script.status == 0)
        #expect(script.output.contains("martlet"))
    }

    @Test func theDoctorReports() throws {
        let report = try Command.run(["doctor"])
        #expect(report.status == 0)
        for part in ["bmi2", "avx2", "fsgsbase", "avx512f", "/dev/kvm", "packages", "cloud"] {
            #expect(report.output.contains(part), "\(part)")
        }
    }
}
