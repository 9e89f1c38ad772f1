import Glibc

/// Everything measured once, on each engine.
struct Run {
    /// One processor: boot and the workloads.
    var single: [Engine: Session] = [:]
    /// Two processors: the work of one thread and of two.
    var double: [Engine: Session] = [:]
    /// Martlet's boot when the guest's own code unpacks the kernel.
    var guestUnpacks: Session?
    /// Of an idle guest.
    var memory: [Engine: ProcessMemory] = [:]
    /// What kept a figure from being measured.
    var problems: [String] = []

    private static let bootTimeoutSeconds: UInt64 = 120
    private static let workloadTimeoutSeconds: UInt64 = 600
    private static let idleMebibytes = 128
    private static let idleSeconds: UInt32 = 10

    /// Runs what `options` ask for, telling `progress` what comes next.
    init(_ options: Options, progress: (String) -> Void) throws {
        let guests = [Engine.martlet, .qemu]
        for engine in Engine.allCases where !options.figures.isEmpty || (options.measuresBoot && engine != .native) {
            progress("\(engine.title): \(engine == .native ? "" : "boot, ")\(options.figures.count) workloads")
            let names = options.figures.filter { engine != .native || $0.runsNatively }.map(\.name)
            single[engine] = try Self.session(engine, workloads: names, options)
        }
        if options.measuresThreads {
            for engine in Engine.allCases {
                progress("\(engine.title): two processors")
                double[engine] = try Self.session(engine, workloads: ["threads"], processors: 2, options)
            }
        }
        if options.measuresBoot {
            progress("Martlet: boot, the guest unpacks its kernel")
            let configuration = GuestConfiguration(command: "workloads ready", guestUnpacks: true)
            guestUnpacks = try Session(
                options.installation.arguments(.martlet, configuration), timeoutSeconds: Self.bootTimeoutSeconds)
        }
        if options.measuresMemory {
            for engine in guests {
                progress("\(engine.title): memory of an idle guest")
                memory[engine] = try idleMemory(engine, options)
            }
        }
    }

    private static func session(
        _ engine: Engine, workloads: [String], processors: Int = 1, _ options: Options
    ) throws -> Session {
        // A process for each workload: one that crashes does not take the others with it.
        let loop = workloads.map { "workloads \($0)" }.joined(separator: "; ")
        switch engine {
        case .native:
            let folder = options.installation.workloads.split(separator: "/", omittingEmptySubsequences: false)
                .dropLast().joined(separator: "/")
            return try Session(
                ["/bin/sh", "-c", "workloads ready; \(loop)"], environment: ["PATH=\(folder)"],
                timeoutSeconds: workloadTimeoutSeconds)
        case .martlet, .qemu:
            // The kernel's own messages would fall between the figures.
            let configuration = GuestConfiguration(
                command: "workloads ready; dmesg -n 1; \(loop)", processors: processors)
            return try Session(
                options.installation.arguments(engine, configuration), timeoutSeconds: workloadTimeoutSeconds)
        }
    }

    /// What an idle guest's process keeps, or nil if the guest did not boot.
    private mutating func idleMemory(_ engine: Engine, _ options: Options) throws -> ProcessMemory? {
        let configuration = GuestConfiguration(command: "workloads ready; sleep 3600", mebibytes: Self.idleMebibytes)
        var child = try Child(options.installation.arguments(engine, configuration))
        let processID = child.processID
        let deadline = child.start + Self.bootTimeoutSeconds * 1_000_000_000
        var last = ""
        while !last.contains("@ready"), let line = child.nextLine(until: deadline) { last = line.text }
        guard last.contains("@ready") else {
            child.kill()
            problems.append("\(engine.title) with \(Self.idleMebibytes) MiB did not boot; its last line is '\(last)'")
            return nil
        }
        sleep(Self.idleSeconds)
        let memory = Result { try ProcessMemory(of: processID) }
        child.kill()
        return try memory.get()
    }
}
