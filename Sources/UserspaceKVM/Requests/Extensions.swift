import CHost
import class GuestMemory.DirtyRing
import class Interrupts.InterruptBus
import KVMInterface
import Translator

/// What `KVM_CHECK_EXTENSION` answers: only what works here.
enum Extensions {
    static func answer(_ argument: UInt) -> Int {
        guard let number = UInt32(exactly: argument) else { return 0 }
        switch KVMCapability(rawValue: number) {
        case .irqChip, .hlt, .userMemory, .setTSSAddress, .extendedCPUID, .clockSource, .pit, .noIODelay, .mpState,
            .syncMMU, .destroyMemoryRegionWorks, .userNMI, .reinjectControl, .irqInjectStatus, .joinMemoryRegionsWorks,
            .pit2, .setBootCPUID, .pitState2, .setIdentityMapAddress, .internalErrorData, .vcpuEvents,
            .debugRegisters, .xsave, .xcrs, .getTSCFrequency, .tscDeadlineTimer, .kvmClockControl, .signalMSI,
            .readOnlyMemory, .ioapicPolarityIgnored, .enableCapabilityVM, .checkExtensionVM, .immediateExit,
            .getMSRFeatures, .exceptionPayload, .specialRegisters2, .binaryStatistics, .vcpuParking,
            .vcpuAttributes, .systemAttributes, .x86UserSpaceMSR, .x86MSRFilter, .msrPlatformInfo,
            .setGuestDebug, .x86SMM, .ioEvents, .ioEventNoLength, .ioEventAnyLength, .irqEvents, .irqEventResampling,
            .coalescedPIO, .splitIRQChip, .shadowCacheControl, .deviceControl,
            .disableQuirks, .x86TripleFaultEvent, .exitOnEmulationFailure, .haltPoll, .enableCapability,
            .enforceParavirtualFeatures, .taskPriorityPatching, .x86RobustSingleStep,
            .smallerPhysicalAddresses, .emulatedCPUID:
            return 1
        case .adjustClock: return Int(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
        case .disableQuirks2: return Int(ProcessorQuirks.all.rawValue)
        case .x86DisableExits: return Int(DisabledExits.supported)
        case .stealTime: return StealTime.isAvailable ? 1 : 0
        case .setGuestDebug2: return Int(UserspaceVCPU.debugControls)
        case .synchronizedRegisters: return Int(UserspaceVCPU.synchronizedRegisters)
        case .machineCheck: return MachineCheck.maximumBankCount
        case .multiAddressSpace: return 2
        case .coalescedMMIO: return Limits.coalescedRingOffset / 4096
        case .irqRouting: return Limits.gsiCount
        case .recommendedVCPUCount, .maximumVCPUCount: return Limits.vcpuCount
        case .maximumVCPUID: return Limits.vcpuID
        case .memorySlotCount: return Limits.userMemorySlotCount
        case .x2APICAPI: return Int(X2APICAPIFlags.all.rawValue)
        case .xsave2: return Limits.xsaveByteCount
        case .manualDirtyLogProtect:
            return Int(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)
        case .dirtyLogRing, .dirtyLogRingAcquireRelease:
            return DirtyRing.maximumCount * MemoryLayout<DirtyRing.Entry>.stride
        case .memoryRegionBatch: return Limits.memoryBatchCount
        default: return 0
        }
    }
}

/// The argument of `KVM_CAP_X2APIC_API`.
struct X2APICAPIFlags: OptionSet {
    let rawValue: UInt64

    static let use32BitIDs = Self(rawValue: 1 << 0)
    static let disableBroadcastQuirk = Self(rawValue: 1 << 1)
    static let all: Self = [.use32BitIDs, .disableBroadcastQuirk]

    /// Tells the bus, which never goes back.
    func configure(_ bus: InterruptBus) {
        if contains(.use32BitIDs) { bus.hasExtendedDestinations = true }
        if contains(.disableBroadcastQuirk) { bus.hasBroadcastQuirk = false }
    }
}
