import Host
import KVMInterface
import Synchronization
import Translator

/// What a client chose for a machine by `KVM_ENABLE_CAP` and the like.
///
/// > Concurrency: changed by requests to the machine, read by vCPUs that run; each setting stands for itself.
final class MachineSettings: Sendable {
    /// `KVM_CAP_X86_USER_SPACE_MSR`: the raw values of the refusals that the client is asked about.
    let askedRefusals = Atomic<UInt32>(0)
    /// `KVM_CAP_MSR_PLATFORM_INFO`.
    let showsPlatformInformation = Atomic<Bool>(true)

    /// The raw values of the quirks that the client turned off.
    let disabledQuirks = Atomic<UInt64>(0)
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT`.
    let reportsTripleFaults = Atomic<Bool>(false)
    /// `KVM_CAP_EXIT_ON_EMULATION_FAILURE`.
    let exitsOnEmulationFailure = Atomic<Bool>(false)

    var quirks: ProcessorQuirks {
        ProcessorQuirks.all.subtracting(ProcessorQuirks(rawValue: disabledQuirks.load(ordering: .relaxed)))
    }

    /// Whether there is a filter: without one nobody takes its lock.
    private let hasFilter = Atomic<Bool>(false)
    private let filter = Locked<MSRFilter?>(nil)

    func setFilter(_ new: MSRFilter) {
        filter.withLock { $0 = new }
        // ORDERING: release pairs with the acquire in `allowsMSR`.
        hasFilter.store(true, ordering: .releasing)
    }

    func allowsMSR(_ index: UInt32, isWrite: Bool) -> Bool {
        // ORDERING: acquire pairs with the release in `setFilter`.
        guard hasFilter.load(ordering: .acquiring) else { return true }
        return filter.withLock { $0?.allows(index, isWrite: isWrite) ?? true }
    }
}
