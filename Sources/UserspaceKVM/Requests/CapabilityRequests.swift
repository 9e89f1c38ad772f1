import CHost
import KVMInterface
import SystemPackage
import Translator

// Capabilities that change what a machine does with its guest, and the filter of model-specific registers.

extension UserspaceVM {
    /// - Throws: `EINVAL` for a capability that cannot be enabled, or an argument that it does not have.
    func enableSetting(_ capability: KVMCapability, _ argument: UInt64) throws(Errno) {
        switch capability {
        case .x86UserSpaceMSR:
            let known = UInt64(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)
            guard argument & ~known == 0 else { throw .invalidArgument }
            settings.askedRefusals.store(UInt32(argument), ordering: .relaxed)
        case .msrPlatformInfo:
            settings.showsPlatformInformation.store(argument != 0, ordering: .relaxed)
        case .disableQuirks, .disableQuirks2:
            let isKnown = ProcessorQuirks.all.isSuperset(of: ProcessorQuirks(rawValue: argument))
            guard capability == .disableQuirks || isKnown else { throw .invalidArgument }
            settings.disabledQuirks.store(argument, ordering: .relaxed)
        case .x86TripleFaultEvent: settings.reportsTripleFaults.store(argument != 0, ordering: .relaxed)
        case .exitOnEmulationFailure:
            guard argument <= 1 else { throw .invalidArgument }
            settings.exitsOnEmulationFailure.store(argument != 0, ordering: .relaxed)
        case .x86DisableExits:
            // Nothing leaves guest code for these in any case.
            guard argument & ~DisabledExits.supported == 0 else { throw .invalidArgument }
        case .haltPoll:
            // A limit; no vCPU polls before it sleeps.
            guard argument <= UInt64(UInt32.max) else { throw .invalidArgument }
        case .maximumVCPUID: try setMaximumVCPUID(argument)
        default:
            throw .invalidArgument
        }
    }

    /// - Throws: `EINVAL` if it is too large, another one was set before, or there have been vCPUs.
    private func setMaximumVCPUID(_ limit: UInt64) throws(Errno) {
        guard limit <= UInt64(Limits.vcpuID) else { throw .invalidArgument }
        try lock.withLock { () throws(Errno) in
            guard vcpuIDLimit == nil || vcpuIDLimit == UInt32(limit) else { throw .invalidArgument }
            vcpuIDLimit = limit == 0 ? nil : UInt32(limit)
        }
    }

    /// The corresponding C request is `KVM_X86_SET_MSR_FILTER`.
    /// - Throws: as ``MSRFilter``.
    func setMSRFilter(at argument: UInt) throws(Errno) {
        settings.setFilter(try MSRFilter(at: argument))
    }

    // MARK: Time

    /// The guests' counters run at the host's rate: other frequencies are refused.
    /// - Throws: `EINVAL` if `kilohertz` is neither 0 nor within 250 parts per million of the host's.
    func checkTSCFrequency(kilohertz: UInt32) throws(Errno) {
        guard kilohertz != 0 else { return }
        let tolerance = tscKilohertz / 4000
        guard UInt64(kilohertz) >= tscKilohertz - tolerance, UInt64(kilohertz) <= tscKilohertz + tolerance
        else { throw .invalidArgument }
    }
}

/// The argument of `KVM_CAP_X86_DISABLE_EXITS`.
enum DisabledExits {
    private static let pause = UInt64(KVM_X86_DISABLE_EXITS_PAUSE)
    private static let processorStates: UInt64 = 1 << 3

    static let supported = pause | processorStates
}
