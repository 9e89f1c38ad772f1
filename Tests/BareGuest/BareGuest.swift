import Addressing
import Glibc
import Host
import KVMInterface
import Machine
import Synchronization
import SystemPackage
import UserspaceKVM

/// Runs a bare guest on the core with as little around it as possible: `BareGuest KERNEL [CPUS [SECONDS]]`.
///
/// There is memory, an interrupt controller and a timer, and two ports: what the guest writes to 0xE9 goes to standard
/// output, and a write to 0xF4 ends it. Other ports and memory without RAM answer with ones. It is a program of its own so
/// that whatever a guest does to the core, the test that started it sees how it ends.
@main
struct BareGuest {
    /// How a run ends; the process's status.
    enum Ending: Int32 {
        /// The guest wrote to port 0xF4.
        case finished = 0
        case badUse = 2
        /// Triple fault.
        case shutdown = 3
        case internalError = 4
        /// An exit that no guest should cause here.
        case unexpectedExit = 5
        case requestFailed = 6
        /// The guest was still running after the given time, and was stopped.
        case stopped = 7
    }

    static func main() {
        let arguments = CommandLine.arguments
        guard arguments.count > 1, let cpus = arguments.count > 2 ? Int(arguments[2]) : 1,
            let seconds = arguments.count > 3 ? Double(arguments[3]) : 60
        else {
            Self.say("usage: BareGuest KERNEL [CPUS [SECONDS]]")
            exit(Ending.badUse.rawValue)
        }
        do {
            let run = try Run(kernel: FilePath(arguments[1]), processorCount: cpus)
            exit(try run.finish(timeoutNanoseconds: UInt64(seconds * 1e9)).rawValue)
        } catch {
            Self.say("\(error)")
            exit(Ending.requestFailed.rawValue)
        }
    }

    static func say(_ text: String) { _ = try? FileDescriptor.standardError.writeAll(Array((text + "\n").utf8)) }
}

/// One run of a guest.
final class Run: Sendable {
    /// What differential tests give every guest.
    static let memoryByteCount: UInt64 = 64 << 20

    private let machine: VirtualMachine
    private let vcpus: [VCPU]
    private let ending = Mutex<BareGuest.Ending?>(nil)
    /// 1 once there is an ending.
    private let hasEnded = FutexWord()
    private let output = Mutex(())

    init(kernel: FilePath, processorCount: Int) throws {
        let mapping = try MemoryMapping.anonymous(byteCount: Int(Self.memoryByteCount)).release()
        let ram = GuestRAM(
            regions: [
                .init(
                    start: GuestPhysicalAddress(0), byteCount: Self.memoryByteCount,
                    host: HostVirtualAddress(UInt(bitPattern: mapping.address)))
            ], owner: nil)
        let guest = try GuestLoader(kernel: .file(kernel)).load(into: ram)
        let system = try KVMSystem(backend: UserspaceKVM())
        machine = try system.createVM()
        try machine.createIRQChip()
        try machine.createPIT2()
        try machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 0, flags: 0, guest_phys_addr: 0, memory_size: Self.memoryByteCount,
                userspace_addr: UInt64(UInt(bitPattern: mapping.address))))
        let topology = ProcessorTopology(count: processorCount)
        let leaves = try ProcessorFeatures.leaves(of: system)
        var vcpus: [VCPU] = []
        for id in 0..<UInt32(processorCount) {
            let vcpu = try machine.createVCPU(id: id)
            try vcpu.setCPUID(topology.leaves(leaves, for: id))
            if id == 0 { try vcpu.enter(guest.state) }
            vcpus.append(vcpu)
        }
        self.vcpus = vcpus
    }

    /// Runs all vCPUs until something ends that.
    func finish(timeoutNanoseconds: UInt64) throws -> BareGuest.Ending {
        let deadline = MonotonicClock.nanoseconds() + timeoutNanoseconds
        let threads = try vcpus.map { vcpu in
            try HostThread(name: "vCPU \(vcpu.id)", stackSize: 4 << 20) { self.work(vcpu) }
        }
        // ORDERING: acquire pairs with the release in `end`.
        while hasEnded.atomic.pointee.load(ordering: .acquiring) == 0 {
            if hasEnded.wait(while: 0, deadlineNanoseconds: deadline) == .timedOut { end(.stopped) }
        }
        for vcpu in vcpus { vcpu.requestExit() }
        for thread in threads { thread.join() }
        return ending.withLock { $0 } ?? .requestFailed
    }

    private func end(_ ending: BareGuest.Ending) {
        self.ending.withLock { if $0 == nil { $0 = ending } }
        // ORDERING: release pairs with the acquires of those who wait.
        hasEnded.atomic.pointee.store(1, ordering: .releasing)
        hasEnded.wake()
    }

    private func work(_ vcpu: VCPU) {
        // The core meets accesses to memory that the host withholds in handlers of these.
        var set = sigset_t()
        sigemptyset(&set)
        for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL] { sigaddset(&set, signal) }
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
        while hasEnded.atomic.pointee.load(ordering: .acquiring) == 0 {
            do {
                handle(try vcpu.run(), of: vcpu)
            } catch {
                BareGuest.say("vCPU \(vcpu.id): \(error)")
                end(.requestFailed)
            }
        }
    }

    private func handle(_ exit: VCPUExit, of vcpu: VCPU) {
        switch exit {
        case .io(let access) where access.isWrite:
            if access.port == 0xE9 { write(access.data) }
            if access.port == 0xF4 { end(.finished) }
        case .io(let access): access.data.initializeMemory(as: UInt8.self, repeating: 0xFF)
        case .mmio(let access):
            if !access.isWrite { access.data.initializeMemory(as: UInt8.self, repeating: 0xFF) }
        case .interrupted: break
        case .shutdown: end(.shutdown)
        case .internalError(let suberror, let data):
            let state = try? vcpu.registers()
            BareGuest.say("vCPU \(vcpu.id): internal error \(suberror) \(data), \(String(describing: state))")
            end(.internalError)
        default:
            BareGuest.say("vCPU \(vcpu.id): unexpected exit \(exit)")
            end(.unexpectedExit)
        }
    }

    private func write(_ bytes: UnsafeMutableRawBufferPointer) {
        output.withLock { _ in
            _ = try? FileDescriptor.standardOutput.writeAll(UnsafeRawBufferPointer(bytes))
        }
    }
}
