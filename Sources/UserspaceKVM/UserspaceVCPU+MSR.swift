import CHost
import Host
import Interrupts
import Translator
import X86

/// Registers that keep what was written, and have no effect here.
struct StoredMSRs: Sendable {
    private var values: [UInt32: UInt64] = [:]

    /// Whether `index` is such a register.
    static func owns(_ index: UInt32) -> Bool {
        switch index {
        case MSR.speculationControl, MSR.miscFeatureEnables, MSR.machineCheckStatus, MSR.machineCheckControl,
            MSR.debugControl, MSR.mtrrVariable, MSR.mtrrFixed64K, MSR.mtrrFixed16K, MSR.mtrrFixed4K,
            MSR.mtrrDefaultType, MSR.machineCheckBanks, MSR.amdHardwareConfiguration, MSR.amdDecodeConfiguration,
            MSR.microcodeRevision, MSR.architectureCapabilities, MSR.platformInfo:
            true
        default: false
        }
    }

    subscript(index: UInt32) -> UInt64 {
        get { values[index] ?? Self.initialValue(index) }
        set { values[index] = newValue }
    }

    /// The value of a register that nobody wrote.
    static func initialValue(_ index: UInt32) -> UInt64 {
        switch index {
        case MSR.architectureCapabilities: ArchitectureCapabilities.value
        // LFENCE waits for all earlier instructions.
        case MSR.amdDecodeConfiguration: 1 << 1
        // The time-stamp counter counts at the frequency of P-state 0.
        case MSR.amdHardwareConfiguration: 1 << 24
        case MSR.microcodeRevision: 1 << 32
        case MSR.machineCheckControl: .max
        case MSR.machineCheckBanks where index & 3 == 0: .max
        default: 0
        }
    }

    /// Whether only clients may write `index`.
    static func isReadOnly(_ index: UInt32) -> Bool {
        index == MSR.architectureCapabilities || index == MSR.platformInfo
    }
}

extension UserspaceVCPU {
    /// How many machine-check banks the guest sees.
    private static let machineCheckBankCount: UInt64 = 32
    /// Eight variable ranges, fixed ranges, write-combining.
    private static let mtrrCapability: UInt64 = 8 | 1 << 8 | 1 << 10

    // MARK: Registers outside the processor

    /// Reads what ``Processor`` does not hold; nil means general protection.
    func readMSR(_ index: UInt32, isFromClient: Bool) -> UInt64? {
        if LocalAPIC.ownsMSR(index) {
            guard let apic else { return index == APICModelSpecificRegister.base ? clientAPICBase : nil }
            return apic.readMSR(index, now: now)
        }
        if index == MSR.architectureCapabilities, !isFromClient, !offersArchitectureCapabilities { return nil }
        if StoredMSRs.owns(index) { return storedMSRs[index] }
        switch index {
        case MSR.kvmSystemTime, MSR.kvmSystemTimeOld: return paravirtualClock.systemTime
        case MSR.kvmWallClock, MSR.kvmWallClockOld: return paravirtualClock.wallClock
        case MSR.mtrrCapability: return Self.mtrrCapability
        case MSR.machineCheckCapability: return Self.machineCheckBankCount | 1 << 8
        case MSR.platformID, MSR.amdSystemConfiguration, MSR.amdInterruptPending, MSR.amdMMIOConfiguration: return 0
        case MSR.amdClockControl: return 0x2000_0000
        // SVM is locked off.
        case MSR.amdVMControl: return 1 << 3 | 1 << 4
        default: return nil
        }
    }

    /// Writes what ``Processor`` does not hold; false means general protection.
    func writeMSR(_ index: UInt32, _ value: UInt64, isFromClient: Bool) -> Bool {
        if LocalAPIC.ownsMSR(index) { return writeAPICRegister(index, value, isFromClient: isFromClient) }
        if StoredMSRs.owns(index) {
            guard isFromClient || !StoredMSRs.isReadOnly(index) else { return false }
            // Updates of microcode are accepted and have no effect.
            if index == MSR.microcodeRevision, !isFromClient { return true }
            storedMSRs[index] = value
            return true
        }
        switch index {
        case MSR.kvmSystemTime, MSR.kvmSystemTimeOld:
            paravirtualClock.setSystemTime(value)
            if isFromClient { signal(.clockChanged) } else { writeParavirtualClock() }
            return true
        case MSR.kvmWallClock, MSR.kvmWallClockOld:
            paravirtualClock.setWallClock(value)
            if !isFromClient { writeWallClock(at: value) }
            return true
        case MSR.predictionCommand, MSR.flushCommand, MSR.amdClockControl, MSR.amdMMIOConfiguration,
            MSR.amdInterruptPending, MSR.amdVMControl:
            return true
        default:
            return false
        }
    }

