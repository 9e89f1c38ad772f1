/// Offsets of the registers in the local APIC's page.
///
/// > Source: Intel SDM volume 3, "Local APIC Register Address Map".
public enum APICRegister {
    public static let id: UInt32 = 0x020
    public static let version: UInt32 = 0x030
    public static let taskPriority: UInt32 = 0x080
    public static let arbitrationPriority: UInt32 = 0x090
    public static let processorPriority: UInt32 = 0x0A0
    public static let endOfInterrupt: UInt32 = 0x0B0
    public static let remoteRead: UInt32 = 0x0C0
    public static let logicalDestination: UInt32 = 0x0D0
    public static let destinationFormat: UInt32 = 0x0E0
    public static let spurious: UInt32 = 0x0F0
    /// Eight registers each, 16 bytes apart.
    public static let inService: UInt32 = 0x100
    public static let triggerMode: UInt32 = 0x180
    public static let request: UInt32 = 0x200
    public static let errorStatus: UInt32 = 0x280
    public static let command: UInt32 = 0x300
    public static let commandHigh: UInt32 = 0x310
    /// Six registers, in the order of ``LocalInterrupt``.
    public static let localVectorTable: UInt32 = 0x320
    public static let initialCount: UInt32 = 0x380
    public static let currentCount: UInt32 = 0x390
    public static let divideConfiguration: UInt32 = 0x3E0
    /// x2APIC only.
    public static let selfInterrupt: UInt32 = 0x3F0
}

/// Bits of the IA32_APIC_BASE register.
public enum APICBase {
    public static let defaultAddress: UInt64 = 0xFEE0_0000
    public static let bootstrapProcessor: UInt64 = 1 << 8
    public static let x2APIC: UInt64 = 1 << 10
    public static let enable: UInt64 = 1 << 11

    /// Whether the register takes `value`: bits that exist, and x2APIC mode only with the APIC.
    public static func isValid(_ value: UInt64, hasX2APIC: Bool, physicalAddressBits: UInt64) -> Bool {
        let flags = bootstrapProcessor | enable | (hasX2APIC ? x2APIC : 0)
        let address: UInt64 = ~0xFFF & (physicalAddressBits >= 64 ? .max : (1 << physicalAddressBits) &- 1)
        return value & ~(flags | address) == 0 && value & (enable | x2APIC) != x2APIC
    }
}

/// Model-specific registers that the local APIC answers.
public enum APICModelSpecificRegister {
    public static let base: UInt32 = 0x1B
    public static let tscDeadline: UInt32 = 0x6E0
    public static let x2APIC: ClosedRange<UInt32> = 0x800...0x8FF
}

/// Bits of the error status register.
enum APICError {
    static let sendIllegalVector: UInt32 = 1 << 5
    static let receiveIllegalVector: UInt32 = 1 << 6
    static let illegalRegister: UInt32 = 1 << 7
}

/// Bits of the local vector table's entries.
enum LocalVectorEntry {
    static let vector: UInt32 = 0xFF
    static let deliveryMode: UInt32 = 7 << 8
    static let polarity: UInt32 = 1 << 13
    static let levelTriggered: UInt32 = 1 << 15
    static let masked: UInt32 = 1 << 16
    static let timerPeriodic: UInt32 = 1 << 17
    static let timerTSCDeadline: UInt32 = 1 << 18
}

/// Bits of the spurious interrupt vector register.
enum SpuriousRegister {
    static let vector: UInt32 = 0xFF
    static let softwareEnable: UInt32 = 1 << 8
    static let focusDisable: UInt32 = 1 << 9
}
