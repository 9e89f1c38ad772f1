import CHost
import Glibc
import KVMInterface
import Machine
import Synchronization
import SystemPackage
import Testing

/// The whole monitor over a scripted core: devices, console, events, processors and memory slots.
@Suite struct VirtualMachineMonitorTests {
    private static let serial: UInt16 = 0x3F8

    /// Sends `text`, then does `last` for ever.
    private static func says(
        _ text: String, then last: ScriptedBackend.Action
    ) -> @Sendable (_ step: Int) -> ScriptedBackend.Action {
        let bytes = Array(text.utf8)
        return { step in step < bytes.count ? .portOut(serial, [bytes[step]]) : last }
    }

    /// SLP_EN with S5's type, as one byte of PM1 control.
    private static let powerOff = ScriptedBackend.Action.portOut(0x605, [5 << 2 | 1 << 5])

    private struct Run {
        var outcome: MachineOutcome
        var text: String
        var log: ScriptedBackend.Log
    }

    /// Runs a guest with its console on pipes.
    private static func run(
        processors: String = "1", memory: String = "64M", input: String = "", restarts: Bool = true,
        _ script: @escaping ScriptedBackend.Script
    ) throws -> Run {
        let kernel = try TemporaryFile(SyntheticKernel.elf())
        let pipes = try ConsolePipes()
        try pipes.send(input)
        let backend = ScriptedBackend(script)
        let configuration = MachineConfiguration(
            kernel: kernel.path, processors: try ProcessorCount(parsing: processors),
            memory: try MemorySize(parsing: memory))
        let outcome = try VirtualMachineMonitor(
            configuration, system: try KVMSystem(backend: backend), console: try pipes.console()
        ).run(restartsOnReboot: restarts)
        return Run(outcome: outcome, text: try pipes.received(), log: backend.record)
    }

    @Test func outputAndPowerOff() throws {
        let script = Self.says("hello\n", then: Self.powerOff)
        let run = try Self.run { _, step, _ in script(step) }
        #expect(run.outcome == .poweredOff)
        #expect(run.text == "hello\n")
        // Nothing is left behind.
        #expect(run.log.slots.isEmpty)
        #expect(run.log.descriptorsOpen == 0)
    }

    @Test func oneExitMayCarryManyBytes() throws {
        let run = try Self.run { _, step, _ in
            step == 0 ? .portOut(Self.serial, Array("rep outsb\n".utf8)) : Self.powerOff
        }
        #expect(run.text == "rep outsb\n")
    }

    @Test func moreOutputThanTheBuffersHold() throws {
        let line = [UInt8](repeating: UInt8(ascii: "#"), count: 4000)
        let run = try Self.run { _, step, _ in step < 100 ? .portOut(Self.serial, line) : Self.powerOff }
        #expect(run.outcome == .poweredOff)
        #expect(run.text.utf8.count == 400_000)
    }

    @Test func inputArrives() throws {
        // Raise RTS, then echo what comes until a newline.
        let run = try Self.run(input: "typed\n") { _, step, input in
            if step == 0 { return .portOut(Self.serial + 4, [0x0B]) }
            switch step % 3 {
            case 1: return .portIn(Self.serial + 5)
            case 2 where input & 1 == 0: return .portOut(0x80, [0])
            case 2: return .portIn(Self.serial)
            default: return input == UInt64(UInt8(ascii: "\n")) ? Self.powerOff : .portOut(0x80, [0])
            }
        }
        #expect(run.outcome == .poweredOff)
        // The receiver's interrupt was not enabled.
        #expect(run.log.lines.isEmpty)
    }

    @Test func deviceInterruptsReachTheCore() throws {
        let run = try Self.run { _, step, _ in
            switch step {
            case 0: .portOut(Self.serial + 1, [0x02])
            case 1: .portIn(Self.serial + 2)
            default: Self.powerOff
            }
        }
        #expect(run.log.lines == ["4=1", "4=0"])
    }

