import SystemPackage

/// What a machine is made of.
public struct MachineConfiguration: Sendable {
    public var kernel: FilePath
    public var initramfs: FilePath?
    public var commandLine: String
    public var processors: ProcessorCount
    public var memory: MemorySize
    /// Who unpacks a compressed kernel.
    public var unpack: GuestLoader.Unpack

    public init(
        kernel: FilePath, initramfs: FilePath? = nil, commandLine: String = Self.defaultCommandLine,
        processors: ProcessorCount, memory: MemorySize, unpack: GuestLoader.Unpack = .host
    ) {
        self.kernel = kernel
        self.initramfs = initramfs
        self.commandLine = commandLine
        self.processors = processors
        self.memory = memory
        self.unpack = unpack
    }

    /// The console on the serial port, and a reboot, instead of standing still, after a panic.
    public static let defaultCommandLine = "console=ttyS0 panic=-1"
}
