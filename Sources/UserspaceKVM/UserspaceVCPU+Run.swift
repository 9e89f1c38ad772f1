import CHost
import Glibc
import Host
import Interrupts
import KVMInterface
import SystemPackage
import Translator
import X86

extension UserspaceVCPU {
    /// `KVM_RUN`: runs guest code until something needs the client.
    ///
    /// - Throws: `EINTR` for a signal or `immediate_exit`; `EFAULT` if guest memory could not be accessed; `ENXIO` if the vCPU
    ///   is unplugged.
    /// > Concurrency: the owner.
    func run() throws(Errno) -> Int32 {
        guard !isParked else { throw .noSuchAddressOrDevice }
        if !hasRun { ClientSignals.wrapHandlers() }
        hasRun = true
        tookHostSignal.store(false, ordering: .relaxed)
        martlet_set_thread_context(Unmanaged.passUnretained(self).toOpaque())
        defer { martlet_set_thread_context(nil) }
        if apic == nil { clientTaskPriority = UInt8(truncatingIfNeeded: runArea.run.pointee.cr8) & 0xF }
        defer { publishRunState() }
        try takeSynchronizedRegisters()
        // A client access is completed even if the client wants out: its answer must not be lost.
        answerPendingAccess()
        let isImmediate = runArea.immediateExit
        while true {
            let completes = processor.isCompletingAccess
            if !completes, mustReturn { throw interrupted(keepsReason: isImmediate) }
            acceptStartupSignals()
            if processor.system.activity != .running {
                try waitForActivity()
                continue
            }
            if !completes, describeTaskPriorityAccess() { return exit(KVM_EXIT_TPR_ACCESS) }
            if hasPendingTripleFault, !completes {
                hasPendingTripleFault = false
                return exit(KVM_EXIT_SHUTDOWN)
            }
            if let ring = processor.dirtyRing, ring.isFull, !completes { return exit(KVM_EXIT_DIRTY_RING_FULL) }
            if isInterruptWindowOpen { return exit(KVM_EXIT_IRQ_WINDOW_OPEN) }
            // With attention raised, the processor completes the access that was answered and no more.
            if completes, mustReturn || hasPendingNMI { processor.raiseAttention() } else { processor.clearAttention() }
            if signalMask != nil {
                vm.timers.arm(signalCheckSlot, deadlineNanoseconds: nextSignalCheck)
            }
            requests.enter()
            // Who asks for something from here on finds the vCPU inside and raises attention. What came before that, and
            // after the looks above, is found now.
            if isAskedToReturn || apic?.hasPendingInitialize == true { processor.raiseAttention() }
            // The clock is slow to read: between the timer thread's signals, now and then is enough.
            counters.entries.increment()
            if takeSignal(.timer) || counters.entries.value & 15 == 0 { serviceTimer() }
            if takeSignal(.clockChanged) { writeParavirtualClock() }
            if stealTime.isEnabled { recordStealTime() }
            injectEvents()
            let hasPriorityWord = taskPriorityPatching.wordAddress != 0
            if hasPriorityWord { storeTaskPriorityWord() }
            let result = processor.run()
            if hasPriorityWord { loadTaskPriorityWord() }
            if result == .emulationFailure { describeEmulationFailure() }
            requests.leave()
            if let outcome = try handle(result) { return outcome }
        }
    }

    /// What `KVM_RUN` does with the end of a stay in guest code.
    /// - Returns: the call's result if it ends now.
    private func handle(_ result: RunResult) throws(Errno) -> Int32? {
        switch result {
        case .attention:
            return nil
        case .needsClient(let request):
            pendingAccess = request
            describe(request)
            counters.exits.increment()
            if case .portOut(0x7E, _, _) = request, quirks.contains(.completedPort7E) { completeAtOnce() }
            return 0
        case .halted:
            processor.system.activity = apic == nil ? .running : .halted
            return apic == nil ? exit(KVM_EXIT_HLT) : nil
        case .shutdown:
            return exit(KVM_EXIT_SHUTDOWN)
        case .debug(let vector, let dr6):
            if apic == nil { processor.system.activity = .running }
            describeDebug(vector: vector, dr6: dr6)
            return exit(KVM_EXIT_DEBUG)
        case .hostMemory:
            throw .badAddress
        case .emulationFailure:
            if !vm.settings.exitsOnEmulationFailure.load(ordering: .relaxed) {
                if processor.system.pendingEvent == nil {
                    processor.system.pendingEvent = PendingEvent(.invalidOpcode)
                }
                if processor.system.cpl != 0 { return nil }
            }
            return exit(KVM_EXIT_INTERNAL_ERROR)
        }
    }

    /// Completes an instruction whose exit needs no answer, before the client sees it.
    private func completeAtOnce() {
        answerPendingAccess()
        requests.enter()
        processor.raiseAttention()
        _ = processor.run()
        requests.leave()
    }

    private func exit(_ reason: Int32) -> Int32 {
        counters.exits.increment()
        switch reason {
        case KVM_EXIT_HLT: counters.haltExits.increment()
        case KVM_EXIT_IRQ_WINDOW_OPEN: counters.interruptWindowExits.increment()
        case KVM_EXIT_DIRTY_RING_FULL: counters.dirtyRingExits.increment()
        default: break
        }
        runArea.run.pointee.exit_reason = UInt32(reason)
        return 0
    }

    // MARK: Interruption

