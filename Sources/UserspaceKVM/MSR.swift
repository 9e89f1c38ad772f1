/// Numbers of model-specific registers.
///
/// > Source: Intel SDM volume 4; AMD APM volume 2, appendix A; Documentation/virt/kvm/x86/msr.rst.
enum MSR {
    static let tsc: UInt32 = 0x10
    static let kvmWallClockOld: UInt32 = 0x11
    static let kvmSystemTimeOld: UInt32 = 0x12
    static let platformID: UInt32 = 0x17
    static let speculationControl: UInt32 = 0x48
    static let predictionCommand: UInt32 = 0x49
    static let tscAdjust: UInt32 = 0x3B
    static let microcodeRevision: UInt32 = 0x8B
    static let platformInfo: UInt32 = 0xCE
    static let mtrrCapability: UInt32 = 0xFE
    static let architectureCapabilities: UInt32 = 0x10A
    static let flushCommand: UInt32 = 0x10B
    static let miscFeatureEnables: UInt32 = 0x140
    static let sysenterCS: UInt32 = 0x174
    static let sysenterESP: UInt32 = 0x175
    static let sysenterEIP: UInt32 = 0x176
    static let machineCheckCapability: UInt32 = 0x179
    static let machineCheckStatus: UInt32 = 0x17A
    static let machineCheckControl: UInt32 = 0x17B
    static let miscEnable: UInt32 = 0x1A0
    static let debugControl: UInt32 = 0x1D9
    static let mtrrVariable: ClosedRange<UInt32> = 0x200...0x20F
    static let mtrrFixed64K: UInt32 = 0x250
    static let mtrrFixed16K: ClosedRange<UInt32> = 0x258...0x259
    static let mtrrFixed4K: ClosedRange<UInt32> = 0x268...0x26F
    static let pat: UInt32 = 0x277
    static let mtrrDefaultType: UInt32 = 0x2FF
    static let machineCheckBanks: ClosedRange<UInt32> = 0x400...0x47F
    static let tscDeadline: UInt32 = 0x6E0
    static let kvmWallClock: UInt32 = 0x4B56_4D00
    static let kvmSystemTime: UInt32 = 0x4B56_4D01
    static let efer: UInt32 = 0xC000_0080
    static let star: UInt32 = 0xC000_0081
    static let lstar: UInt32 = 0xC000_0082
    static let cstar: UInt32 = 0xC000_0083
    static let syscallMask: UInt32 = 0xC000_0084
    static let fsBase: UInt32 = 0xC000_0100
    static let gsBase: UInt32 = 0xC000_0101
    static let kernelGSBase: UInt32 = 0xC000_0102
    static let tscAux: UInt32 = 0xC000_0103
    static let amdSystemConfiguration: UInt32 = 0xC001_0010
    static let amdHardwareConfiguration: UInt32 = 0xC001_0015
    static let amdClockControl: UInt32 = 0xC001_001B
    static let amdInterruptPending: UInt32 = 0xC001_0055
    static let amdMMIOConfiguration: UInt32 = 0xC001_0058
    static let amdVMControl: UInt32 = 0xC001_0114
    static let amdDecodeConfiguration: UInt32 = 0xC001_1029

    /// What state transfer carries, besides what other requests carry (`KVM_GET_MSR_INDEX_LIST`).
    static let saved: [UInt32] =
        [
            tsc, sysenterCS, sysenterESP, sysenterEIP, star, lstar, cstar, syscallMask, kernelGSBase, tscAux, pat,
            tscAdjust, tscDeadline, miscEnable, miscFeatureEnables, speculationControl, architectureCapabilities,
            microcodeRevision, machineCheckStatus, machineCheckControl, amdHardwareConfiguration,
            amdDecodeConfiguration, kvmSystemTimeOld, kvmWallClockOld, kvmSystemTime, kvmWallClock, mtrrDefaultType,
            mtrrFixed64K,
        ] + Array(mtrrFixed16K) + Array(mtrrFixed4K) + Array(mtrrVariable)

    /// What describes the processor rather than its state (`KVM_GET_MSR_FEATURE_INDEX_LIST`).
    static let features: [UInt32] = [architectureCapabilities, microcodeRevision, amdDecodeConfiguration]
}

/// Bits of IA32_ARCH_CAPABILITIES that say "not affected".
enum ArchitectureCapabilities {
    /// No Meltdown, speculation control that stays on, no L1 flush at entry, no store bypass, no MDS, no page-size machine
    /// check, no TAA, no stale data in fill buffers (three kinds), no branch history injection, no post-barrier RSB, no
    /// gather sampling, no register file sampling, no indirect target selection.
    static let value: UInt64 =
        [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62].reduce(0) { $0 | 1 << UInt64($1) }
}
