/// What runs the workloads.
enum Engine: CaseIterable {
    case native
    case martlet
    case qemu

    var title: String {
        switch self {
        case .native: "native"
        case .martlet: "Martlet"
        case .qemu: "QEMU"
        }
    }
}

/// A virtual machine to start, the same for each engine.
struct GuestConfiguration {
    /// Run by the guest's first process, with the shell.
    var command: String
    var processors = 1
    var mebibytes = 512
    /// Martlet only: let the guest's own code unpack the kernel.
    var guestUnpacks = false
}

/// The files that the benchmarks run.
struct Installation {
    let martlet: String
    let qemu: String
    let kernel: String
    let initramfs: String
    let workloads: String

    /// The command that runs `configuration` on `engine`, which is not native.
    func arguments(_ engine: Engine, _ configuration: GuestConfiguration) -> [String] {
        let commandLine = "console=ttyS0 panic=-1 martlet.run=\"\(configuration.command)\""
        switch engine {
        case .native:
            preconditionFailure("the host itself is not a guest")
        case .martlet:
            return [
                martlet, "run", "--no-reboot", "--kernel", kernel, "--initramfs", initramfs, "--cmdline", commandLine,
                "--cpus", "\(configuration.processors)", "--memory", "\(configuration.mebibytes)M"
            ] + (configuration.guestUnpacks ? ["--unpack", "guest"] : [])
        case .qemu:
            return [
                qemu, "-accel", "tcg", "-M", "q35", "-cpu", "max", "-nographic", "-nodefaults", "-serial", "stdio",
                "-no-reboot", "-kernel", kernel, "-initrd", initramfs, "-append", commandLine,
                "-smp", "\(configuration.processors)", "-m", "\(configuration.mebibytes)"
            ]
        }
    }
}