    /// ISA lines reach a PIC and the IOAPIC, the timer's arrives where the ACPI tables say, and nothing claims line 2.
    @Test func linesAreRouted() throws {
        let run = try Self.run { _, _, _ in Self.powerOff }
        let routes = Set(run.log.routes)
        #expect(routes.isSuperset(of: ["0=0.0", "0=2.2", "4=0.4", "4=2.4", "8=1.0", "8=2.8", "23=2.23"]))
        #expect(!routes.contains { $0.hasPrefix("2=") || $0 == "0=2.0" || $0.hasPrefix("16=0") })
        #expect(routes.count == run.log.routes.count && routes.count == 15 + 23)
    }

    /// What KVM leaves to its client to say about processors.
    @Test func processorsHaveAHypervisorAndADeadlineTimer() throws {
        let run = try Self.run { _, _, _ in Self.powerOff }
        let features = try #require(run.log.cpuids[0]?.first { $0.function == 1 })
        #expect(features.ecx == 1 << 31 | 1 << 24)
    }

    @Test func unclaimedPortsAndMemoryReadAllOnes() throws {
        let inputs = Mutex<[UInt64]>([])
        let run = try Self.run { _, step, input in
            inputs.withLock { $0.append(input) }
            switch step {
            case 0: return .portIn(0x1F0)
            case 1: return .mmioRead(0xD000_0000, byteCount: 4)
            default: return Self.powerOff
            }
        }
        #expect(run.outcome == .poweredOff)
        #expect(inputs.withLock { $0.prefix(3) } == [0, 0xFF, 0xFFFF_FFFF])
    }

    @Test func aRebootStartsAnew() throws {
        let boots = Atomic(0)
        let run = try Self.run { _, step, _ in
            guard step == 0 else { return .wait }
            let isFirst = boots.add(1, ordering: .relaxed).oldValue == 0
            return isFirst ? .portOut(0xCF9, [0x06]) : Self.powerOff
        }
        #expect(run.outcome == .poweredOff)
        #expect(run.log.machineCount == 2)
        #expect(run.log.descriptorsOpen == 0)
    }

    @Test(arguments: [0xCF9, 0x64] as [UInt16])
    func aRebootCanEndTheRun(port: UInt16) throws {
        let run = try Self.run(restarts: false) { _, step, _ in
            step == 0 ? .portOut(port, [port == 0x64 ? 0xFE : 0x06]) : .wait
        }
        #expect(run.outcome == .rebooted)
        #expect(run.log.machineCount == 1)
    }

    @Test func aTripleFaultEndsWithTheRegisters() throws {
        let script = Self.says("x", then: .shutdown)
        let run = try Self.run { _, step, _ in script(step) }
        guard case .tripleFault(let registers) = run.outcome else {
            Issue.record("outcome \(run.outcome)")
            return
        }
        #expect(registers.contains("RIP=0000000001000000"))
        #expect(registers.contains("CR3=0000000000009000"))
        #expect(run.text == "x")
    }

    @Test func internalErrorsAndLostMemoryEndTheRun() throws {
        let internalError = try Self.run { _, _, _ in .internalError }
        guard case .internalError(let message, _) = internalError.outcome else {
            Issue.record("outcome \(internalError.outcome)")
            return
        }
        #expect(message.contains("suberror 1"))
        let badAddress = try Self.run { _, _, _ in .badAddress }
        guard case .hostFailure = badAddress.outcome else {
            Issue.record("outcome \(badAddress.outcome)")
            return
        }
    }

    @Test func systemEventsPowerOff() throws {
        let run = try Self.run { _, _, _ in .systemEvent(Int32(KVM_SYSTEM_EVENT_SHUTDOWN)) }
        #expect(run.outcome == .poweredOff)
    }

    /// One processor powers off while the others sit in guest code.
    @Test func allProcessorsEnd() throws {
        let run = try Self.run(processors: "boot=4,max=6") { vcpu, step, _ in
            guard vcpu == 2 else { return .wait }
            return step < 50 ? .portIn(0x80) : Self.powerOff
        }
        #expect(run.outcome == .poweredOff)
        #expect(run.log.descriptorsOpen == 0)
        #expect(run.log.cpuids.keys.sorted() == [0, 1, 2, 3])
        for (id, leaves) in run.log.cpuids {
            let topology = leaves.filter { $0.function == 0xB }
            #expect(topology.map(\.edx) == [id, id, id])
            #expect(topology.map(\.eax) == [0, 3, 0])
            #expect(leaves.first { $0.function == 1 }?.ebx == id << 24 | 8 << 16)
        }
    }

