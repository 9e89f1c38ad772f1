/// Numbers of model-specific registers.
///
/// > Source: Intel SDM volume 4; APM volume 2, appendix A.
public enum MSR {
    @inlinable public static var machineCheckAddressP5: UInt32 { 0x0000_0000 }
    @inlinable public static var machineCheckTypeP5: UInt32 { 0x0000_0001 }
    @inlinable public static var timeStampCounter: UInt32 { 0x0000_0010 }
    @inlinable public static var platformID: UInt32 { 0x0000_0017 }
    @inlinable public static var apicBase: UInt32 { 0x0000_001B }
    @inlinable public static var powerOnConfiguration: UInt32 { 0x0000_002A }
    @inlinable public static var systemManagementInterruptCount: UInt32 { 0x0000_0034 }
    @inlinable public static var featureControl: UInt32 { 0x0000_003A }
    @inlinable public static var tscAdjust: UInt32 { 0x0000_003B }
    @inlinable public static var speculationControl: UInt32 { 0x0000_0048 }
    @inlinable public static var predictionCommand: UInt32 { 0x0000_0049 }
    @inlinable public static var microcodeUpdate: UInt32 { 0x0000_0079 }
    @inlinable public static var microcodeRevision: UInt32 { 0x0000_008B }
    @inlinable public static var systemManagementBase: UInt32 { 0x0000_009E }
    @inlinable public static var frontSideBusFrequency: UInt32 { 0x0000_00CD }
    @inlinable public static var platformInformation: UInt32 { 0x0000_00CE }
    @inlinable public static var memoryTypeCapabilities: UInt32 { 0x0000_00FE }
    @inlinable public static var architecturalCapabilities: UInt32 { 0x0000_010A }
    @inlinable public static var flushCommand: UInt32 { 0x0000_010B }
    @inlinable public static var cacheControl3: UInt32 { 0x0000_011E }
    @inlinable public static var miscFeaturesEnable: UInt32 { 0x0000_0140 }
    @inlinable public static var sysenterCS: UInt32 { 0x0000_0174 }
    @inlinable public static var sysenterESP: UInt32 { 0x0000_0175 }
    @inlinable public static var sysenterEIP: UInt32 { 0x0000_0176 }
    @inlinable public static var machineCheckCapabilities: UInt32 { 0x0000_0179 }
    @inlinable public static var machineCheckStatus: UInt32 { 0x0000_017A }
    @inlinable public static var machineCheckControl: UInt32 { 0x0000_017B }
    @inlinable public static var performanceStatus: UInt32 { 0x0000_0198 }
    @inlinable public static var performanceControl: UInt32 { 0x0000_0199 }
    @inlinable public static var miscEnable: UInt32 { 0x0000_01A0 }
    @inlinable public static var debugControl: UInt32 { 0x0000_01D9 }
    @inlinable public static var lastBranchFrom: UInt32 { 0x0000_01DB }
    @inlinable public static var lastInterruptTo: UInt32 { 0x0000_01DE }
    @inlinable public static var powerControl: UInt32 { 0x0000_01FC }
    /// The first of eight pairs of base and mask.
    @inlinable public static var variableRange0: UInt32 { 0x0000_0200 }
    @inlinable public static var variableRangeLast: UInt32 { 0x0000_020F }
    @inlinable public static var fixedRange64K: UInt32 { 0x0000_0250 }
    @inlinable public static var fixedRange16K0: UInt32 { 0x0000_0258 }
    @inlinable public static var fixedRange16K1: UInt32 { 0x0000_0259 }
    /// The first of eight.
    @inlinable public static var fixedRange4K0: UInt32 { 0x0000_0268 }
    @inlinable public static var fixedRange4KLast: UInt32 { 0x0000_026F }
    @inlinable public static var pageAttributeTable: UInt32 { 0x0000_0277 }
    /// Control of corrected machine checks: one for each of 32 banks.
    @inlinable public static var machineCheckBankControl0: UInt32 { 0x0000_0280 }
    @inlinable public static var machineCheckBankControlLast: UInt32 { 0x0000_029F }
    @inlinable public static var memoryTypeDefault: UInt32 { 0x0000_02FF }
    @inlinable public static var performanceCapabilities: UInt32 { 0x0000_0345 }
    /// The first of 32 banks' four registers: control, status, address, miscellaneous.
    @inlinable public static var machineCheckBank0: UInt32 { 0x0000_0400 }
    @inlinable public static var machineCheckBankLast: UInt32 { 0x0000_047F }
    @inlinable public static var powerUnit: UInt32 { 0x0000_0606 }
    @inlinable public static var tscDeadline: UInt32 { 0x0000_06E0 }
    @inlinable public static var x2APICFirst: UInt32 { 0x0000_0800 }
    @inlinable public static var x2APICLast: UInt32 { 0x0000_08FF }
    @inlinable public static var supervisorState: UInt32 { 0x0000_0DA0 }

    @inlinable public static var efer: UInt32 { 0xC000_0080 }
    @inlinable public static var star: UInt32 { 0xC000_0081 }
    @inlinable public static var lstar: UInt32 { 0xC000_0082 }
    @inlinable public static var cstar: UInt32 { 0xC000_0083 }
    @inlinable public static var syscallMask: UInt32 { 0xC000_0084 }
    @inlinable public static var fsBase: UInt32 { 0xC000_0100 }
    @inlinable public static var gsBase: UInt32 { 0xC000_0101 }
    @inlinable public static var kernelGSBase: UInt32 { 0xC000_0102 }
    @inlinable public static var tscAux: UInt32 { 0xC000_0103 }

    /// The first of four event selectors and four counters of AMD's K7.
    @inlinable public static var amdPerformance0: UInt32 { 0xC001_0000 }
    @inlinable public static var amdPerformanceLast: UInt32 { 0xC001_0007 }
    @inlinable public static var amdSystemConfiguration: UInt32 { 0xC001_0010 }
    @inlinable public static var amdHardwareConfiguration: UInt32 { 0xC001_0015 }
    @inlinable public static var amdNorthbridgeConfiguration: UInt32 { 0xC001_001F }
    @inlinable public static var amdPatchLoader: UInt32 { 0xC001_0020 }
    @inlinable public static var amdInterruptPending: UInt32 { 0xC001_0055 }
    @inlinable public static var amdMMIOConfigurationBase: UInt32 { 0xC001_0058 }
    @inlinable public static var amdSMMAddress: UInt32 { 0xC001_0112 }
    @inlinable public static var amdSMMMask: UInt32 { 0xC001_0113 }
    @inlinable public static var amdHostSaveAddress: UInt32 { 0xC001_0117 }
    @inlinable public static var amdErrataCount: UInt32 { 0xC001_0140 }
    @inlinable public static var amdErrataStatus: UInt32 { 0xC001_0141 }
    @inlinable public static var amdLoadStoreConfiguration: UInt32 { 0xC001_1020 }
    @inlinable public static var amdInstructionCacheConfiguration: UInt32 { 0xC001_1021 }
    @inlinable public static var amdDataCacheConfiguration: UInt32 { 0xC001_1022 }
    @inlinable public static var amdTableWalkConfiguration: UInt32 { 0xC001_1023 }
    @inlinable public static var amdDecodeConfiguration: UInt32 { 0xC001_1029 }
    @inlinable public static var amdBusConfiguration2: UInt32 { 0xC001_102A }
    @inlinable public static var amdExecutionConfiguration: UInt32 { 0xC001_102C }
}
