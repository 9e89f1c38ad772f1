import X86

// RDMSR and WRMSR, and the same for a client's `KVM_GET_MSRS` and `KVM_SET_MSRS`.

/// Who reads or writes a model-specific register.
public enum RegisterUser: Sendable {
    /// The guest's RDMSR or WRMSR.
    case guest
    /// The client (`KVM_GET_MSRS`, `KVM_SET_MSRS`), who may set what a guest can only read, and restores registers one by
    /// one, so that none may change another.
    case client
}

/// Why the core refuses a guest's access to a model-specific register. The raw values are those of `KVM_MSR_EXIT_REASON_…`.
public enum MSRRefusal: UInt32, Sendable {
    /// The register exists, and does not allow the access or the value.
    case invalid = 1
    /// There is no such register.
    case unknown = 2
    /// The client's filter denies the access.
    case filtered = 4
}

extension Processor {
    func executeReadMSR(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        let value = try readGuestMSR(UInt32(truncatingIfNeeded: state[.rcx]))
        state[.rax] = value & 0xFFFF_FFFF
        state[.rdx] = value >> 32
        advance(i)
    }

    func executeWriteMSR(_ i: DecodedInstruction) throws(GuestFault) {
        try requirePrivilege()
        let value = state[.rdx] << 32 | state[.rax] & 0xFFFF_FFFF
        try writeGuestMSR(UInt32(truncatingIfNeeded: state[.rcx]), value)
        advance(i)
    }

    private func readGuestMSR(_ index: UInt32) throws(GuestFault) -> UInt64 {
        if let answer = try clientAnswerToMSR() { return answer }
        guard platform.allowsMSR(index, isWrite: false) else {
            throw refusal(of: .msrRead(index: index, .filtered), .filtered)
        }
        if let value = findMSR(index, for: .guest) { return value }
        let reason: MSRRefusal = isKnownMSR(index) ? .invalid : .unknown
        throw refusal(of: .msrRead(index: index, reason), reason)
    }

    private func writeGuestMSR(_ index: UInt32, _ value: UInt64) throws(GuestFault) {
        if try clientAnswerToMSR() != nil { return }
        guard platform.allowsMSR(index, isWrite: true) else {
            throw refusal(of: .msrWrite(index: index, value: value, .filtered), .filtered)
        }
        do throws(GuestFault) {
            try writeMSR(index, value)
        } catch {
            guard error == .generalProtection() else { throw error }
            let reason: MSRRefusal = isKnownMSR(index) ? .invalid : .unknown
            throw refusal(of: .msrWrite(index: index, value: value, reason), reason)
        }
    }

    /// What the client has answered for the access of this instruction: the value, or #GP(0).
    private func clientAnswerToMSR() throws(GuestFault) -> UInt64? {
        guard let isRefused = clientAnswers.next() else { return nil }
        let value = clientAnswers.next() ?? 0
        if isRefused != 0 { throw .generalProtection() }
        return value
    }

    /// Asks the client, if it wants to be asked in such cases; otherwise #GP(0).
    private func refusal(of request: ClientRequest, _ reason: MSRRefusal) -> GuestFault {
        guard platform.asksClient(about: reason) else { return .generalProtection() }
        pendingClientRequest = request
        return .needsClient
    }

    /// Whether there is such a register, be it for the client, or in another state of the local APIC.
    private func isKnownMSR(_ index: UInt32) -> Bool {
        switch index {
        case MSR.predictionCommand, MSR.flushCommand, MSR.microcodeUpdate, MSR.amdPatchLoader, MSR.apicBase,
            MSR.tscDeadline, MSR.x2APICFirst...MSR.x2APICLast:
            true
        default: findMSR(index, for: .client) != nil
        }
    }

    /// The value of model-specific register `index`.
    ///
    /// - Throws: #GP(0) if there is no such register.
    public func readMSR(_ index: UInt32, by reader: RegisterUser = .guest) throws(GuestFault) -> UInt64 {
        guard let value = findMSR(index, for: reader) else { throw .generalProtection() }
        return value
    }

