import CHost
import GuestMemory
import Host
import Interrupts
import KVMInterface
import MMU
import RCU
import Synchronization
import SystemPackage
import Translator
import VCPUTables

/// One virtual machine: memory, vCPUs, interrupt controllers and clocks.
///
/// Lock order: `lock` (the VM lock), then a vCPU's lock, then those of memory. vCPUs that run take none of them.
final class UserspaceVM: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: what is mutable is guarded by `lock` or is atomic, as each member says.

    let host: HostProcessor
    let tscKilohertz: UInt64
    let clock: MachineClock
    /// Grace periods of shadow pages, in which vCPUs take part while inside guest code.
    let domain = RCUDomain()
    let memory = GuestMemory()
    let cache: TranslationCache
    let shadow: ShadowMMU
    let mmu: MMUKind
    let gate = PauseGate()
    let timers = MachineTimers()
    let writes: WriteBus
    let interruptEvents = InterruptEvents()

    /// The VM lock: creation of vCPUs and controllers, and the settings below.
    let lock = FutexLock()
    let vcpus: ReservedTable<UserspaceVCPU>

    /// PIC, IOAPIC and routes; set once, under the lock, before there are vCPUs.
    private let routerReference = AtomicLazyReference<InterruptRouter>()
    private let pitReference = AtomicLazyReference<IntervalTimer>()

    /// The id of the vCPU that starts at power-up. Guarded by `lock`.
    var bootVCPUID: UInt32 = 0
    /// The first vCPU id that is too large, from `KVM_CAP_MAX_VCPU_ID` or the first creation on. Guarded by `lock`.
    var vcpuIDLimit: UInt32?
    /// `KVM_SET_TSS_ADDR` and `KVM_SET_IDENTITY_MAP_ADDR`: taken for the client's sake, nothing here needs the pages.
    var tssAddress: UInt64 = 0
    var identityMapAddress: UInt64 = 0xFFFB_C000
    /// What vCPUs add to the host's time-stamp counter, so that those created later agree. Guarded by `lock`.
    var tscOffset: UInt64 = 0 &- martlet_rdtsc()
    /// What `KVM_CAP_X2APIC_API` was enabled with. Guarded by `lock`.
    private var x2APICAPI: X2APICAPIFlags = []
    /// `KVM_SET_NR_MMU_PAGES`; 0 before. Nothing here is limited by it. Guarded by `lock`.
    var requestedMMUPageCount: UInt = 0
    /// `KVM_X2APIC_API_USE_32BIT_IDS`.
    let hasExtendedAPICIDs = Atomic<Bool>(false)
    /// The size of each vCPU's dirty ring; 0 without them. Changes once, under `lock`, before there are vCPUs.
    let dirtyRingByteCount = Atomic<Int>(0)
    /// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`.
    let protectsLogManually = Atomic<Bool>(false)
    /// How often all vCPUs were asked to forget their translations.
    let flushRequestCount = Atomic<UInt64>(0)
    /// `KVM_CAP_EXCEPTION_PAYLOAD`.
    let reportsExceptionPayloads = Atomic<Bool>(false)
    let settings = MachineSettings()

    init(host: HostProcessor, mmu: MMUKind) throws(Errno) {
        self.host = host
        tscKilohertz = TSCFrequency.kilohertz
        clock = MachineClock(tscKilohertz: tscKilohertz)
        writes = try WriteBus()
        let cache = try TranslationCache()
        self.cache = cache
        self.mmu = mmu
        shadow = ShadowMMU(memory: memory, domain: domain, isGuarded: { cache.isMarked($0) })
        vcpus = try ReservedTable(maximumCount: Limits.vcpuCount, maximumID: UInt32(Limits.vcpuID))
    }

    /// Ends the machine's threads. Nothing happens by itself any more.
    /// > Concurrency: once, on none of them.
    func endThreads() {
        interruptEvents.stop()
        timers.stop()
    }

    /// nil while the client has the interrupt controllers.
    var router: InterruptRouter? { routerReference.load() }

    var pit: IntervalTimer? { pitReference.load() }

    var hasDirtyRings: Bool { dirtyRingByteCount.load(ordering: .relaxed) != 0 }

    // MARK: Creation

    /// The corresponding C request is `KVM_CREATE_IRQCHIP`.
    /// - Throws: `EEXIST` if there is one, `EINVAL` if there are vCPUs.
    func createIRQChip() throws(Errno) {
        try lock.withLock { () throws(Errno) in
            guard router == nil else { throw .fileExists }
            guard vcpus.count == 0 else { throw .invalidArgument }
            install(InterruptRouter(directory: self, model: .full))
        }
    }

    /// `KVM_CAP_SPLIT_IRQCHIP`: local APICs, while the client has the other controllers.
    ///
    /// - Parameter reservedPinCount: how many lines, from 0 on, are pins of the client's IOAPIC.
    /// - Throws: `EINVAL` for more pins than there can be routes, `EEXIST` if there are controllers or vCPUs.
    func createSplitIRQChip(reservedPinCount: UInt64) throws(Errno) {
        guard reservedPinCount <= Limits.gsiCount else { throw .invalidArgument }
        try lock.withLock { () throws(Errno) in
            guard router == nil, vcpus.count == 0 else { throw .fileExists }
            install(InterruptRouter(directory: self, model: .split, reservedPinCount: UInt32(reservedPinCount)))
        }
    }

    /// > Concurrency: `lock` is held.
    private func install(_ router: InterruptRouter) {
        x2APICAPI.configure(router.bus)
        _ = routerReference.storeIfNil(router)
    }

    /// `KVM_CAP_X2APIC_API`, before or after there are local APICs.
    /// - Throws: `EINVAL` for unknown flags.
    func enableX2APICAPI(_ flags: UInt64) throws(Errno) {
        let flags = X2APICAPIFlags(rawValue: flags)
        guard flags.isSubset(of: .all) else { throw .invalidArgument }
        lock.withLock {
            x2APICAPI.formUnion(flags)
            if flags.contains(.use32BitIDs) { hasExtendedAPICIDs.store(true, ordering: .relaxed) }
            if let bus = router?.bus { x2APICAPI.configure(bus) }
        }
    }

    /// The corresponding C requests are `KVM_CREATE_PIT` and `KVM_CREATE_PIT2`.
    /// - Throws: `EEXIST` if there is one, `ENOENT` without PICs.
    func createPIT(answersSpeakerPort: Bool) throws(Errno) {
        try lock.withLock { () throws(Errno) in
            guard pit == nil else { throw .fileExists }
            guard let router, router.pic != nil else { throw .noSuchFileOrDirectory }
            let timer = IntervalTimer(router: router, timers: timers, answersSpeakerPort: answersSpeakerPort)
            _ = pitReference.storeIfNil(timer)
        }
    }

    /// Builds a vCPU and publishes it, or plugs in one that was parked.
    ///
    /// - Throws: `EINVAL` if `id` or the count is too large, `EEXIST` if `id` is taken, `ENOMEM`, `EBUSY` if the parked vCPU is
    ///   in use. Nothing is published then.
    func createVCPU(id: UInt32) throws(Errno) -> UserspaceVCPU {
        guard id < Limits.vcpuID else { throw .invalidArgument }
        return try lock.withLock { () throws(Errno) in
            let limit = vcpuIDLimit ?? UInt32(Limits.vcpuID)
            vcpuIDLimit = limit
            guard id < limit else { throw .invalidArgument }
            if vcpus.find(id: id)?.isParked ?? false {
                return try vcpus.unpark(id: id) { (vcpu) throws(Errno) in
                    try vcpu.withIdleOwner { vcpu.plugIn(isBootstrapProcessor: id == bootVCPUID) }
                }
            }
            return try vcpus.append(id: id) { (index) throws(Errno) in
                try UserspaceVCPU(id: id, index: index, vm: self, isBootstrapProcessor: id == bootVCPUID)
            }
        }
    }

    /// Unplugs a vCPU: interrupts and requests no longer reach it, and it does not run.
    ///
    /// - Throws: `ENOENT` if there is none with that id or it is unplugged, `EBUSY` if it is in use, as a rule inside `KVM_RUN`.
    func parkVCPU(id: UInt) throws(Errno) {
        guard let id = UInt32(exactly: id) else { throw .noSuchFileOrDirectory }
        try lock.withLock { () throws(Errno) in
            guard let slot = vcpus.find(id: id), !slot.isParked, let vcpu = slot.element
            else { throw .noSuchFileOrDirectory }
            try vcpu.withIdleOwner { () throws(Errno) in
                try vcpus.park(id: id)
                vcpu.isParked = true
            }
        }
    }

    // MARK: Requests to all

    /// Makes every vCPU perform `requests` before it runs guest code again.
    /// > Concurrency: any thread that is not inside guest code, without locks that vCPUs take.
    func requestAll(_ requests: ProcessorRequests) {
        if requests.contains(.flushTLB) { flushRequestCount.add(1, ordering: .relaxed) }
        VCPURequests.request(requests, among: enumerateRequests)
    }

    /// The client may have written code: every vCPU compares it before it executes it again.
    /// > Concurrency: as ``requestAll(_:)``.
    func distrustCode() { requestAll(.dropJumpCache) }

    /// How many vCPUs execute guest code; counting ends at `limit`.
    /// > Concurrency: any thread. They may be others the next moment.
    func runningCount(limit: Int) -> Int {
        var count = 0
        vcpus.forEach { vcpu in
            if vcpu.requests.standsInside { count += 1 }
            return count < limit
        }
        return count
    }

    /// Calls `body` with the request state of each vCPU.
    func enumerateRequests(_ body: (VCPURequests) -> Void) {
        vcpus.forEach { vcpu in
            body(vcpu.requests)
            return true
        }
    }
}

