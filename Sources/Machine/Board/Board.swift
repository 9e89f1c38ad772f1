import AddressSpace
import Addressing
import Devices
import Glibc
import Host
import KVMInterface
import SystemPackage

/// A machine from power-on to the event that ends it: memory, devices, processors and the guest loaded into them.
///
/// A reset takes the whole board down; the next run gets a new one.
///
/// > Concurrency: belongs to the main thread.
final class Board {
    let loadedGuest: LoadedGuest
    let serial: Serial16550

    private let events: BoardEvents
    private let machine: VirtualMachine
    private let memory: BoardMemory
    private let lock: MachineLock
    private let slots: SlotListener
    private let processors: [ProcessorThread]

    /// How long vCPU threads may take to end.
    private static var stopNanoseconds: UInt64 { 5_000_000_000 }

    /// Assembles the board and loads the guest; nothing runs yet.
    init(_ configuration: MachineConfiguration, _ system: KVMSystem, _ console: Console) throws(MachineError) {
        let events = BoardEvents { console.stop() }
        let memory = try BoardMemory(configuration.memory)
        let guest = try Self.load(configuration, into: memory.ram)
        // Files and unpacked kernels were held meanwhile.
        FreeMemory.release()
        do {
            let machine = try Self.createMachine(system)
            let lock = MachineLock()
            let blocker = try AccelBlocker(lock: lock)
            let slots = SlotListener(machine, blocker: blocker)
            try lock.withLock { () throws(Errno) in try memory.space.add(slots) }
            let devices = BoardDevices(ramRanges: memory.ram.regions.map(\.range), events: events, console: console) {
                line in
                { isAsserted in
                    do {
                        try blocker.withMachineRequest { () throws(Errno) in
                            try machine.irqLine(gsi: UInt32(line), level: isAsserted)
                        }
                    } catch {
                        events.report(.hostFailure("interrupt line \(line) cannot be set: \(error)"))
                    }
                }
            }
            let topology = ProcessorTopology(count: configuration.processors.maximum)
            let leaves = try ProcessorFeatures.leaves(of: system)
            var processors: [ProcessorThread] = []
            for id in 0..<UInt32(configuration.processors.boot) {
                let vcpu = try machine.createVCPU(id: id)
                try vcpu.setCPUID(topology.leaves(leaves, for: id))
                if id == 0 { try vcpu.enter(guest.state) }
                let gate = lock.withLock { blocker.makeGate { vcpu.requestExit() } }
                processors.append(
                    ProcessorThread(vcpu, gate: gate, ports: devices.bus, memory: memory.space, events: events))
            }
            self.machine = machine
            self.lock = lock
            self.slots = slots
            self.processors = processors
            serial = devices.serial
        } catch {
            throw .host(
                "the machine cannot be assembled: \(error); if the host lacks memory, give the guest fewer processors (--cpus)"
            )
        }
        self.events = events
        self.memory = memory
        loadedGuest = guest
    }

    /// What ended the run, if something has.
    var event: BoardEvents.Event? { events.event }

    /// Makes what tells about the board; may be called by any thread while the board is there.
    func inspector(kernel: String) -> @Sendable () -> BoardInspection {
        let kernel = loadedGuest.kernelVersion ?? kernel
        return { [machine, space = memory.space] in
            BoardInspection(
                process: getpid(), kernel: kernel, flatView: space.view.ranges.map(BoardInspection.Range.init),
                core: machine.inspect())
        }
    }

    /// Starts all processors.
    func start() throws(MachineError) {
        for processor in processors {
            do {
                try processor.start()
            } catch {
                _ = stop()
                throw .host(
                    "the host has no thread for vCPU \(processor.vcpu.id): \(error); raise the limit on threads or memory, "
                        + "or give the guest fewer processors (--cpus)")
            }
        }
    }

    /// Ends all processors and takes the machine's memory back.
    ///
    /// - Returns: false if a thread did not end in time. The board must then be kept until the process ends.
    func stop() -> Bool {
        events.stop()
        for processor in processors { processor.kick() }
        let deadline = MonotonicClock.nanoseconds() + Self.stopNanoseconds
        for processor in processors {
            guard processor.waitForEnd(deadlineNanoseconds: deadline) else { return false }
        }
        lock.withLock {
            // What cannot be deleted stays with the machine, which nobody runs any more.
            try? memory.space.remove(slots)
        }
        return true
    }

    private static func createMachine(_ system: KVMSystem) throws(Errno) -> VirtualMachine {
        let machine = try system.createVM()
        try machine.setTSSAddress(BoardLayout.taskState.value)
        try machine.setIdentityMapAddress(BoardLayout.identityMap.value)
        try machine.createIRQChip()
        try machine.createPIT2()
        try machine.setGSIRouting(BoardInterrupts.routes)
        return machine
    }

    private static func load(
        _ configuration: MachineConfiguration, into ram: GuestRAM
    ) throws(MachineError) -> LoadedGuest {
        let processors = configuration.processors
        let loader = GuestLoader(
            kernel: .file(configuration.kernel), initramfs: configuration.initramfs.map { .file($0) },
            commandLine: configuration.commandLine, unpack: configuration.unpack,
            processors: (0..<processors.maximum).map { .init(id: UInt32($0), isEnabled: $0 < processors.boot) })
        do {
            return try loader.load(into: ram)
        } catch {
            throw .badInput("\(error)")
        }
    }
}