    private func writeAPICRegister(_ index: UInt32, _ value: UInt64, isFromClient: Bool) -> Bool {
        guard let apic else {
            guard index == APICModelSpecificRegister.base else { return false }
            clientAPICBase = value
            return true
        }
        if index == APICModelSpecificRegister.base { return apic.setBase(value, isFromClient: isFromClient) }
        return apic.writeMSR(index, value, now: now)
    }

    private var offersArchitectureCapabilities: Bool { (cpuidTable.find(7)?.edx ?? 0) & 1 << 29 != 0 }

    // MARK: All registers, for the client

    /// `KVM_GET_MSRS`: nil if there is no such register.
    func readClientMSR(_ index: UInt32) -> UInt64? {
        let system = processor.system
        switch index {
        case MSR.tsc: return martlet_rdtsc() &+ system.tscOffset
        case MSR.tscAdjust: return system.tscAdjust
        case MSR.sysenterCS: return system.sysenterCS
        case MSR.sysenterESP: return system.sysenterESP
        case MSR.sysenterEIP: return system.sysenterEIP
        case MSR.miscEnable: return system.miscEnable
        case MSR.pat: return system.pat
        case MSR.efer: return system.efer
        case MSR.star: return system.star
        case MSR.lstar: return system.lstar
        case MSR.cstar: return system.cstar
        case MSR.syscallMask: return system.syscallMask
        case MSR.fsBase: return system.fs.base
        case MSR.gsBase: return system.gs.base
        case MSR.kernelGSBase: return system.kernelGSBase
        case MSR.tscAux: return system.tscAux
        default: return readMSR(index, isFromClient: true)
        }
    }

    /// `KVM_SET_MSRS`: false if there is no such register, or it does not take the value.
    func writeClientMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        switch index {
        case MSR.tsc: setTSC(value)
        case MSR.tscAdjust: processor.system.tscAdjust = value
        case MSR.sysenterCS: processor.system.sysenterCS = value
        case MSR.sysenterESP: return setCanonical(&processor.system.sysenterESP, value)
        case MSR.sysenterEIP: return setCanonical(&processor.system.sysenterEIP, value)
        case MSR.miscEnable: processor.system.miscEnable = value
        case MSR.pat:
            guard isValidPAT(value) else { return false }
            processor.system.pat = value
        case MSR.efer:
            let automaticIBRS: UInt64 = 1 << 21
            let known = EFER.syscall | EFER.longModeEnable | EFER.longModeActive | EFER.noExecute | automaticIBRS
            guard value & ~known == 0 else { return false }
            processor.system.efer = value
            processor.modeDidChange()
            processor.flushTLB(.all)
        case MSR.star: processor.system.star = value
        case MSR.lstar: return setCanonical(&processor.system.lstar, value)
        case MSR.cstar: return setCanonical(&processor.system.cstar, value)
        case MSR.syscallMask: processor.system.syscallMask = value
        case MSR.fsBase: return setSegmentBase(.fs, value)
        case MSR.gsBase: return setSegmentBase(.gs, value)
        case MSR.kernelGSBase: return setCanonical(&processor.system.kernelGSBase, value)
        case MSR.tscAux:
            guard value >> 32 == 0 else { return false }
            processor.system.tscAux = value
        default: return writeMSR(index, value, isFromClient: true)
        }
        return true
    }

    private func setCanonical(_ register: inout UInt64, _ value: UInt64) -> Bool {
        guard isCanonical(value) else { return false }
        register = value
        return true
    }

    private func setSegmentBase(_ segment: SegmentRegister, _ value: UInt64) -> Bool {
        guard isCanonical(value) else { return false }
        processor.system[segment].base = value
        processor.state.setSegmentBase(segment, value)
        processor.modeDidChange()
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
        apic?.rearmTimer(now: now)
        if paravirtualClock.isEnabled { signal(.clockChanged) }
    }
}

/// Bits 63–47 are equal.
func isCanonical(_ address: UInt64) -> Bool { Int64(bitPattern: address) << 16 >> 16 == Int64(bitPattern: address) }

/// Each byte is a memory type: 0, 1, 4, 5, 6 or 7.
func isValidPAT(_ value: UInt64) -> Bool {
    withUnsafeBytes(of: value) { bytes in bytes.allSatisfy { $0 <= 1 || (4...7).contains($0) } }
}
