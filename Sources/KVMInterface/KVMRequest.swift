/// The `ioctl` requests of KVM on x86-64, by their numbers.
///
/// Clients pass numbers on; a backend answers those it does not know with `ENOTTY`.
/// > Source: `linux/kvm.h`; Documentation/virt/kvm/api.rst, section 4.
public enum KVMRequest: UInt32, CaseIterable, Sendable {
    // To the system descriptor.
    case getAPIVersion = 0x0000_AE00
    case createVM = 0x0000_AE01
    case getMSRIndexList = 0xC004_AE02
    /// Also to a virtual machine.
    case checkExtension = 0x0000_AE03
    case getVCPUMapSize = 0x0000_AE04
    case getSupportedCPUID = 0xC008_AE05
    case getEmulatedCPUID = 0xC008_AE09
    case getMSRFeatureIndexList = 0xC004_AE0A
    case getMachineCheckCapabilities = 0x8008_AE9D
    /// Also to a virtual CPU, as is ``hasDeviceAttribute``.
    case getDeviceAttribute = 0x4018_AEE2
    case hasDeviceAttribute = 0x4018_AEE3

    // To a virtual machine.
    case createVCPU = 0x0000_AE41
    case getDirtyLog = 0x4010_AE42
    case clearDirtyLog = 0xC018_AEC0
    case resetDirtyRings = 0x0000_AEC7
    case setUserMemoryRegion = 0x4020_AE46
    case setTSSAddress = 0x0000_AE47
    case setIdentityMapAddress = 0x4008_AE48
    case createIRQChip = 0x0000_AE60
    case irqLine = 0x4008_AE61
    case irqLineStatus = 0xC008_AE67
    case getIRQChip = 0xC208_AE62
    case setIRQChip = 0x8208_AE63
    case createPIT = 0x0000_AE64
    case createPIT2 = 0x4040_AE77
    case getPIT2 = 0x8070_AE9F
    case setPIT2 = 0x4070_AEA0
    case reinjectControl = 0x0000_AE71
    case setGSIRouting = 0x4008_AE6A
    case signalMSI = 0x4020_AEA5
    case setBootCPUID = 0x0000_AE78
    case setClock = 0x4030_AE7B
    case getClock = 0x8030_AE7C
    /// Also to a virtual CPU.
    case enableCapability = 0x4068_AEA3
    case setShadowPageCount = 0x0000_AE44
    case getShadowPageCount = 0x0000_AE45
    case setMSRFilter = 0x4188_AEC6

    /// Also to a virtual CPU.
    case getStatisticsDescriptor = 0x0000_AECE

    // To a virtual machine; Martlet's own.

    /// Several changes of memory slots as one; see ``MemoryBatch``.
    case setUserMemoryRegions = 0x4008_AEF0
    /// Unplugs the virtual CPU whose id is the argument.
    case parkVCPU = 0x0000_AEF1

    // To a virtual CPU.
    case run = 0x0000_AE80
    case getRegisters = 0x8090_AE81
    case setRegisters = 0x4090_AE82
    case getSpecialRegisters = 0x8138_AE83
    case setSpecialRegisters = 0x4138_AE84
    case getSpecialRegisters2 = 0x8140_AECC
    case setSpecialRegisters2 = 0x4140_AECD
    case interrupt = 0x4004_AE86
    /// To the system descriptor: feature registers.
    case getMSRs = 0xC008_AE88
    case setMSRs = 0x4008_AE89
    case setSignalMask = 0x4004_AE8B
    case getFloatingPoint = 0x81A0_AE8C
    case setFloatingPoint = 0x41A0_AE8D
    case getLocalAPIC = 0x8400_AE8E
    case setLocalAPIC = 0x4400_AE8F
    case translate = 0xC018_AE85
    case setCPUID = 0x4008_AE8A
    case setCPUID2 = 0x4008_AE90
    case getCPUID2 = 0xC008_AE91
    case getMPState = 0x8004_AE98
    case setMPState = 0x4004_AE99
    case nmi = 0x0000_AE9A
    case getEvents = 0x8040_AE9F
    case setEvents = 0x4040_AEA0
    case getDebugRegisters = 0x8080_AEA1
    case setDebugRegisters = 0x4080_AEA2
    case getXSave = 0x9000_AEA4
    case setXSave = 0x5000_AEA5
    case getXSave2 = 0x9000_AECF
    case getXCRs = 0x8188_AEA6
    case setXCRs = 0x4188_AEA7
    case setTaskPriorityReporting = 0xC028_AE92
    case setTaskPriorityWord = 0x4008_AE93
    case setGuestDebug = 0x4048_AE9B
    case setDeviceAttribute = 0x4018_AEE1
    case setUpMachineCheck = 0x4008_AE9C
    case setMachineCheck = 0x4040_AE9E
    /// Also to a virtual machine, as is ``getTSCFrequency``.
    case setTSCFrequency = 0x0000_AEA2
    case getTSCFrequency = 0x0000_AEA3
    case kvmClockControl = 0x0000_AEAD
}
