import CHost
import Host
import Interrupts
import Translator
import X86

// Model-specific registers: those of the local APIC and of KVM's clocks, and the client's way to all of them.

/// Numbers of KVM's own registers.
///
/// > Source: Documentation/virt/kvm/x86/msr.rst.
enum ParavirtualMSR {
    static let wallClockOld: UInt32 = 0x11
    static let systemTimeOld: UInt32 = 0x12
    static let wallClock: UInt32 = 0x4B56_4D00
    static let systemTime: UInt32 = 0x4B56_4D01
    static let stealTime: UInt32 = 0x4B56_4D03
    static let pollControl: UInt32 = 0x4B56_4D05

    /// The bits of CPUID that tell of a register; 0 if it is none of these.
    static func feature(_ index: UInt32) -> UInt32 {
        switch index {
        case systemTimeOld, wallClockOld: ParavirtualFeature.clockSource
        case systemTime, wallClock: ParavirtualFeature.clockSource2
        case stealTime: ParavirtualFeature.stealTime
        case pollControl: ParavirtualFeature.pollControl
        default: 0
        }
    }
}

/// Which registers clients are told of.
enum MSRList {
    /// What state transfer carries, besides what other requests carry (`KVM_GET_MSR_INDEX_LIST`).
    static let saved: [UInt32] =
        [
            MSR.timeStampCounter, MSR.sysenterCS, MSR.sysenterESP, MSR.sysenterEIP, MSR.star, MSR.lstar, MSR.cstar,
            MSR.syscallMask, MSR.kernelGSBase, MSR.tscAux, MSR.pageAttributeTable, MSR.tscAdjust, MSR.tscDeadline,
            MSR.miscEnable, MSR.speculationControl, MSR.architecturalCapabilities, MSR.microcodeRevision,
            MSR.systemManagementBase, MSR.systemManagementInterruptCount, MSR.machineCheckStatus,
            MSR.machineCheckControl, MSR.platformInformation, MSR.miscFeaturesEnable,
            MSR.powerControl, MSR.featureControl, MSR.amdHardwareConfiguration, MSR.amdDecodeConfiguration,
            ParavirtualMSR.systemTimeOld, ParavirtualMSR.wallClockOld, ParavirtualMSR.systemTime,
            ParavirtualMSR.wallClock, ParavirtualMSR.stealTime, ParavirtualMSR.pollControl, MSR.memoryTypeDefault,
            MSR.fixedRange64K, MSR.fixedRange16K0,
            MSR.fixedRange16K1
        ] + Array(MSR.fixedRange4K0...MSR.fixedRange4KLast) + Array(MSR.variableRange0...MSR.variableRangeLast)

    /// What describes the processor rather than its state (`KVM_GET_MSR_FEATURE_INDEX_LIST`), with its value.
    static func features(of host: HostProcessor) -> [UInt32: UInt64] {
        var features = [
            MSR.microcodeRevision: ModelSpecificRegisters().microcodeRevision, MSR.performanceCapabilities: 0
        ]
        if host.isAMD {
            features[MSR.amdDecodeConfiguration] = ModelSpecificRegisters().amdDecodeConfiguration
        } else {
            features[MSR.architecturalCapabilities] = ArchitecturalCapabilities.value
        }
        return features
    }
}

/// Bits of IA32_ARCH_CAPABILITIES that say "not affected".
enum ArchitecturalCapabilities {
    /// No Meltdown, speculation control that stays on, no L1 flush at entry, no store bypass, no MDS, no page-size machine
    /// check, no TAA, no stale data in fill buffers (three kinds), no branch history injection, no post-barrier RSB, no
    /// gather sampling, no register file sampling, no indirect target selection.
    static let value: UInt64 =
        [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62].reduce(0) { $0 | 1 << UInt64($1) }
}

extension UserspaceVCPU {
    // MARK: Registers outside the processor

    func allowsMSR(_ index: UInt32, isWrite: Bool) -> Bool {
        // The registers of the local APIC belong to the core.
        if MSR.x2APICFirst...MSR.x2APICLast ~= index { return true }
        return vm.settings.allowsMSR(index, isWrite: isWrite)
    }

    func asksClient(about reason: MSRRefusal) -> Bool {
        vm.settings.askedRefusals.load(ordering: .relaxed) & reason.rawValue != 0
    }

    var showsPlatformInformation: Bool { vm.settings.showsPlatformInformation.load(ordering: .relaxed) }

    func readMSR(_ index: UInt32, by reader: RegisterUser) -> UInt64? {
        // As in KVM, the deadline is there, and 0, also where nothing counts towards it.
        if index == MSR.tscDeadline { return apic?.readMSR(index, now: now) ?? 0 }
        if LocalAPIC.ownsMSR(index) {
            guard let apic else { return readMSRWithoutAPIC(index) }
            return apic.readMSR(index, now: now)
        }
        if MachineCheck.ownsMSR(index) { return machineCheck.read(index, by: reader) }
        guard hasParavirtualRegister(index) else { return nil }
        switch index {
        case ParavirtualMSR.stealTime: return stealTime.register
        case ParavirtualMSR.pollControl: return pollControl
        case ParavirtualMSR.systemTime, ParavirtualMSR.systemTimeOld: return paravirtualClock.systemTime
        case ParavirtualMSR.wallClock, ParavirtualMSR.wallClockOld: return paravirtualClock.wallClock
        default: return nil
        }
    }

