import Synchronization

/// The local APIC of one vCPU, as xAPIC and as x2APIC.
///
/// Threads. The *owner* is the thread inside the vCPU's `KVM_RUN`, or the one that holds the vCPU's lock while it
/// does not run. Everyone else (vCPUs that send IPIs, device and timer threads) may do three things:
///
/// - post: ``post(vector:levelTriggered:)``, ``accept(_:)`` and the `post…` family write `requests` (IRR), `triggers`
///   (TMR), `signals` (NMI, INIT, SIPI, un-halt) and `errors`, all atomics;
/// - match: ``matches(destination:mode:isFromProcessor:broadcastQuirk:)`` and the properties beside it read
///   `routingWord`, one word that mirrors the owner's ID, LDR, DFR and enable bits, so that no reader sees half a change;
/// - count: `lowestPriorityCount`, the round-robin of lowest-priority delivery.
///
/// All other registers are plain and belong to the owner.
///
/// Posting. A poster inserts into `requests`, then sets `isDirty`; whoever changes it from false to true has to kick.
/// The owner clears `isDirty`, then scans `requests` and keeps the highest vector in `highestRequest`. So a vector that
/// a scan missed has a poster which will see `isDirty` false and kick after that scan; and while `isDirty` is false,
/// `highestRequest` is exact, because apart from posters only the owner changes `requests`. An owner that goes to sleep
/// says so first (with a full fence) and looks at ``hasPendingInterrupt`` and ``hasPendingSignals`` afterwards.
///
/// > Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller"; `struct kvm_lapic_state`.
public final class LocalAPIC: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable` is the division above: atomics for everyone, the rest for the owner.

    /// The identifier given at creation: the x2APIC ID, and at first the xAPIC ID.
    public let initialID: UInt32

    /// The vCPU. It outlives the APIC.
    // SAFETY: not counted, because every interrupt would write the vCPU's reference count from another thread.
    public unowned(unsafe) let host: any LocalAPICHost

    // What the guest's CPUID offers; set by the owner.

    public var supportsX2APIC = true
    public var supportsTSCDeadline = true
    /// The width of guest physical addresses, which limits the APIC base.
    public var physicalAddressBits: UInt64 = 52
    /// The guest's TSC frequency. After a change call ``rearmTimer(now:)``.
    public var tscFrequencyKilohertz: UInt64 = 1_000_000
    /// A reset lets the 8259's interrupts through to the boot processor.
    public var unmasksLINT0 = true

    // Written by all threads.

    let requests = AtomicVectorSet()
    let triggers = AtomicVectorSet()
    let signals = Atomic<UInt32>(0)
    let errors = Atomic<UInt32>(0)
    let isDirty = Atomic<Bool>(false)
    let lowestPriorityCount = Atomic<UInt32>(0)

    // Written by the owner, read by all.

    let routingWord = Atomic<UInt32>(0)

    // The owner's.

    /// IA32_APIC_BASE. Changed through ``setBase(_:isFromClient:)``.
    public internal(set) var base: UInt64
    var inService = VectorSet()
    /// The highest vector in `requests` at the last scan; 0 if none (vectors below 16 are never above any priority).
    var highestRequest: UInt8 = 0
    var taskPriorityRegister: UInt8 = 0
    var processorPriority: UInt8 = 0
    /// Bits 31–24 of the ID register in xAPIC mode.
    var xAPICID: UInt8
    /// Bits 31–24 of the LDR in xAPIC mode.
    var logicalID: UInt8 = 0
    var destinationFormat: UInt32 = 0xFFFF_FFFF
    var spurious: UInt32 = 0xFF
    var errorStatus: UInt32 = 0
    /// The bits of `errors` for which the error interrupt was raised.
    var signalledErrors: UInt32 = 0
    var commandLow: UInt32 = 0
    var commandHigh: UInt32 = 0
    var localVectors = LocalVectorTable()
    var initialCount: UInt32 = 0
    var divideConfiguration: UInt32 = 0
    /// Length of one timer run, in nanoseconds: initial count times divisor, limited for periodic timers.
    var timerPeriod: UInt64 = 0
    /// The guest's value of IA32_TSC_DEADLINE; 0 when disarmed.
    var tscDeadline: UInt64 = 0
    /// The monotonic time at which the timer expires next; nil if it does not run.
    public internal(set) var timerDeadlineNanoseconds: UInt64?

    /// An APIC in its state after power-up: xAPIC mode, enabled by the base register, disabled by software.
    public init(id: UInt32, isBootstrapProcessor: Bool, host: any LocalAPICHost) {
        initialID = id
        self.host = host
        xAPICID = UInt8(truncatingIfNeeded: id)
        base = APICBase.defaultAddress | APICBase.enable | (isBootstrapProcessor ? APICBase.bootstrapProcessor : 0)
        setPowerUpRegisters()
    }

    // MARK: Interrupts from others

    /// Makes `vector` pending. Vectors 0–15 are illegal and recorded as an error instead.
    ///
    /// - Returns: whether the caller has to kick the owner.
    /// > Concurrency: any thread.
    public func post(vector: UInt8, levelTriggered: Bool) -> Bool {
        record(vector: vector, levelTriggered: levelTriggered).needsKick
    }

    /// Takes a message that is meant for this APIC, and kicks the owner where needed.
    /// > Concurrency: any thread.
    @discardableResult
    public func accept(_ message: InterruptMessage) -> Acceptance {
        switch message.deliveryMode {
        case .fixed, .lowestPriority:
            guard isSoftwareEnabled, message.isAsserted || !message.isLevelTriggered else { return .ignored }
            let result = record(vector: message.vector, levelTriggered: message.isLevelTriggered)
            if result.needsKick { host.kick() }
            return result.acceptance
        case .nmi:
            postNMI()
        case .initialize:
            guard message.isAsserted || !message.isLevelTriggered else { return .ignored }
            postInitialize()
        case .startup:
            postStartup(vector: message.vector)
        case .unhalt:
            post(.unhalt)
        case .smi:
            host.postSystemManagementInterrupt()
        case .external:
            return .ignored
        }
        return .delivered
    }

    func record(vector: UInt8, levelTriggered: Bool) -> (acceptance: Acceptance, needsKick: Bool) {
        guard vector >= 16 else {
            return (.ignored, recordErrors(APICError.receiveIllegalVector))
        }
        if triggers.contains(vector) != levelTriggered {
            if levelTriggered { triggers.insert(vector) } else { triggers.remove(vector) }
        }
        let isNew = requests.insert(vector)
        return (isNew ? .delivered : .coalesced, markDirty())
    }

    /// - Returns: whether the caller has to kick the owner.
    func recordErrors(_ bits: UInt32) -> Bool {
        errors.bitwiseOr(bits, ordering: .relaxed)
        return markDirty()
    }

    /// - Returns: whether the caller has to kick the owner.
    func markDirty() -> Bool {
        // ORDERING: release, pairs with the acquire in `synchronize`: a cleared flag was cleared before the scan that
        // sees the insertion.
        !isDirty.exchange(true, ordering: .sequentiallyConsistent)
    }

    // MARK: Interrupts for the owner

    /// Whether an interrupt waits whose priority is above the processor's. Cheap enough for each entry to guest code.
    /// > Concurrency: the owner.
    public var hasPendingInterrupt: Bool { highestPendingVector != nil }

    /// The vector ``acknowledge()`` would return.
    /// > Concurrency: the owner.
    public var highestPendingVector: UInt8? {
        // ORDERING: relaxed; a flag that is not seen yet belongs to a poster that kicks afterwards.
        if isDirty.load(ordering: .relaxed) { synchronize() }
        let vector = highestRequest
        return vector & 0xF0 > processorPriority & 0xF0 && isEnabled ? vector : nil
    }

    /// Moves the highest pending interrupt from request to service; nil if none is above the processor's priority.
    /// > Concurrency: the owner.
    public func acknowledge() -> UInt8? {
        guard let vector = highestPendingVector else { return nil }
        requests.remove(vector)
        highestRequest = requests.highest ?? 0
        inService.insert(vector)
        updateProcessorPriority()
        return vector
    }

    /// Takes in what others posted: raises the error interrupt, finds the highest request.
    func synchronize() {
        // ORDERING: acquire, pairs with `markDirty`; the scan below must not move before it.
        _ = isDirty.exchange(false, ordering: .sequentiallyConsistent)
        let newErrors = errors.load(ordering: .relaxed) & ~signalledErrors
        if newErrors != 0 {
            signalledErrors |= newErrors
            raise(.error)
        }
        highestRequest = requests.highest ?? 0
    }

    /// The end of the service of the highest interrupt: what a write to the EOI register does.
    ///
    /// The priority falls, so ``hasPendingInterrupt`` may become true.
    /// > Concurrency: the owner.
    public func endOfInterrupt() {
        guard let vector = inService.highest else { return }
        inService.remove(vector)
        updateProcessorPriority()
        if triggers.contains(vector) { host.broadcastEndOfInterrupt(vector: vector) }
    }

    /// CR8: bits 7–4 of the task priority register, as a number from 0 to 15.
    /// > Concurrency: the owner.
    public var taskPriority: UInt8 {
        get { taskPriorityRegister >> 4 }
        set {
            taskPriorityRegister = (newValue & 0xF) << 4
            updateProcessorPriority()
        }
    }

    func updateProcessorPriority() {
        let serviced = (inService.highest ?? 0) & 0xF0
        processorPriority = taskPriorityRegister & 0xF0 >= serviced ? taskPriorityRegister : serviced
    }

    /// Raises one of the interrupts of the local vector table.
    /// > Concurrency: the owner.
    @discardableResult
    public func raise(_ source: LocalInterrupt) -> Acceptance {
        let entry = localVectors[source]
        guard isEnabled, entry & LocalVectorEntry.masked == 0 else { return .ignored }
        let hasMode = source != .timer && source != .error
        let mode = hasMode ? DeliveryMode(rawValue: UInt8(truncatingIfNeeded: entry >> 8) & 7) : .fixed
        switch mode {
        case .fixed:
            let result = record(vector: UInt8(truncatingIfNeeded: entry), levelTriggered: false)
            if result.needsKick { host.kick() }
            return result.acceptance
        case .nmi: postNMI()
        case .smi: host.postSystemManagementInterrupt()
        case .initialize: postInitialize()
        default: return .ignored
        }
        return .delivered
    }

    // MARK: Reset

    /// The effect of an INIT: all but ID, base and the bits that others posted as SIPI.
    /// > Concurrency: the owner.
    public func resetForInitialize() {
        withdraw([.nmi, .unhalt])
        setPowerUpRegisters()
        host.armTimer(deadlineNanoseconds: nil)
    }

    /// What the guest's CPUID offers while the client has not said.
    public func assumeFeatures() {
        supportsX2APIC = true
        supportsTSCDeadline = true
        physicalAddressBits = 52
    }

    /// The state after power-up, with the identifier given at creation; everything that others posted is gone.
    /// > Concurrency: the owner, while nobody posts.
    public func resetForPowerUp() {
        withdraw([.nmi, .unhalt, .initialize, .startup])
        xAPICID = UInt8(truncatingIfNeeded: initialID)
        base = APICBase.defaultAddress | APICBase.enable | base & APICBase.bootstrapProcessor
        setPowerUpRegisters()
        host.armTimer(deadlineNanoseconds: nil)
    }

    /// Registers as after power-up or INIT; identifiers and base stay.
    func setPowerUpRegisters() {
        requests.assign(VectorSet())
        triggers.assign(VectorSet())
        inService = VectorSet()
        errors.store(0, ordering: .relaxed)
        signalledErrors = 0
        taskPriorityRegister = 0
        logicalID = 0
        destinationFormat = 0xFFFF_FFFF
        spurious = 0xFF
        errorStatus = 0
        commandLow = 0
        commandHigh = 0
        localVectors = LocalVectorTable()
        // The 8259 reaches the boot processor without a line of APIC code, as firmware would have set it up.
        if base & APICBase.bootstrapProcessor != 0, unmasksLINT0 {
            localVectors[.lint0] = UInt32(DeliveryMode.external.rawValue) << 8
        }
        initialCount = 0
        divideConfiguration = 0
        timerPeriod = 0
        tscDeadline = 0
        timerDeadlineNanoseconds = nil
        updateProcessorPriority()
        synchronize()
        publishRouting()
    }
}

/// The six entries of the local vector table.
struct LocalVectorTable: Sendable {
    private var entries: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32)

    /// All masked.
    init() {
        let masked = LocalVectorEntry.masked
        entries = (masked, masked, masked, masked, masked, masked)
    }

    subscript(source: LocalInterrupt) -> UInt32 {
        get {
            switch source {
            case .timer: entries.0
            case .thermal: entries.1
            case .performance: entries.2
            case .lint0: entries.3
            case .lint1: entries.4
            case .error: entries.5
            }
        }
        set {
            switch source {
            case .timer: entries.0 = newValue
            case .thermal: entries.1 = newValue
            case .performance: entries.2 = newValue
            case .lint0: entries.3 = newValue
            case .lint1: entries.4 = newValue
            case .error: entries.5 = newValue
            }
        }
    }
}
