import Interrupts
import Translator
import X86

extension UserspaceVCPU {
    /// The state after power-up.
    func powerUp(isBootstrapProcessor: Bool) {
        processor.reset()
        processor.state.fxsaveArea.storeBytes(of: 0x37F, as: UInt16.self)
        processor.system.tscOffset = vm.tscOffset
        processor.system.modelSpecific.amdHardwareConfiguration = 1 << 24
        if !vm.host.isAMD { processor.system.modelSpecific.architecturalCapabilities = ArchitecturalCapabilities.value }
        let waits = apic != nil && !isBootstrapProcessor
        processor.system.activity = waits ? .uninitialized : .running
    }

    /// Comes back after it was unplugged: as it was created, except for the ring of dirty pages, which is the client's too.
    /// > Concurrency: the owner, while nobody finds the vCPU.
    func plugIn(isBootstrapProcessor: Bool) {
        isParked = false
        cpuidTable = CPUIDTable()
        processor.cpuidDidChange()
        clientAPICBase = Self.initialAPICBase(isBootstrapProcessor: isBootstrapProcessor)
        paravirtualClock = ParavirtualClock()
        machineCheck = MachineCheck()
        hasPendingTripleFault = false
        enforcesParavirtualFeatures = false
        pollControl = 1
        stealTime = StealTime()
        taskPriorityPatching = TaskPriorityPatching()
        debuggerBlocksInterrupts = false
        processor.attach(DebuggerControl())
        clientTaskPriority = 0
        clientVector = nil
        endedVectors = VectorSet()
        pendingAccess = nil
        signalMask = nil
        hasRun = false
        isUnhalted = false
        startupVector = 0
        signals.store(0, ordering: .relaxed)
        // Behind that is the machine's ring.
        runArea.bytes[..<Limits.coalescedRingOffset].initializeMemory(as: UInt8.self, repeating: 0)
        apic?.unmasksLINT0 = quirks.contains(.unmaskedLINT0)
        apic?.assumeFeatures()
        apic?.resetForPowerUp()
        apic?.tscFrequencyKilohertz = vm.tscKilohertz
        // Forgets every translation, too: no request has reached it.
        powerUp(isBootstrapProcessor: isBootstrapProcessor)
    }

    /// The effect of INIT: as power-up, but caches, vector registers, model-specific registers and time go on.
    /// > Source: Intel SDM volume 3, table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT".
    func initialize() {
        let old = processor.system
        var fresh = SystemRegisters()
        let cacheBits = CR0.cacheDisable | CR0.notWriteThrough
        fresh.cr0 = old.cr0 & cacheBits | CR0.extensionType
        fresh.xcr0 = old.xcr0
        fresh.star = old.star
        fresh.lstar = old.lstar
        fresh.cstar = old.cstar
        fresh.syscallMask = old.syscallMask
        fresh.kernelGSBase = old.kernelGSBase
        fresh.sysenterCS = old.sysenterCS
        fresh.sysenterESP = old.sysenterESP
        fresh.sysenterEIP = old.sysenterEIP
        fresh.pat = old.pat
        fresh.tscAux = old.tscAux
        fresh.miscEnable = old.miscEnable
        fresh.tscOffset = old.tscOffset
        fresh.tscAdjust = old.tscAdjust
        fresh.modelSpecific = old.modelSpecific
        fresh.modelSpecific.systemManagementInterruptCount = 0
        fresh.systemManagement.base = old.systemManagement.base
        _ = takeSignal(.systemManagement)
        processor.system = fresh
        for register in GeneralRegister.allCases { processor.state[register] = 0 }
        startAtResetVector()
    }

    private func startAtResetVector() {
        let state = processor.state
        state.rip = 0xFFF0
        state.rflags = RFlags.reserved1
        state[.rdx] = UInt64(cpuidTable.find(1)?.eax ?? 0x600)
        for register in SegmentRegister.allCases { state.setSegmentBase(register, processor.system[register].base) }
        processor.modeDidChange()
        processor.flushTLB(.all)
    }

    /// The effect of SIPI on a processor that waits for it.
    func start(vector: UInt8) {
        var segment = Segment.realMode(selector: UInt16(vector) << 8, isCode: true)
        segment.base = UInt64(vector) << 12
        processor.system.cs = segment
        processor.state.setSegmentBase(.cs, segment.base)
        processor.state.rip = 0
        processor.system.activity = .running
        startupVector = vector
        processor.modeDidChange()
    }

    /// Takes INIT and SIPI.
    ///
    /// INIT makes the bootstrap processor start over and the others wait for SIPI; SIPI is lost on one that does not wait.
    /// In system management mode INIT waits for its end.
    /// > Concurrency: the owner, outside.
    func acceptStartupSignals() {
        guard let apic, apic.hasPendingSignals else { return }
        if processor.system.systemManagement.isActive {
            _ = apic.takeStartup()
            return
        }
        if apic.takeInitialize() {
            initialize()
            apic.unmasksLINT0 = quirks.contains(.unmaskedLINT0)
            apic.resetForInitialize()
            let isBootstrap = apic.base & APICBase.bootstrapProcessor != 0
            processor.system.activity = isBootstrap ? .running : .initReceived
        }
        if let vector = apic.takeStartup(), processor.system.activity == .initReceived { start(vector: vector) }
    }
}
