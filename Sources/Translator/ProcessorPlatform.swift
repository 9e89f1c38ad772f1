/// What surrounds a processor: interrupt controllers, in-core devices and the model the client chose.
///
/// Implemented by the vCPU that owns the processor. All calls come from the thread inside `KVM_RUN`.
public protocol ProcessorPlatform: AnyObject {
    /// Reads `byteCount` (1, 2, 4 or 8) bytes at guest physical `address` from a device that the core itself
    /// implements; nil if the client has to be asked.
    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64?
    /// Writes to a device of the core; false if the client has to be asked.
    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool
    /// Reads `byteCount` (1, 2 or 4) bytes from a port of the core's own devices; nil if the client has to be asked.
    func readPort(_ port: UInt16, byteCount: Int) -> UInt32?
    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool

    /// Reads a model-specific register that the processor itself does not hold (APIC, x2APIC, TSC deadline, KVM's own).
    /// nil means general protection.
    func readMSR(_ index: UInt32, by reader: RegisterUser) -> UInt64?
    func writeMSR(_ index: UInt32, _ value: UInt64, by writer: RegisterUser) -> Bool

    /// Whether the client's filter lets the guest access model-specific register `index`.
    func allowsMSR(_ index: UInt32, isWrite: Bool) -> Bool
    /// Whether the client is asked, instead of a #GP, about an access that is refused for `reason`.
    func asksClient(about reason: MSRRefusal) -> Bool
    /// Whether the guest can read MSR_PLATFORM_INFO.
    var showsPlatformInformation: Bool { get }

    /// CR8: bits 7–4 of the local APIC's task priority.
    var taskPriority: UInt8 { get set }

    /// The CPUID leaf for `function`/`index` as the client set it, with nothing adjusted for the current state.
    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult

    /// What KVM does that processors do not.
    var quirks: ProcessorQuirks { get }

    /// The instruction of the host's vendor for hypercalls; nil if either will do.
    var hypercallInstruction: HypercallInstruction? { get }

    /// KVM hypercall (`vmcall`/`vmmcall`), numbers and arguments already read; the result goes to RAX.
    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64

    /// Makes every other vCPU of the machine perform `requests` before it runs guest code again, and returns when all have
    /// acknowledged. The caller counts as outside guest code meanwhile: it must not return into the running block, and
    /// requests to itself have been performed when this returns.
    func requestOthers(_ requests: ProcessorRequests)

    /// Runs `body` while no other vCPU of the machine executes guest code.
    func withOthersPaused(_ body: () -> Void)
}

/// A platform without these choices.
extension ProcessorPlatform {
    public func allowsMSR(_ index: UInt32, isWrite: Bool) -> Bool { true }
    public func asksClient(about reason: MSRRefusal) -> Bool { false }
    public var showsPlatformInformation: Bool { true }
    public var quirks: ProcessorQuirks { [] }
    public var hypercallInstruction: HypercallInstruction? { nil }
}

/// Behaviour of KVM that clients can turn off (`KVM_CAP_DISABLE_QUIRKS2`). The raw values are those of `KVM_X86_QUIRK_…`.
public struct ProcessorQuirks: OptionSet, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// LINT0 of the boot processor is unmasked after a reset.
    public static let unmaskedLINT0 = Self(rawValue: 1 << 0)
    /// CR0.CD and CR0.NW count as clear: memory types change nothing here in any case.
    public static let cachingIsOn = Self(rawValue: 1 << 1)
    /// A local APIC that is off, or in x2APIC mode, still answers at its page.
    public static let answeredAPICPage = Self(rawValue: 1 << 2)
    /// OUT to port 0x7E is complete when it reaches the client.
    public static let completedPort7E = Self(rawValue: 1 << 3)
    /// CPUID's MONITOR bit does not follow IA32_MISC_ENABLE.
    public static let fixedMonitorBit = Self(rawValue: 1 << 4)
    /// The hypercall instruction of another vendor is replaced by the right one.
    public static let patchedHypercalls = Self(rawValue: 1 << 5)
    /// MONITOR and MWAIT do nothing where CPUID does not tell of them.
    public static let toleratedMonitor = Self(rawValue: 1 << 6)

    public static let all = Self(rawValue: 0x7F)
}

public enum HypercallInstruction: Sendable {
    case vmcall, vmmcall
}

/// What CPUID returns.
public struct CPUIDResult: Equatable, Sendable {
    public var eax, ebx, ecx, edx: UInt32

    public init(eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }
}

/// Work that other threads ask of a processor; bits are merged, so none carries a payload.
public struct ProcessorRequests: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Drop every cached translation (memory slots changed).
    public static let flushTLB = Self(rawValue: 1 << 0)
    /// Drop the translations that allow writing (a page is about to be translated, logged or protected).
    public static let dropWriteEntries = Self(rawValue: 1 << 1)
    /// Drop the jump cache: blocks are being unlinked.
    public static let dropJumpCache = Self(rawValue: 1 << 2)
    /// Stay out of guest code until the requester is done (code cache reset, LOCK across pages).
    public static let pause = Self(rawValue: 1 << 3)
}
