/// Model-specific registers that are stored and read back, and have no effect of their own.
public struct ModelSpecificRegisters: Sendable {
    public var memoryTypes = MemoryTypeRanges()
    /// What MSR 8BH reports; the client chooses it.
    public var microcodeRevision: UInt64 = 0x0100_0065
    /// Bit 31: CPUID can be made to fault.
    public var platformInformation: UInt64 = 1 << 31
    /// Bit 0: CPUID outside privilege level 0 raises #GP(0).
    public var miscFeaturesEnable: UInt64 = 0
    public var architecturalCapabilities: UInt64 = 0
    public var featureControl: UInt64 = 0
    public var speculationControl: UInt64 = 0
    public var performanceCapabilities: UInt64 = 0
    public var powerControl: UInt64 = 0
    public var amdHardwareConfiguration: UInt64 = 0
    /// Bit 1: LFENCE waits for all earlier instructions, as the host's does.
    public var amdDecodeConfiguration: UInt64 = 2
    public var amdErrataCount: UInt64 = 0
    public var systemManagementInterruptCount: UInt64 = 0
    public var amdErrataStatus: UInt64 = 0

    public init() {}
}

/// The memory-type range registers (MTRRs): eight variable ranges, the fixed ones, and the default.
///
/// Memory types change nothing here: all guest memory is cached by the host as it is.
public struct MemoryTypeRanges: Sendable {
    /// Base and mask of each variable range in turn.
    private var variable = InlineArray<16, UInt64>(repeating: 0)
    /// One of 64 KiB units, two of 16 KiB, eight of 4 KiB.
    private var fixed = InlineArray<11, UInt64>(repeating: 0)
    private var defaultType: UInt64 = 0

    public init() {}

    /// MTRRCAP: eight variable ranges, fixed ranges and write-combining exist.
    @inlinable public static var capabilities: UInt64 { 0x508 }

    private enum Place {
        case variable(Int)
        case fixed(Int)
        case defaultType
    }

    private static func place(_ msr: UInt32) -> Place? {
        switch msr {
        case MSR.variableRange0...MSR.variableRangeLast: .variable(Int(msr - MSR.variableRange0))
        case MSR.fixedRange64K: .fixed(0)
        case MSR.fixedRange16K0: .fixed(1)
        case MSR.fixedRange16K1: .fixed(2)
        case MSR.fixedRange4K0...MSR.fixedRange4KLast: .fixed(3 + Int(msr - MSR.fixedRange4K0))
        case MSR.memoryTypeDefault: .defaultType
        default: nil
        }
    }

    /// The value of register `msr`; nil if it is not one of these.
    public func read(_ msr: UInt32) -> UInt64? {
        switch Self.place(msr) {
        case .variable(let index): variable[index]
        case .fixed(let index): fixed[index]
        case .defaultType: defaultType
        case nil: nil
        }
    }

    /// Writes register `msr`.
    ///
    /// - Parameter physicalAddressWidth: bits of a physical address that exist.
    /// - Returns: false if it is not one of these, or `value` has reserved bits or memory types.
    public mutating func write(_ msr: UInt32, _ value: UInt64, physicalAddressWidth: UInt8) -> Bool {
        switch Self.place(msr) {
        case .variable(let index):
            let beyond: UInt64 = physicalAddressWidth < 64 ? ~0 << UInt64(physicalAddressWidth) : 0
            let isMask = index & 1 != 0
            guard value & (beyond | (isMask ? 0x7FF : 0xF00)) == 0 else { return false }
            guard isMask || Self.isMemoryType(UInt8(value & 0xFF)) else { return false }
            variable[index] = value
        case .fixed(let index):
            for shift in stride(from: UInt64(0), to: 64, by: 8) {
                guard Self.isMemoryType(UInt8(value >> shift & 0xFF)) else { return false }
            }
            fixed[index] = value
        case .defaultType:
            guard value & ~0xCFF == 0, Self.isMemoryType(UInt8(value & 0xFF)) else { return false }
            defaultType = value
        case nil: return false
        }
        return true
    }

    /// Uncacheable, write-combining, write-through, write-protected or write-back.
    private static func isMemoryType(_ type: UInt8) -> Bool { type < 7 && type != 2 && type != 3 }
}