    private func findMSR(_ index: UInt32, for reader: RegisterUser) -> UInt64? {
        if let value = readSystemMSR(index) ?? readConfigurationMSR(index, reader) { return value }
        return system.modelSpecific.memoryTypes.read(index) ?? platform.readMSR(index, by: reader)
    }

    /// Registers with a place in ``SystemRegisters``.
    private func readSystemMSR(_ index: UInt32) -> UInt64? {
        switch index {
        case MSR.efer: system.efer
        case MSR.star: system.star
        case MSR.lstar: system.lstar
        case MSR.cstar: system.cstar
        case MSR.syscallMask: system.syscallMask
        case MSR.fsBase: system.fs.base
        case MSR.gsBase: system.gs.base
        case MSR.kernelGSBase: system.kernelGSBase
        case MSR.tscAux: system.tscAux
        case MSR.timeStampCounter: timeStamp
        case MSR.tscAdjust: system.tscAdjust
        case MSR.sysenterCS: system.sysenterCS
        case MSR.sysenterESP: system.sysenterESP
        case MSR.sysenterEIP: system.sysenterEIP
        case MSR.pageAttributeTable: system.pat
        case MSR.miscEnable: system.miscEnable
        default: nil
        }
    }

    /// Registers that describe the model, and those that are only stored.
    private func readConfigurationMSR(_ index: UInt32, _ reader: RegisterUser) -> UInt64? {
        switch index {
        case MSR.memoryTypeCapabilities: return MemoryTypeRanges.capabilities
        case MSR.microcodeRevision: return system.modelSpecific.microcodeRevision
        case MSR.platformInformation:
            return reader == .client || platform.showsPlatformInformation
                ? system.modelSpecific.platformInformation : nil
        case MSR.miscFeaturesEnable: return system.modelSpecific.miscFeaturesEnable
        case MSR.architecturalCapabilities: return system.modelSpecific.architecturalCapabilities
        case MSR.featureControl: return system.modelSpecific.featureControl
        case MSR.speculationControl: return system.modelSpecific.speculationControl
        case MSR.performanceCapabilities: return system.modelSpecific.performanceCapabilities
        case MSR.powerControl: return system.modelSpecific.powerControl
        case MSR.amdHardwareConfiguration: return system.modelSpecific.amdHardwareConfiguration
        case MSR.amdDecodeConfiguration: return system.modelSpecific.amdDecodeConfiguration
        case MSR.amdErrataCount: return system.modelSpecific.amdErrataCount
        case MSR.systemManagementInterruptCount: return system.modelSpecific.systemManagementInterruptCount
        case MSR.amdErrataStatus: return system.modelSpecific.amdErrataStatus
        // 100 MHz.
        case MSR.frontSideBusFrequency: return 3
        // What a processor without that cache control reports.
        case MSR.cacheControl3: return 0xBE70_2111
        // A time-stamp increment of 1000 and a clock multiplier of 4.
        case MSR.performanceStatus: return 4 << 40 | 1000
        case MSR.machineCheckAddressP5, MSR.machineCheckTypeP5: return 0
        default: return Self.isConstantZero(index) ? 0 : nil
        }
    }

    /// Registers that kernels read, and some write, without asking CPUID first.
    private static func isConstantZero(_ index: UInt32) -> Bool {
        switch index {
        case MSR.platformID, MSR.powerOnConfiguration, MSR.performanceControl, MSR.debugControl,
            MSR.lastBranchFrom...MSR.lastInterruptTo, MSR.powerUnit,
            MSR.supervisorState, MSR.amdPerformance0...MSR.amdPerformanceLast, MSR.amdSystemConfiguration,
            MSR.amdNorthbridgeConfiguration, MSR.amdInterruptPending, MSR.amdMMIOConfigurationBase,
            MSR.amdSMMAddress, MSR.amdSMMMask, MSR.amdHostSaveAddress, MSR.amdLoadStoreConfiguration,
            MSR.amdInstructionCacheConfiguration, MSR.amdDataCacheConfiguration, MSR.amdTableWalkConfiguration,
            MSR.amdBusConfiguration2, MSR.amdExecutionConfiguration:
            true
        default: false
        }
    }

