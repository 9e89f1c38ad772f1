import ArgumentParser
import Glibc
import SystemPackage
import UserspaceKVM

/// `martlet kvm`: a program that wants `/dev/kvm` gets one.
struct KVMCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kvm",
        abstract: "Run a program that uses KVM, with a /dev/kvm that needs no hardware.",
        discussion: """
            The program runs unchanged; a library that is loaded before it answers what it asks of /dev/kvm. The device \
            need not exist, and is never opened. The program's exit status and signals are its own. Programs that it \
            starts get the same.

            It must be a dynamically linked x86-64 program that is not set-user-ID. Example:

                martlet kvm -- qemu-system-x86_64 -accel kvm -m 1G -nographic -kernel vmlinuz -append console=ttyS0
            """)

    @Option(help: ArgumentHelp("Write what the program asks for to a file, a line each.", valueName: "file"))
    var log: String?

    @Flag(help: "Print how often each request was made, and why vCPUs returned, when the program ends.")
    var stats = false

    @Option(help: "How guests' memory accesses are translated: walk or shadow.")
    var mmu: MMUKind = .walk

    @Argument(parsing: .captureForPassthrough, help: "The program, and what it is given.")
    var command: [String] = []

    func run() throws {
        let words = command.first == "--" ? Array(command.dropFirst()) : command
        guard let name = words.first else {
            throw CommandFailure.badInput("no program given; write 'martlet kvm -- PROGRAM ARGUMENTS…'")
        }
        let program = try ClientProgram(named: name)
        let library = try PreloadLibrary.find()
        try program.check()
        try prepareLog()
        setenv("LD_PRELOAD", ([library] + inheritedPreloads).joined(separator: ":"), 1)
        setenv("MARTLET_KVM_MMU", mmu.rawValue, 1)
        if stats { setenv("MARTLET_KVM_STATS", "1", 1) } else { unsetenv("MARTLET_KVM_STATS") }
        // As for any program that a shell starts.
        signal(SIGPIPE, SIG_DFL)
        var arguments = words.map { strdup($0) } + [nil]
        execv(program.path, &arguments)
        throw CommandFailure.badInput("\(program.path) cannot be started: \(Errno(rawValue: errno))")
    }

    private var inheritedPreloads: [String] {
        guard let value = getenv("LD_PRELOAD") else { return [] }
        return String(cString: value).split { $0 == ":" || $0 == " " }.map(String.init)
            .filter { !$0.hasSuffix("/" + PreloadLibrary.name) }
    }

    /// The file is made here, where its failure can be told.
    private func prepareLog() throws {
        guard let log else {
            unsetenv("MARTLET_KVM_LOG")
            return
        }
        do {
            let file = try FileDescriptor.open(
                log, .writeOnly, options: [.create, .truncate], permissions: FilePermissions(rawValue: 0o644))
            try file.close()
        } catch {
            throw CommandFailure.badInput("the log \(log) cannot be written: \(error)")
        }
        // The program may change its directory.
        let path = realpath(log, nil).map { String(cString: $0) } ?? log
        setenv("MARTLET_KVM_LOG", path, 1)
    }
}