    @Test func theBootProcessorEntersTheKernel() throws {
        let run = try Self.run { _, _, _ in Self.powerOff }
        #expect(run.log.entry?.rip == 0x100_0000)
        #expect(run.log.entry?.rsi == 0x7000)
        #expect(run.log.entry?.rflags == 2)
    }

    /// Nothing from 3 to 4 GiB, and no slot of 2³¹ pages or more.
    @Test(
        arguments: [
            ("2G", [0, 2 << 30]),
            ("5G", [0, 3 << 30, 4 << 30, 2 << 30]),
            ("9T", [0, 3 << 30, 4 << 30, 4 << 40, 4 << 30 | 4 << 40, 4 << 40, 4 << 30 | 8 << 40, (1 << 40) - (3 << 30)])
        ] as [(String, [UInt64])])
    func memorySlots(memory: String, expected: [UInt64]) throws {
        let seen = Mutex<[UInt64]>([])
        let backend = Mutex<ScriptedBackend?>(nil)
        let kernel = try TemporaryFile(SyntheticKernel.elf())
        let pipes = try ConsolePipes()
        let scripted = ScriptedBackend { _, _, _ in
            let slots = backend.withLock { $0 }?.record.slots.values.sorted { $0.guest_phys_addr < $1.guest_phys_addr }
            seen.withLock { $0 = (slots ?? []).flatMap { [$0.guest_phys_addr, $0.memory_size] } }
            return Self.powerOff
        }
        backend.withLock { $0 = scripted }
        let configuration = MachineConfiguration(
            kernel: kernel.path, processors: try ProcessorCount(parsing: "1"), memory: try MemorySize(parsing: memory))
        let outcome = try VirtualMachineMonitor(
            configuration, system: try KVMSystem(backend: scripted), console: try pipes.console()
        ).run()
        backend.withLock { $0 = nil }
        #expect(outcome == .poweredOff)
        #expect(seen.withLock { $0 } == expected)
    }

    @Test func aReaderThatWentAwayEndsTheRun() throws {
        let kernel = try TemporaryFile(SyntheticKernel.elf())
        let pipes = try ConsolePipes()
        let console = try pipes.console()
        pipes.closeReader()
        let backend = ScriptedBackend { _, _, _ in .portOut(Self.serial, [0x78]) }
        let configuration = MachineConfiguration(
            kernel: kernel.path, processors: try ProcessorCount(parsing: "2"), memory: try MemorySize(parsing: "64M"))
        let outcome = try VirtualMachineMonitor(
            configuration, system: try KVMSystem(backend: backend), console: console
        ).run()
        #expect(outcome == .consoleClosed)
        #expect(backend.record.descriptorsOpen == 0)
    }

    @Test func badInputIsNamed() throws {
        func error(_ kernel: FilePath, memory: String) throws -> MachineError? {
            let configuration = MachineConfiguration(
                kernel: kernel, processors: try ProcessorCount(parsing: "1"), memory: try MemorySize(parsing: memory))
            let monitor = VirtualMachineMonitor(
                configuration, system: try KVMSystem(backend: ScriptedBackend { _, _, _ in .shutdown }),
                console: try ConsolePipes().console())
            return #expect(throws: MachineError.self) { try monitor.run() }
        }
        let kernel = try TemporaryFile(SyntheticKernel.elf())
        for (path, memory, part) in [
            (FilePath("/nonexistent/vmlinuz"), "64M", "/nonexistent/vmlinuz"),
            (kernel.path, "64T", "64T"), (kernel.path, "4M", "--memory"),
            (FilePath("/dev/null"), "64M", "/dev/null")
        ] {
            guard case .badInput(let message) = try error(path, memory: memory) else {
                Issue.record("\(path), \(memory): no bad input")
                continue
            }
            #expect(message.contains(part), "\(message)")
            #expect(!message.contains("\n"))
        }
    }
}
