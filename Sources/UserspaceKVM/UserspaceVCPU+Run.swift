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
        // Locals, so that the loop counts no references.
        guard let processor, let requests else { throw .noSuchAddressOrDevice }
        if !hasWrappedHandlers { ClientSignals.activate() }
        hasWrappedHandlers = true
        processor.reportsEmulationFailures = vm.settings.exitsOnEmulationFailure.load(ordering: .relaxed)
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
            if !completes, let vector = endedVectors.highest { return exitForEnd(of: vector) }
            if isInterruptWindowOpen { return exit(KVM_EXIT_IRQ_WINDOW_OPEN) }
            if processor.system.activity != .running {
                // Also with an answered access, which waits: the client has changed the activity since.
                if mustReturn { throw interrupted(keepsReason: isImmediate) }
                try waitForActivity()
                continue
            }
            if !completes, describeTaskPriorityAccess() { return exit(KVM_EXIT_TPR_ACCESS) }
            if !completes, takeLoweredTaskPriority() { return exit(KVM_EXIT_SET_TPR) }
            if hasPendingTripleFault, !completes {
                hasPendingTripleFault = false
                return exit(KVM_EXIT_SHUTDOWN)
            }
            let isRingFull = processor.dirtyRing?.isFull ?? false
            if isRingFull, !completes { return exit(KVM_EXIT_DIRTY_RING_FULL) }
            // With attention raised, the processor completes the access that was answered and no more.
            if completes, mustReturn || hasPendingNMI || isRingFull {
                processor.raiseAttention()
            } else {
                processor.clearAttention()
            }
            requests.enter()
            // Who asks for something from here on finds the vCPU inside and raises attention. What came before that, and
            // after the looks above, is found now.
            if mustReturn || hasAcceptableInitialize { processor.raiseAttention() }
            // The clock is slow to read: between the timer thread's signals, now and then is enough.
            hasRun = true
            counters.entries.increment()
            if takeSignal(.timer) || counters.entries.value & 15 == 0 { serviceTimer() }
            if takeSignal(.clockChanged) { writeParavirtualClock() }
            if stealTime.isEnabled { recordStealTime() }
            do throws(Errno) {
                try injectEvents()
            } catch {
                requests.leave()
                throw error
            }
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

    /// Tells the client's IOAPIC of the end of an interrupt.
    private func exitForEnd(of vector: UInt8) -> Int32 {
        endedVectors.remove(vector)
        runArea.run.pointee.eoi.vector = vector
        return exit(KVM_EXIT_IOAPIC_EOI)
    }

    // MARK: Interruption

    /// ``run()`` with the signals that `KVM_SET_SIGNAL_MASK` asks for, on the thread that its signals are to end.
    ///
    /// > Concurrency: as `run()`, inside the core (``ClientSignals``).
    func runWithHostSignals() -> Result<Int32, Errno> {
        tookHostSignal.store(false, ordering: .relaxed)
        martlet_set_thread_context(Unmanaged.passUnretained(self).toOpaque())
        defer { martlet_set_thread_context(nil) }
        guard let signalMask else {
            // Those that came on the way here end the call, too.
            if martlet_get_deferred_signals() != 0 { tookHostSignal.store(true, ordering: .relaxed) }
            return Result(catching: run)
        }
        // Nothing comes between the look at the mask and that at what was put off.
        let mask = SignalMask.replace(SignalMask.all)
        let deferred = martlet_get_deferred_signals()
        _ = SignalMask.replace(signalMask)
        let result = Result(catching: run)
        _ = SignalMask.replace(mask)
        // Signals that the client itself keeps blocked stay pending.
        martlet_forget_deferred_signals(mask & ~deferred)
        return result
    }

    /// The client wants its thread back.
    private var mustReturn: Bool {
        runArea.immediateExit || tookHostSignal.load(ordering: .relaxed) || hasSignal(.interrupt)
    }

    /// A signal of the client reached the owner's thread.
    /// > Concurrency: the owner's thread, in a signal handler.
    func didTakeHostSignal() {
        // ORDERING: the full fence that `VCPURequests.kick` asks of its callers.
        tookHostSignal.store(true, ordering: .sequentiallyConsistent)
        requests.kick()
    }

    /// - Parameter keepsReason: the client only had its last exit completed; the run area goes on telling of that exit.
    private func interrupted(keepsReason: Bool = false) -> Errno {
        _ = takeSignal(.interrupt)
        counters.exits.increment()
        counters.signalExits.increment()
        if !keepsReason { runArea.run.pointee.exit_reason = UInt32(KVM_EXIT_INTR) }
        return .interrupted
    }

    // MARK: Not running

    /// Sleeps until an event ends HLT or the wait for INIT or SIPI, or the client wants its thread back.
    private func waitForActivity() throws(Errno) {
        counters.halts.increment()
        let deadline = apic?.timerDeadlineNanoseconds
        let wasSignalled = requests.sleep(deadlineNanoseconds: deadline) { mustReturn || hasWakeEvent }
        if wasSignalled { throw interrupted() }
        serviceTimer()
        guard isHalted, hasWakeEvent else { return }
        if !hasOrdinaryWakeEvent {
            // Nothing but a system management interrupt: its handler leads back into HLT.
            requests.enter()
            defer { requests.leave() }
            try takeSystemManagementInterrupt(fromHalt: true)
        }
        isUnhalted = false
        processor.system.activity = .running
    }

    private var isHalted: Bool {
        processor.system.activity == .halted || processor.system.activity == .resetHold
    }

    /// An INIT waits, and not for the end of system management mode.
    private var hasAcceptableInitialize: Bool {
        apic?.hasPendingInitialize == true && !processor.system.systemManagement.isActive
    }

    /// Something is there that changes what this vCPU does now.
    private var hasWakeEvent: Bool {
        if hasOrdinaryWakeEvent { return true }
        return isHalted && hasSignal(.systemManagement)
            && processor.canAcceptSystemManagementInterrupt
    }

    /// As ``hasWakeEvent``, without system management interrupts.
    private var hasOrdinaryWakeEvent: Bool {
        guard let apic else { return true }
        if hasAcceptableInitialize { return true }
        switch processor.system.activity {
        case .initReceived: return apic.pendingStartupVector != nil
        case .uninitialized: return false
        case .running, .startupReceived: return true
        case .halted, .resetHold: break
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

    /// An external interrupt waits, from the local APIC or from an 8259.
    private var hasInterrupt: Bool {
        guard let apic else { return false }
        return apic.hasPendingInterrupt || hasExternalInterrupt(apic)
    }

    private func hasExternalInterrupt(_ apic: LocalAPIC) -> Bool {
        guard apic.acceptsExternalInterrupts else { return false }
        return clientVector != nil || router?.pic?.isOutputAsserted ?? false
    }

    /// The vector of the 8259, the core's or the client's.
    private func takeExternalVector() -> UInt8? {
        guard let vector = clientVector else { return router?.pic?.acknowledge() }
        clientVector = nil
        return vector
    }

    /// `KVM_INTERRUPT` has a place for a vector, and the processor will look there.
    private var acceptsClientVector: Bool {
        guard let apic else { return true }
        return router?.pic == nil && clientVector == nil && apic.acceptsExternalInterrupts
    }

    /// An interrupt that the client injects would be taken at once.
    var isReadyForInjection: Bool { processor.canAcceptInterrupt && acceptsClientVector }

    /// The client asks to be told when it can inject.
    private var wantsClientWindow: Bool {
        runArea.run.pointee.request_interrupt_window != 0 && acceptsClientVector
    }

    private var isInterruptWindowOpen: Bool { wantsClientWindow && processor.canAcceptInterrupt }

    /// Chooses the event the processor delivers first, or asks for the moment at which one could be: none is delivered
    /// before an access that the client has answered is complete.
    /// > Concurrency: the owner, inside.
    @inline(never)
    private func injectEvents() throws(Errno) {
        if debuggerBlocksInterrupts {
            processor.wantsInterruptWindow = false
            return
        }
        if hasSignal(.systemManagement) { try acceptSystemManagementInterrupt() }
        if processor.system.pendingEvent == nil, !processor.system.nmiBlocked, !processor.isCompletingAccess, takeNMI()
        {
            processor.system.pendingEvent = PendingEvent(kind: .nonMaskableInterrupt, vector: 2)
            counters.nmiInjections.increment()
        }
        guard let apic else {
            processor.wantsInterruptWindow = wantsClientWindow
            return
        }
        if hasInterrupt, processor.canAcceptInterrupt {
            let vector = hasExternalInterrupt(apic) ? takeExternalVector() : apic.acknowledge()
            if let vector {
                processor.system.pendingEvent = PendingEvent(kind: .externalInterrupt, vector: vector)
                counters.interruptInjections.increment()
            }
        }
        processor.wantsInterruptWindow = hasInterrupt || wantsClientWindow
    }

    /// Enters system management mode, or has the processor come back as soon as it can.
    private func acceptSystemManagementInterrupt() throws(Errno) {
        // The end of the mode raises attention.
        if processor.system.systemManagement.isActive { return }
        if processor.canAcceptSystemManagementInterrupt {
            try takeSystemManagementInterrupt(fromHalt: false)
        } else {
            processor.raiseAttention()
        }
    }

    /// - Throws: `EFAULT` if the state cannot be saved; the interrupt goes on waiting.
    @inline(never)
    private func takeSystemManagementInterrupt(fromHalt isHalted: Bool) throws(Errno) {
        _ = takeSignal(.systemManagement)
        do throws(GuestFault) {
            try processor.enterSystemManagement(fromHalt: isHalted)
        } catch {
            signal(.systemManagement)
            throw .badAddress
        }
    }

    private func takeNMI() -> Bool {
        if let apic, apic.hasPendingNMI { return apic.takeNMI() }
        return takeSignal(.nmi)
    }
}