    /// Writes model-specific register `index`.
    ///
    /// - Throws: #GP(0) if there is no such register, it cannot be written, or `value` is not valid for it.
    public func writeMSR(
        _ index: UInt32, _ value: UInt64, by writer: RegisterUser = .guest
    ) throws(GuestFault) {
        if try writeSystemMSR(index, value, writer) { return }
        if try writeConfigurationMSR(index, value, writer) { return }
        if system.modelSpecific.memoryTypes.read(index) != nil {
            let width = UInt8(platform.cpuid(function: 0x8000_0008, index: 0).eax & 0xFF)
            guard
                system.modelSpecific.memoryTypes.write(index, value, physicalAddressWidth: width == 0 ? 36 : width)
            else { throw .generalProtection() }
            return
        }
        if !platform.writeMSR(index, value, by: writer) { throw .generalProtection() }
    }

    /// Returns false if `index` is not one of these.
    private func writeSystemMSR(
        _ index: UInt32, _ value: UInt64, _ writer: RegisterUser
    ) throws(GuestFault) -> Bool {
        switch index {
        case MSR.efer: try setEFER(value)
        case MSR.star: system.star = value
        case MSR.lstar:
            try requireCanonical(value)
            system.lstar = value
        case MSR.cstar:
            try requireCanonical(value)
            system.cstar = value
        case MSR.syscallMask: system.syscallMask = value & 0xFFFF_FFFF
        case MSR.fsBase:
            try requireCanonical(value)
            system.fs.base = value
            state.setSegmentBase(.fs, value)
        case MSR.gsBase:
            try requireCanonical(value)
            system.gs.base = value
            state.setSegmentBase(.gs, value)
        case MSR.kernelGSBase:
            try requireCanonical(value)
            system.kernelGSBase = value
        case MSR.tscAux:
            guard value >> 32 == 0 else { throw .generalProtection() }
            system.tscAux = value
        case MSR.timeStampCounter:
            let change = value &- timeStamp
            system.tscOffset &+= change
            if writer == .guest { system.tscAdjust &+= change }
        case MSR.tscAdjust:
            if writer == .guest { system.tscOffset &+= value &- system.tscAdjust }
            system.tscAdjust = value
        case MSR.sysenterCS: system.sysenterCS = value
        // AMD's processors take any value, Intel's do not: as in KVM, guests of both find their way.
        case MSR.sysenterESP: system.sysenterESP = canonical(value)
        case MSR.sysenterEIP: system.sysenterEIP = canonical(value)
        case MSR.pageAttributeTable:
            guard PageAttributes.isValid(value) else { throw .generalProtection() }
            system.pat = value
        case MSR.miscEnable: try setMiscEnable(value, writer)
        default: return false
        }
        return true
    }

    private func setMiscEnable(_ value: UInt64, _ writer: RegisterUser) throws(GuestFault) {
        var value = value
        let change = system.miscEnable ^ value
        if writer == .guest {
            // What says that there is no branch trace and no sampling is fixed; the performance monitor's bit stays.
            try require(change & 0x1800 == 0)
            value ^= change & 1 << 7
        }
        // MONITOR needs SSE3 beside it in CPUID.
        if change >> 18 & 1 != 0, !platform.quirks.contains(.fixedMonitorBit) {
            try require(platform.cpuid(function: 1, index: 0).ecx & 1 != 0)
        }
        system.miscEnable = value
    }

    /// `address` with its upper bits made copies of the last one that counts.
    private func canonical(_ address: UInt64) -> UInt64 { UInt64(bitPattern: Int64(bitPattern: address << 16) >> 16) }

    private func requireCanonical(_ address: UInt64) throws(GuestFault) {
        if !isCanonical(address) { throw .generalProtection() }
    }

