import CHost
import KVMInterface
import SystemPackage

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
        default:
            throw .invalidArgument
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
    func checkTSCFrequency(kilohertz: UInt) throws(Errno) {
        guard kilohertz != 0 else { return }
        let tolerance = tscKilohertz / 4000
        guard UInt64(kilohertz) >= tscKilohertz - tolerance, UInt64(kilohertz) <= tscKilohertz + tolerance
        else { throw .invalidArgument }
    }
}
