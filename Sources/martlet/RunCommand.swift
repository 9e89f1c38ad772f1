import ArgumentParser
import DefaultGuest
import Machine
import SystemPackage
import UserspaceKVM

/// `martlet run`: boots a kernel.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Boot a Linux kernel with its console on this terminal.",
        discussion: """
            Without --kernel the default guest runs (see 'martlet guest build'). The guest's serial console is standard \
            input and output; on a terminal Ctrl-A x leaves, and Ctrl-A a sends Ctrl-A. Messages of the command itself go to \
            standard error.
            """)

    @Option(
        help: ArgumentHelp("Kernel to boot: an x86-64 bzImage (vmlinuz) or ELF vmlinux.", valueName: "file"),
        completion: .file())
    var kernel: String?

    @Option(help: ArgumentHelp("Initial file system for the kernel.", valueName: "file"), completion: .file())
    var initramfs: String?

    @Option(help: ArgumentHelp("Kernel command line.", valueName: "text"))
    var cmdline = MachineConfiguration.defaultCommandLine

    @Option(help: ArgumentHelp("Text to append to the kernel command line.", valueName: "text"))
    var append: String?

    @Option(
        help: ArgumentHelp(
            "Number of vCPUs; at most \(ProcessorCount.limit). 'boot=2,max=8' leaves room for more.",
            valueName: "n|boot=n,max=n"),
        transform: { try ProcessorCount(parsing: $0) })
    var cpus: ProcessorCount?

    @Option(
        help: ArgumentHelp(
            "Memory, a multiple of 4K with suffix K, M, G or T (default: 512M).", valueName: "size|size=size"),
        transform: { try MemorySize(parsing: $0) })
    var memory: MemorySize?

    @Flag(help: "Leave with status 0 when the guest reboots, instead of booting again.")
    var noReboot = false

    @Option(
        help: ArgumentHelp(
            "Who unpacks a compressed kernel: the host, which is faster, or the guest's own code.", valueName: "who"))
    var unpack = GuestLoader.Unpack.host

    @Option(
        help: ArgumentHelp(
            "What guest code runs on: user, Martlet's own core; kernel, /dev/kvm; auto, /dev/kvm if a trial shows that it "
                + "runs guests at this processor's speed, otherwise user.", valueName: "core"))
    var accel = Accelerator.auto

    @Option(
        help: ArgumentHelp(
            "How Martlet's own core translates the guest's memory accesses: walk, by the guest's page tables; shadow, by "
                + "shadow page tables.", valueName: "how"))
    var mmu = MMUKind.walk

    @Flag(help: "Tell what is loaded and how the guest ends.")
    var verbose = false

    func run() throws {
        let configuration = try makeConfiguration()
        // Before the core: it passes signals that are not its own on to the handlers that were there before.
        let console = try makeConsole()
        let backend = try Backend.choose(accel, processorCount: configuration.processors.maximum, mmu: mmu)
        if verbose { Message.progress("accel: \(backend.reason)") }
        let outcome: MachineOutcome
        do {
            outcome = try VirtualMachineMonitor(
                configuration, system: backend.system, console: console,
                report: { if verbose { Message.progress($0) } }
            ).run(restartsOnReboot: !noReboot)
        } catch MachineError.badInput(let message) {
            throw CommandFailure.badInput(message)
        } catch MachineError.host(let message) {
            throw CommandFailure.hostFailure(message)
        }
        try finish(outcome)
    }

    private func makeConfiguration() throws -> MachineConfiguration {
        var kernelPath: FilePath
        var initramfsPath = initramfs.map { FilePath($0) }
        if let kernel {
            kernelPath = FilePath(kernel)
        } else {
            let cache = try? GuestCache.standard()
            guard let guest = cache?.guest(.cloud) ?? cache?.guest(.standard) else {
                throw CommandFailure.badInput(
                    "no kernel is given and there is no default guest; make one with 'martlet guest build', or name a "
                        + "kernel with --kernel FILE")
            }
            kernelPath = guest.kernel
            if initramfsPath == nil { initramfsPath = guest.initramfs }
        }
        return MachineConfiguration(
            kernel: kernelPath, initramfs: initramfsPath,
            commandLine: append.map { "\(cmdline) \($0)" } ?? cmdline,
            processors: try cpus ?? ProcessorCount(boot: 1, maximum: 1),
            memory: try memory ?? MemorySize(byteCount: 512 << 20), unpack: unpack)
    }

    private func makeConsole() throws -> Console {
        do {
            return try Console(handlesSignals: true)
        } catch Errno.badFileDescriptor {
            throw CommandFailure.badInput(
                "standard output is closed, but it is the guest's console; open it or send it to a file")
        } catch {
            throw CommandFailure.hostFailure("the console cannot be opened: \(error)")
        }
    }

    /// Tells the user and leaves with the status that belongs to `outcome`.
    private func finish(_ outcome: MachineOutcome) throws {
        switch outcome {
        case .poweredOff: if verbose { Message.progress("the guest powered off") }
        case .rebooted: if verbose { Message.progress("the guest rebooted") }
        case .left: if verbose { Message.progress("left by Ctrl-A x") }
        case .signal(let signal):
            throw ExitCode(128 + signal)
        case .tripleFault(let registers):
            Message.line(registers)
            throw CommandFailure(
                status: .tripleFault,
                message: "the guest's processor shut down (triple fault); its registers are above")
        case .internalError(let message, let registers):
            Message.line(registers)
            throw CommandFailure(status: .internalError, message: "internal error: \(message); registers are above")
        case .hostFailure(let message):
            throw CommandFailure.hostFailure(message)
        case .consoleClosed:
            throw CommandFailure.badInput(
                "standard output was closed while the guest ran; send it to something that is read to its end")
        }
    }
}

extension GuestLoader.Unpack: ExpressibleByArgument {}
