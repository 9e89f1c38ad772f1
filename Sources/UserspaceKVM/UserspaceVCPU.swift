import CHost
import GuestMemory
import Host
import Interrupts
import KVMInterface
import RCU
import Synchronization
import SystemPackage
import Translator
import VCPUTables
import X86

/// One virtual CPU: a processor, its local APIC and where it stands in `KVM_RUN`.
///
/// The *owner* is the thread that holds `lock`: the one inside `KVM_RUN`, or one that reads or writes state. What other
/// threads may touch is atomic: the APIC's posting side, `requests` and `signals`.
final class UserspaceVCPU: @unchecked Sendable, VCPUTableElement {
    // SAFETY: `@unchecked Sendable` is the division above.

    let id: UInt32
    /// The place in the machine's table.
    let index: Int
    unowned(unsafe) let vm: UserspaceVM
    let runArea: RunArea
    private let runMemory: MemoryMapping

    /// Held during every request to this vCPU, also during `KVM_RUN`.
    let lock = FutexLock()

    /// The machine's interrupt controllers, which there are before its vCPUs or never; nil if the client has them.
    let router: InterruptRouter?
    private(set) var processor: Processor!
    private(set) var requests: VCPURequests!
    /// nil if the client has the interrupt controllers.
    private(set) var apic: LocalAPIC?
    private(set) var timerSlot: TimerSlot!
    /// Takes part in grace periods of shadow pages while inside guest code.
    private var shadowReader: ShadowReader!

    /// Events that others raise; see ``VCPUSignals``.
    let signals = Atomic<UInt32>(0)

    // The owner's.

    var cpuidTable = CPUIDTable()
    /// KVM's clock structures in guest memory.
    var paravirtualClock = ParavirtualClock()
    /// Task priority while the client has the local APIC.
    var clientTaskPriority: UInt8 = 0
    /// APIC base while the client has the local APIC.
    var clientAPICBase: UInt64
    /// What `KVM_INTERRUPT` left for a processor with a local APIC, until it is taken in the place of the 8259's vector.
    var clientVector: UInt8?
    /// Level-triggered interrupts that have ended, of which the client's IOAPIC has not heard.
    var endedVectors = VectorSet()
    /// The client access that the last exit asked for.
    var pendingAccess: ClientRequest?
    /// `KVM_SET_SIGNAL_MASK`: the signals blocked during `KVM_RUN`.
    var signalMask: UInt64?
    /// A signal of the client has come during this `KVM_RUN`. Written by the owner's thread, also in a signal handler.
    let tookHostSignal = Atomic<Bool>(false)
    /// It was unplugged: no request reaches it, so it must not run.
    var isParked = false
    /// `KVM_RUN` was called: handlers that the client had then end it.
    var hasWrappedHandlers = false
    /// Guest code was entered; CPUID is fixed from then on.
    var hasRun = false
    /// A hypercall of another vCPU ended HLT.
    var isUnhalted = false
    let counters = VCPUCounters()
    var machineCheck = MachineCheck()
    /// `KVM_CAP_ENFORCE_PV_FEATURE_CPUID`.
    var enforcesParavirtualFeatures = false
    /// MSR_KVM_POLL_CONTROL: whether the host may poll before a vCPU sleeps, which it never does.
    var pollControl: UInt64 = 1
    var stealTime = StealTime()
    var taskPriorityPatching = TaskPriorityPatching()
    /// The client's debugger keeps interrupts away.
    var debuggerBlocksInterrupts = false
    /// The next run ends as by a triple fault.
    var hasPendingTripleFault = false
    /// Vector of the last SIPI, for `KVM_GET_VCPU_EVENTS`.
    var startupVector: UInt8 = 0

    /// - Throws: `ENOMEM`.
    init(id: UInt32, index: Int, vm: UserspaceVM, isBootstrapProcessor: Bool) throws(Errno) {
        self.id = id
        self.index = index
        self.vm = vm
        router = vm.router
        runMemory = try MemoryMapping.sharedAnonymous(byteCount: Limits.runAreaByteCount)
        try vm.writes.ring.show(in: runMemory, at: Limits.coalescedRingOffset)
        runArea = RunArea(
            UnsafeMutableRawBufferPointer(start: runMemory.baseAddress, count: Limits.runAreaByteCount))
        clientAPICBase = Self.initialAPICBase(isBootstrapProcessor: isBootstrapProcessor)
        requests = VCPURequests(gate: vm.gate, target: self)
        processor = try Processor(
            memory: vm.memory, cache: vm.cache, shadow: vm.shadow, mmu: vm.mmu, platform: self)
        if vm.hasDirtyRings {
            processor.dirtyRing = try DirtyRing(byteCount: vm.dirtyRingByteCount.load(ordering: .relaxed))
        }
        shadowReader = ShadowReader(vm.domain, processor)
        timerSlot = TimerSlot { [unowned(unsafe) self] _ in signal(.timer) }
        if router != nil {
            apic = LocalAPIC(id: id, isBootstrapProcessor: isBootstrapProcessor, host: self)
            apic?.tscFrequencyKilohertz = vm.tscKilohertz
            if !quirks.contains(.unmaskedLINT0) {
                apic?.unmasksLINT0 = false
                apic?.resetForPowerUp()
            }
        }
        powerUp(isBootstrapProcessor: isBootstrapProcessor)
        vm.timers.add(timerSlot)
    }

