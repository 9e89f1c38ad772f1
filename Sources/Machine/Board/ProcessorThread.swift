import AddressSpace
import CHost
import Devices
import Host
import KVMInterface
import SystemPackage

/// A vCPU and the thread that runs it: guest code until an exit, the exit, and so on.
final class ProcessorThread: Sendable {
    let vcpu: VCPU
    /// All requests to the vCPU pass it.
    private let gate: AccelGate
    private let ports: DeviceBus
    private let memory: AddressSpace
    private let events: BoardEvents
    /// 1 while the thread runs; it is slept on by whoever waits for the end.
    private let isRunning = FutexWord()
    private let thread = Locked<HostThread?>(nil)

    init(_ vcpu: VCPU, gate: AccelGate, ports: DeviceBus, memory: AddressSpace, events: BoardEvents) {
        self.vcpu = vcpu
        self.gate = gate
        self.ports = ports
        self.memory = memory
        self.events = events
    }

    /// - Throws: `Errno.resourceTemporarilyUnavailable` if the host has no thread left.
    func start() throws(Errno) {
        isRunning.atomic.pointee.store(1, ordering: .relaxed)
        do {
            let started = try HostThread(name: "vCPU \(vcpu.id)", stackSize: 4 << 20) { self.work() }
            thread.withLock { $0 = started }
        } catch {
            isRunning.atomic.pointee.store(0, ordering: .relaxed)
            throw error
        }
    }

    /// Makes the vCPU leave guest code; the thread ends if the board is stopping.
    func kick() { vcpu.requestExit() }

    /// Waits until the thread has ended.
    ///
    /// - Returns: false if it had not at the deadline.
    func waitForEnd(deadlineNanoseconds: UInt64) -> Bool {
        // ORDERING: acquire pairs with the release at the end of `work`: what the thread did is seen.
        while isRunning.atomic.pointee.load(ordering: .acquiring) != 0 {
            if isRunning.wait(while: 1, deadlineNanoseconds: deadlineNanoseconds) == .timedOut { return false }
        }
        // Nothing holds it up any more. Afterwards the thread no longer keeps the vCPU.
        thread.withLock { $0?.join() }
        return true
    }

    private func work() {
        ProcessSignals.unblockCrashSignals()
        while !events.isStopping {
            do {
                handle(try gate.withRequest { () throws(Errno) in try vcpu.run() })
            } catch {
                events.report(
                    .hostFailure(
                        error == .badAddress
                            ? "the host took guest memory away while vCPU \(vcpu.id) used it"
                            : "vCPU \(vcpu.id) cannot run: \(error)"))
            }
        }
        // ORDERING: release pairs with the acquire in `waitForEnd`.
        isRunning.atomic.pointee.store(0, ordering: .releasing)
        isRunning.wake()
    }

    private func handle(_ exit: VCPUExit) {
        switch exit {
        case .io(let access):
            ports.transfer(
                port: access.port, isWrite: access.isWrite, byteCount: access.byteCount, count: access.count,
                data: access.data)
        case .mmio(let access):
            memory.transfer(at: access.address, isWrite: access.isWrite, data: access.data)
        case .interrupted:
            // Whoever asked for this has set the stop flag before, at which the loop looks next, or inhibits requests, at
            // which the gate looks.
            vcpu.immediateExit = false
        case .irqWindowOpen:
            break
        case .shutdown:
            events.report(.tripleFault(registers: registerDump))
        case .systemEvent(let type, _):
            handleSystemEvent(type)
        case .hlt:
            fail("HLT left the core, which has the local APIC to wait with")
        case .endOfInterrupt(let vector):
            fail("the end of interrupt \(vector) left the core, which has the IOAPIC to tell")
        case .internalError(let suberror, let data):
            let details = data.map { "0x" + String($0, radix: 16) }.joined(separator: " ")
            fail("the core cannot go on (KVM_EXIT_INTERNAL_ERROR, suberror \(suberror)) \(details)")
        case .failEntry(let reason, _):
            fail("the core refuses to enter the guest (KVM_EXIT_FAIL_ENTRY, reason 0x\(String(reason, radix: 16)))")
        case .unknown(let reason):
            fail("the core left the guest for an unknown reason (\(reason))")
        }
    }

    private func handleSystemEvent(_ type: UInt32) {
        switch Int32(type) {
        case KVM_SYSTEM_EVENT_SHUTDOWN: events.report(.powerOff)
        case KVM_SYSTEM_EVENT_RESET: events.report(.reset)
        default: fail("the core reports system event \(type)")
        }
    }

    private var registerDump: String { gate.withRequest { RegisterDump.text(of: vcpu) } }

    private func fail(_ message: String) {
        events.report(.internalError(message, registers: registerDump))
    }
}
