/// An extension of KVM that `KVM_CHECK_EXTENSION` can be asked for.
///
/// > Source: `linux/kvm.h`; Documentation/virt/kvm/api.rst.
public struct KVMCapability: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let irqChip = Self(rawValue: 0)
    public static let hlt = Self(rawValue: 1)
    /// `KVM_CAP_MMU_SHADOW_CACHE_CONTROL`.
    public static let shadowCacheControl = Self(rawValue: 2)
    public static let userMemory = Self(rawValue: 3)
    public static let setTSSAddress = Self(rawValue: 4)
    public static let taskPriorityPatching = Self(rawValue: 6)
    public static let extendedCPUID = Self(rawValue: 7)
    public static let clockSource = Self(rawValue: 8)
    /// The answer is the recommended number of vCPUs.
    public static let recommendedVCPUCount = Self(rawValue: 9)
    public static let memorySlotCount = Self(rawValue: 10)
    public static let pit = Self(rawValue: 11)
    public static let noIODelay = Self(rawValue: 12)
    public static let mpState = Self(rawValue: 14)
    /// The answer is the number of the run area's page with the ring.
    public static let coalescedMMIO = Self(rawValue: 15)
    public static let syncMMU = Self(rawValue: 16)
    public static let destroyMemoryRegionWorks = Self(rawValue: 21)
    public static let userNMI = Self(rawValue: 22)
    public static let setGuestDebug = Self(rawValue: 23)
    public static let reinjectControl = Self(rawValue: 24)
    public static let irqRouting = Self(rawValue: 25)
    public static let irqInjectStatus = Self(rawValue: 26)
    public static let joinMemoryRegionsWorks = Self(rawValue: 30)
    public static let irqEvents = Self(rawValue: 32)
    public static let pit2 = Self(rawValue: 33)
    public static let setBootCPUID = Self(rawValue: 34)
    public static let pitState2 = Self(rawValue: 35)
    public static let ioEvents = Self(rawValue: 36)
    public static let setIdentityMapAddress = Self(rawValue: 37)
    public static let adjustClock = Self(rawValue: 39)
    public static let internalErrorData = Self(rawValue: 40)
    public static let vcpuEvents = Self(rawValue: 41)
    /// The answer is the number of machine-check banks.
    public static let machineCheck = Self(rawValue: 31)
    public static let interruptShadow = Self(rawValue: 49)
    public static let debugRegisters = Self(rawValue: 50)
    public static let x86RobustSingleStep = Self(rawValue: 51)
    public static let enableCapability = Self(rawValue: 54)
    public static let xsave = Self(rawValue: 55)
    public static let xcrs = Self(rawValue: 56)
    public static let tscControl = Self(rawValue: 60)
    public static let getTSCFrequency = Self(rawValue: 61)
    /// The answer is the largest number of vCPUs.
    public static let maximumVCPUCount = Self(rawValue: 66)
    public static let tscDeadlineTimer = Self(rawValue: 72)
    /// The answer is which register sets travel in the run area.
    public static let synchronizedRegisters = Self(rawValue: 74)
    public static let kvmClockControl = Self(rawValue: 76)
    public static let signalMSI = Self(rawValue: 77)
    public static let readOnlyMemory = Self(rawValue: 81)
    public static let irqEventResampling = Self(rawValue: 82)
    /// `KVM_CAP_DEVICE_CTRL`.
    public static let deviceControl = Self(rawValue: 89)
    /// `KVM_CAP_EXT_EMUL_CPUID`.
    public static let emulatedCPUID = Self(rawValue: 95)
    public static let ioapicPolarityIgnored = Self(rawValue: 97)
    public static let enableCapabilityVM = Self(rawValue: 98)
    /// `KVM_CAP_IOEVENTFD_NO_LENGTH`.
    public static let ioEventNoLength = Self(rawValue: 100)
    public static let checkExtensionVM = Self(rawValue: 105)
    public static let disableQuirks = Self(rawValue: 116)
    public static let x86SMM = Self(rawValue: 117)
    /// The answer is the number of address spaces of memory slots.
    public static let multiAddressSpace = Self(rawValue: 118)
    public static let splitIRQChip = Self(rawValue: 121)
    /// `KVM_CAP_IOEVENTFD_ANY_LENGTH`.
    public static let ioEventAnyLength = Self(rawValue: 122)
    public static let vcpuAttributes = Self(rawValue: 127)
    /// The answer is the first vCPU id that is too large.
    public static let maximumVCPUID = Self(rawValue: 128)
    public static let x2APICAPI = Self(rawValue: 129)
    /// The answer is which exits `KVM_ENABLE_CAP` can turn off.
    public static let x86DisableExits = Self(rawValue: 143)
    public static let immediateExit = Self(rawValue: 136)
    public static let getMSRFeatures = Self(rawValue: 153)
    public static let msrPlatformInfo = Self(rawValue: 159)
    public static let coalescedPIO = Self(rawValue: 162)
    public static let exceptionPayload = Self(rawValue: 164)
    /// The answer is which of the flags `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE` and `KVM_DIRTY_LOG_INITIALLY_SET` can be enabled.
    public static let manualDirtyLogProtect = Self(rawValue: 168)
    public static let haltPoll = Self(rawValue: 182)
    public static let stealTime = Self(rawValue: 187)
    public static let x86UserSpaceMSR = Self(rawValue: 188)
    public static let x86MSRFilter = Self(rawValue: 189)
    public static let enforceParavirtualFeatures = Self(rawValue: 190)
    /// The answer is the largest size in bytes.
    public static let dirtyLogRing = Self(rawValue: 192)
    public static let dirtyLogRingAcquireRelease = Self(rawValue: 223)
    /// The answer is which controls `KVM_SET_GUEST_DEBUG` knows.
    public static let setGuestDebug2 = Self(rawValue: 195)
    public static let specialRegisters2 = Self(rawValue: 200)
    public static let binaryStatistics = Self(rawValue: 203)
    /// `KVM_CAP_SMALLER_MAXPHYADDR`.
    public static let smallerPhysicalAddresses = Self(rawValue: 185)
    public static let exitOnEmulationFailure = Self(rawValue: 204)
    public static let systemAttributes = Self(rawValue: 209)
    /// The answer is the size of the XSAVE image in bytes.
    public static let xsave2 = Self(rawValue: 208)
    public static let disableQuirks2 = Self(rawValue: 213)
    public static let vmTSCControl = Self(rawValue: 214)
    public static let x86TripleFaultEvent = Self(rawValue: 218)

    // MARK: Martlet's own, far from the numbers that Linux gives out

    /// ``KVMRequest/setUserMemoryRegions`` exists; the answer is the greatest number of changes of one call.
    public static let memoryRegionBatch = Self(rawValue: 0x4D54_0001)
    /// ``KVMRequest/parkVCPU`` exists.
    public static let vcpuParking = Self(rawValue: 0x4D54_0002)
}
