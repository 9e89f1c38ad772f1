import CHost
import Host
import Interrupts
import KVMInterface
import Synchronization
import SystemPackage
import Translator
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
    private let runMemory: UnsafeMutableRawPointer

    /// Held during every request to this vCPU, also during `KVM_RUN`.
    let lock = FutexLock()

    private(set) var processor: Processor!
    private(set) var requests: VCPURequests!
    /// nil if the client has the interrupt controllers.
    private(set) var apic: LocalAPIC?
    private(set) var timerSlot: TimerSlot!
    let reader: MachineCore.Reader

    /// Events that others raise; see ``VCPUSignals``.
    let signals = Atomic<UInt32>(0)

    // The owner's.

    var cpuidTable = CPUIDTable()
    /// KVM's clock structures in guest memory.
    var paravirtualClock = ParavirtualClock()
    /// Registers that only keep what was written.
    var storedMSRs = StoredMSRs()
    /// Task priority while the client has the local APIC.
    var clientTaskPriority: UInt8 = 0
    /// APIC base while the client has the local APIC.
    var clientAPICBase: UInt64
    /// The client access that the last exit asked for.
    var pendingAccess: ClientRequest?
    /// `KVM_SET_SIGNAL_MASK`: the signals blocked during `KVM_RUN`.
    var signalMask: UInt64?
    /// `KVM_RUN` got past its first checks once; CPUID is fixed from then on.
    var hasRun = false
    /// A hypercall of another vCPU ended HLT.
    var isUnhalted = false
    /// Vector of the last SIPI, for `KVM_GET_VCPU_EVENTS`.
    var startupVector: UInt8 = 0

    /// - Throws: `ENOMEM`.
    init(id: UInt32, index: Int, vm: UserspaceVM, isBootstrapProcessor: Bool) throws(Errno) {
        self.id = id
        self.index = index
        self.vm = vm
        runMemory = .allocate(byteCount: Limits.runAreaByteCount, alignment: 4096)
        runMemory.initializeMemory(as: UInt8.self, repeating: 0, count: Limits.runAreaByteCount)
        runArea = RunArea(UnsafeMutableRawBufferPointer(start: runMemory, count: Limits.runAreaByteCount))
        clientAPICBase =
            APICBase.defaultAddress | APICBase.enable | (isBootstrapProcessor ? APICBase.bootstrapProcessor : 0)
        reader = vm.core.makeReader()
        processor = try vm.core.makeProcessor(platform: self)
        requests = VCPURequests(gate: vm.gate, target: self)
        timerSlot = TimerSlot { [unowned(unsafe) self] _ in requests.kick() }
        if vm.router != nil { apic = LocalAPIC(id: id, isBootstrapProcessor: isBootstrapProcessor, host: self) }
        powerUp(isBootstrapProcessor: isBootstrapProcessor)
        vm.timers.add(timerSlot)
    }

    deinit { runMemory.deallocate() }

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

/// Events of a vCPU that have no place in its local APIC.
struct VCPUSignals: OptionSet, Sendable {
    let rawValue: UInt32

    /// `KVM_NMI` where the client has the local APIC.
    static let nmi = Self(rawValue: 1 << 0)
    /// The machine's clock was set: write the guest's structures anew.
    static let clockChanged = Self(rawValue: 1 << 1)
}

extension UserspaceVCPU: AttentionTarget {
    func raiseAttention() { processor.raiseAttention() }
    func clearAttention() { processor.clearAttention() }
    func perform(_ requests: ProcessorRequests) { processor.perform(requests) }
}

extension UserspaceVCPU: LocalAPICHost {
    func kick() { requests.kick() }

    func send(_ message: InterruptMessage) {
        if let router = vm.router, let apic { router.deliver(message, from: apic) }
    }

    func broadcastEndOfInterrupt(vector: UInt8) { vm.router?.endOfInterrupt(vector: vector) }

    func armTimer(deadlineNanoseconds: UInt64?) {
        vm.timers.arm(timerSlot, deadlineNanoseconds: deadlineNanoseconds)
    }
}