extension UserspaceVM: LocalAPICDirectory {
    func withLocalAPIC(id: UInt32, _ body: (LocalAPIC) -> Void) {
        vcpus.withElement(id: id) { vcpu in
            if let apic = vcpu.apic { body(apic) }
        }
    }

    func forEachLocalAPIC(_ body: (LocalAPIC) -> Bool) {
        vcpus.forEach { vcpu in
            guard let apic = vcpu.apic else { return true }
            return body(apic)
        }
    }
}

/// The PIT with its timer.
final class IntervalTimer: Sendable {
    let pit: PIT
    let answersSpeakerPort: Bool

    init(router: InterruptRouter, timers: MachineTimers, answersSpeakerPort: Bool) {
        self.answersSpeakerPort = answersSpeakerPort
        let slot = DeferredSlot()
        pit = PIT(
            output: { router.setLine(0, level: $0, source: .timer) },
            armTimer: { deadline in
                if let slot = slot.slot.load() { timers.arm(slot, deadlineNanoseconds: deadline) }
            })
        let timerSlot = TimerSlot { [unowned pit] now in pit.service(now: now) }
        _ = slot.slot.storeIfNil(timerSlot)
        timers.add(timerSlot)
    }

    /// Whether the timer answers for `port`.
    func ownsPort(_ port: UInt16) -> Bool { PIT.ownsPort(port) && (port != 0x61 || answersSpeakerPort) }
}

/// Resolves the cycle between a timer and the slot that fires it.
private final class DeferredSlot: Sendable {
    let slot = AtomicLazyReference<TimerSlot>()
}