    func writeMSR(_ index: UInt32, _ value: UInt64, by writer: RegisterUser) -> Bool {
        if index == MSR.tscDeadline {
            defer { noticeInterrupts() }
            _ = apic?.writeMSR(index, value, now: now)
            return true
        }
        if LocalAPIC.ownsMSR(index) {
            guard let apic else { return writeMSRWithoutAPIC(index, value) }
            defer { noticeInterrupts() }
            return apic.writeMSR(index, value, now: now)
        }
        if MachineCheck.ownsMSR(index) {
            return machineCheck.write(
                index, value, by: writer,
                hardwareConfiguration: processor.system.modelSpecific.amdHardwareConfiguration)
        }
        guard hasParavirtualRegister(index) else { return false }
        switch index {
        case ParavirtualMSR.stealTime: return stealTime.setRegister(value)
        case ParavirtualMSR.pollControl:
            guard value <= 1 else { return false }
            pollControl = value
            return true
        case ParavirtualMSR.systemTime, ParavirtualMSR.systemTimeOld:
            paravirtualClock.setSystemTime(value)
            // Guest memory is written inside; a client's write takes effect with the next run.
            if requests.isInside { writeParavirtualClock() } else { signal(.clockChanged) }
            return true
        case ParavirtualMSR.wallClock, ParavirtualMSR.wallClockOld:
            paravirtualClock.setWallClock(value)
            if requests.isInside { writeWallClock(at: value) }
            return true
        default:
            return false
        }
    }

    /// The client has the local APIC: the base is a number like others, and the deadline timer, which the core cannot give the
    /// client, reads as off and ignores what is written.
    private func readMSRWithoutAPIC(_ index: UInt32) -> UInt64? {
        switch index {
        case MSR.apicBase: clientAPICBase
        case MSR.tscDeadline: 0
        default: nil
        }
    }

    private func writeMSRWithoutAPIC(_ index: UInt32, _ value: UInt64) -> Bool {
        index == MSR.apicBase ? setClientAPICBase(value) : index == MSR.tscDeadline
    }

    /// Whether CPUID allows one of KVM's own registers, where the client insists on that.
    private func hasParavirtualRegister(_ index: UInt32) -> Bool {
        guard enforcesParavirtualFeatures else { return true }
        let feature = ParavirtualMSR.feature(index)
        return feature == 0 || hasParavirtualFeature(feature)
    }

    // MARK: All registers, for the client

    /// `KVM_GET_MSRS`: nil if there is no such register.
    /// > Concurrency: the owner, outside.
    func readClientMSR(_ index: UInt32) -> UInt64? {
        // The guest reaches it in the save area only.
        if index == MSR.systemManagementBase { return processor.system.systemManagement.base }
        return try? processor.readMSR(index, by: .client)
    }

    /// `KVM_SET_MSRS`: false if there is no such register, or it does not take the value.
    /// > Concurrency: the owner, outside.
    func writeClientMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        switch index {
        case MSR.timeStampCounter:
            setTSC(value)
        case MSR.apicBase:
            guard let apic else { return writeMSR(index, value, by: .client) }
            return apic.setBase(value, isFromClient: true)
        case MSR.systemManagementBase:
            processor.system.systemManagement.base = value
        default:
            guard (try? processor.writeMSR(index, value, by: .client)) != nil else { return false }
            processor.modeDidChange()
            if index == MSR.efer { processor.flushTLB(.all) }
        }
        return true
    }

    /// Sets the time-stamp counter.
    ///
    /// Values that lie within a second of what the machine's counter shows, and 0, mean "in step with the others": clients
    /// write to one vCPU after the other, and the guest must not see a difference.
    private func setTSC(_ value: UInt64) {
        let host = martlet_rdtsc()
        vm.lock.lock()
        let distance = Int64(bitPattern: value &- (host &+ vm.tscOffset))
        let second = Int64(vm.tscKilohertz * 1000)
        if value != 0, distance > second || distance < -second { vm.tscOffset = value &- host }
        processor.system.tscOffset = vm.tscOffset
        vm.lock.unlock()
        tscDidChange()
    }

    /// Sets what the guest's counter is ahead of the host's, also for vCPUs that are created later.
    func setTSCOffset(_ offset: UInt64) {
        vm.lock.withLock { vm.tscOffset = offset }
        processor.system.tscOffset = offset
        tscDidChange()
    }

    private func tscDidChange() {
        apic?.rearmTimer(now: now)
        if paravirtualClock.isEnabled { signal(.clockChanged) }
    }
}