    static func initialAPICBase(isBootstrapProcessor: Bool) -> UInt64 {
        APICBase.defaultAddress | APICBase.enable | (isBootstrapProcessor ? APICBase.bootstrapProcessor : 0)
    }

    /// Runs `body` as the owner.
    /// - Throws: `EBUSY` if there is an owner, and what `body` throws.
    func withIdleOwner(_ body: () throws(Errno) -> Void) throws(Errno) {
        guard lock.tryLock() else { throw .resourceBusy }
        defer { lock.unlock() }
        try body()
    }

    /// The current moment on the clocks that interrupt hardware counts by.
    var now: GuestTime {
        GuestTime(
            nanoseconds: MonotonicClock.nanoseconds(), tsc: martlet_rdtsc() &+ processor.system.tscOffset)
    }

    /// Posts an event and kicks the owner.
    /// > Concurrency: any thread.
    func signal(_ signal: VCPUSignals) {
        // ORDERING: the full fence that `VCPURequests.kick` asks of its callers.
        signals.bitwiseOr(signal.rawValue, ordering: .sequentiallyConsistent)
        requests.kick()
    }

    func hasSignal(_ signal: VCPUSignals) -> Bool {
        // ORDERING: pairs with `signal(_:)` through the kick's fences.
        signals.load(ordering: .sequentiallyConsistent) & signal.rawValue != 0
    }

    /// Takes the event away.
    /// - Returns: whether it was there.
    func takeSignal(_ signal: VCPUSignals) -> Bool {
        guard hasSignal(signal) else { return false }
        // ORDERING: acquire pairs with `signal(_:)`.
        return signals.bitwiseAnd(~signal.rawValue, ordering: .acquiringAndReleasing).oldValue & signal.rawValue != 0
    }
}

/// A vCPU as a reader of shadow pages. A writer that has to wait for it raises the processor's attention, so that it leaves
/// guest code, which is a quiescent state.
private final class ShadowReader {
    let reader: RCUReader

    /// - Parameter processor: outlives the reader.
    init(_ domain: RCUDomain, _ processor: Processor) {
        reader = RCUReader(
            domain,
            nudge: { context in
                // SAFETY: the context is the processor, which outlives the reader.
                Unmanaged<Processor>.fromOpaque(context).takeUnretainedValue().raiseAttention()
            }, context: Unmanaged.passUnretained(processor).toOpaque())
    }
}

/// Events of a vCPU that have no place in its local APIC.
struct VCPUSignals: OptionSet, Sendable {
    let rawValue: UInt32

    /// `KVM_NMI` where the client has the local APIC.
    static let nmi = Self(rawValue: 1 << 0)
    /// The machine's clock was set: write the guest's structures anew.
    static let clockChanged = Self(rawValue: 1 << 1)
    /// The deadline of the local APIC's timer has passed.
    static let timer = Self(rawValue: 1 << 2)
    /// A system management interrupt.
    static let systemManagement = Self(rawValue: 1 << 3)
    /// `KVM_RUN` is to return.
    static let interrupt = Self(rawValue: 1 << 4)
}

extension UserspaceVCPU: RequestTarget {
    func raiseAttention() { processor.raiseAttention() }
    func perform(_ requests: ProcessorRequests) { processor.perform(requests) }
    func didEnter() { shadowReader.reader.online() }
    func willLeave() { shadowReader.reader.offline() }
}

extension UserspaceVCPU: LocalAPICHost {
    func kick() { requests.kick() }

    func postSystemManagementInterrupt() { signal(.systemManagement) }

    func send(_ message: InterruptMessage) {
        if let router, let apic { router.deliver(message, from: apic) }
    }

    func broadcastEndOfInterrupt(vector: UInt8) {
        guard router?.endOfInterrupt(vector: vector) ?? false else { return }
        endedVectors.insert(vector)
        raiseAttention()
    }

    func armTimer(deadlineNanoseconds: UInt64?) {
        vm.timers.arm(timerSlot, deadlineNanoseconds: deadlineNanoseconds)
    }
}