    /// Returns false if `index` is not one of these.
    private func writeConfigurationMSR(
        _ index: UInt32, _ value: UInt64, _ writer: RegisterUser
    ) throws(GuestFault) -> Bool {
        switch index {
        // The revision is written as 0 before it is read; updates are ignored.
        case MSR.microcodeRevision: if writer == .client { system.modelSpecific.microcodeRevision = value }
        case MSR.microcodeUpdate, MSR.amdPatchLoader: break
        case MSR.platformInformation:
            // CPUID faults for as long as the guest has it so.
            let keepsFaults = value >> 31 & 1 != 0 || system.modelSpecific.miscFeaturesEnable & 1 == 0
            try require(writer == .client && keepsFaults)
            system.modelSpecific.platformInformation = value
        case MSR.miscFeaturesEnable:
            let allowed = system.modelSpecific.platformInformation >> 31 & 1
            try require(value & ~allowed == 0)
            system.modelSpecific.miscFeaturesEnable = value
        case MSR.architecturalCapabilities:
            try require(writer == .client)
            system.modelSpecific.architecturalCapabilities = value
        case MSR.performanceCapabilities:
            try require(writer == .client)
            system.modelSpecific.performanceCapabilities = value
        case MSR.featureControl:
            // Bit 0 locks the register; nothing that the others enable exists.
            try require(writer == .client || system.modelSpecific.featureControl & 1 == 0 && value & ~1 == 0)
            system.modelSpecific.featureControl = value
        case MSR.speculationControl:
            // IBRS, STIBP and SSBD; the host decides about its own speculation.
            try require(value & ~7 == 0)
            system.modelSpecific.speculationControl = value
        case MSR.predictionCommand, MSR.flushCommand: try require(value & ~1 == 0)
        case MSR.powerControl: system.modelSpecific.powerControl = value
        case MSR.machineCheckAddressP5, MSR.machineCheckTypeP5: break
        case MSR.amdHardwareConfiguration:
            // Flush filter, TLB cache and interrupt-shadow controls are ignored; bit 18 lets the guest write what machine
            // check banks report, bit 24 says how fast the time stamp runs.
            let kept = value & ~0x148
            try require(kept & ~(1 << 18 | 1 << 24) == 0)
            system.modelSpecific.amdHardwareConfiguration = kept
        case MSR.amdDecodeConfiguration:
            try require(writer == .client || value & ~2 == 0)
            system.modelSpecific.amdDecodeConfiguration = value
        case MSR.amdErrataCount:
            try require(writer == .client)
            system.modelSpecific.amdErrataCount = value
        case MSR.amdErrataStatus:
            try require(writer == .client)
            system.modelSpecific.amdErrataStatus = value
        case MSR.systemManagementInterruptCount:
            try require(writer == .client)
            system.modelSpecific.systemManagementInterruptCount = value
        // Branch records and branch stepping do not exist.
        case MSR.debugControl: try require(value & ~3 == 0)
        case MSR.supervisorState, MSR.amdMMIOConfigurationBase: try require(value == 0)
        case MSR.memoryTypeCapabilities, MSR.lastBranchFrom...MSR.lastInterruptTo, MSR.amdSystemConfiguration,
            MSR.amdInterruptPending:
            throw .generalProtection()
        default: return Self.isConstantZero(index)
        }
        return true
    }

    private func require(_ condition: Bool) throws(GuestFault) {
        if !condition { throw .generalProtection() }
    }
}

/// The page-attribute table register.
package enum PageAttributes {
    /// Each byte is a memory type: 0, 1 or 4…7.
    package static func isValid(_ value: UInt64) -> Bool {
        // Bits 7–3 of each byte are 0, and bit 1 only comes with bit 2.
        let lacksReserved = value & 0xF8F8_F8F8_F8F8_F8F8 == 0
        return lacksReserved && (value >> 1 & ~(value >> 2)) & 0x0101_0101_0101_0101 == 0
    }
}