    /// The client wants its thread back.
    private var mustReturn: Bool { isAskedToReturn || hasPendingHostSignal }

    private var isAskedToReturn: Bool { runArea.immediateExit || tookHostSignal.load(ordering: .relaxed) }

    /// A handler of the client is about to run on the owner's thread.
    /// > Concurrency: the owner's thread, in a signal handler.
    func didTakeHostSignal(_ signal: CInt) {
        // `KVM_SET_SIGNAL_MASK` would have kept it away until the call's end.
        if let mask = signalMask, mask >> UInt64(signal - 1) & 1 != 0 { return }
        // ORDERING: the full fence that `VCPURequests.kick` asks of its callers.
        tookHostSignal.store(true, ordering: .sequentiallyConsistent)
        requests.kick()
    }

    /// - Parameter keepsReason: the client only had its last exit completed; the run area goes on telling of that exit.
    private func interrupted(keepsReason: Bool = false) -> Errno {
        counters.exits.increment()
        counters.signalExits.increment()
        if !keepsReason { runArea.run.pointee.exit_reason = UInt32(KVM_EXIT_INTR) }
        return .interrupted
    }

    /// A signal is pending that the thread blocks and `KVM_SET_SIGNAL_MASK` lets through.
    private var hasPendingHostSignal: Bool {
        guard let mask = signalMask else { return false }
        var pending = sigset_t()
        guard sigpending(&pending) == 0 else { return false }
        return withUnsafeBytes(of: &pending) { $0.load(as: UInt64.self) } & ~mask != 0
    }

    // MARK: Not running

    /// How often a vCPU looks for signals that its thread blocks: they end neither guest code nor a sleep by themselves.
    private static let signalCheckNanoseconds: UInt64 = 10_000_000

    private var nextSignalCheck: UInt64 { MonotonicClock.nanoseconds() &+ Self.signalCheckNanoseconds }

    /// Sleeps until an event ends HLT or the wait for INIT or SIPI, or the client wants its thread back.
    private func waitForActivity() throws(Errno) {
        counters.halts.increment()
        var deadline = apic?.timerDeadlineNanoseconds
        if signalMask != nil {
            deadline = min(deadline ?? .max, nextSignalCheck)
        }
        let wasSignalled = requests.sleep(deadlineNanoseconds: deadline) { mustReturn || hasWakeEvent }
        if wasSignalled { throw interrupted() }
        serviceTimer()
        if processor.system.activity == .halted, hasWakeEvent {
            isUnhalted = false
            processor.system.activity = .running
        }
    }

    /// Something is there that changes what this vCPU does now.
    private var hasWakeEvent: Bool {
        guard let apic else { return true }
        if apic.hasPendingInitialize { return true }
        switch processor.system.activity {
        case .initReceived: return apic.pendingStartupVector != nil
        case .uninitialized: return false
        case .running, .startupReceived: return true
        case .halted: break
        }
        if apic.takeUnhalt() { isUnhalted = true }
        if isUnhalted || processor.system.pendingEvent != nil { return true }
        if apic.hasPendingNMI, !processor.system.nmiBlocked { return true }
        return processor.state.systemFlags & RFlags.interrupt != 0 && hasInterrupt
    }

    private func serviceTimer() {
        guard let apic, let deadline = apic.timerDeadlineNanoseconds else { return }
        let time = now
        if time.nanoseconds >= deadline { apic.serviceTimer(now: time) }
    }

    // MARK: Injection

    /// An external interrupt waits, from the local APIC or from the 8259.
    private var hasInterrupt: Bool {
        guard let apic else { return false }
        return apic.hasPendingInterrupt || hasExternalInterrupt(apic)
    }

    private func hasExternalInterrupt(_ apic: LocalAPIC) -> Bool {
        guard apic.acceptsExternalInterrupts, let pic = vm.router?.pic else { return false }
        return pic.isOutputAsserted
    }

    /// The client, which has the interrupt controllers, asked to be told when it can inject, and can.
    private var isInterruptWindowOpen: Bool {
        apic == nil && runArea.run.pointee.request_interrupt_window != 0 && processor.canAcceptInterrupt
    }

    /// Chooses the event the processor delivers first, or asks for the moment at which one could be: none is delivered
    /// before an access that the client has answered is complete.
    /// > Concurrency: the owner, inside.
    private func injectEvents() {
        if debuggerBlocksInterrupts {
            processor.wantsInterruptWindow = false
            return
        }
        if processor.system.pendingEvent == nil, !processor.system.nmiBlocked, !processor.isCompletingAccess, takeNMI()
        {
            processor.system.pendingEvent = PendingEvent(kind: .nonMaskableInterrupt, vector: 2)
            counters.nmiInjections.increment()
        }
        guard let apic else {
            processor.wantsInterruptWindow = runArea.run.pointee.request_interrupt_window != 0
            return
        }
        if hasInterrupt, processor.canAcceptInterrupt {
            let vector = hasExternalInterrupt(apic) ? vm.router?.pic?.acknowledge() : apic.acknowledge()
            if let vector {
                processor.system.pendingEvent = PendingEvent(kind: .externalInterrupt, vector: vector)
                counters.interruptInjections.increment()
            }
        }
        processor.wantsInterruptWindow = hasInterrupt
    }

    private func takeNMI() -> Bool {
        if let apic, apic.hasPendingNMI { return apic.takeNMI() }
        return takeSignal(.nmi)
    }
}
