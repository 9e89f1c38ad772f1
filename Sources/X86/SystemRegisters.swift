/// The architectural state of one vCPU that translated code does not read: segments, control registers, model-specific
/// registers, and where it stands in event delivery.
public struct SystemRegisters: Sendable {
    // The hidden parts of the segment registers. Bases of the six are mirrored in ``CPUState``.
    public var es = Segment.realMode(selector: 0, isCode: false)
    public var cs = Segment(selector: 0xF000, base: 0xFFFF_0000, limit: 0xFFFF, attributes: 0x9B)
    public var ss = Segment.realMode(selector: 0, isCode: false)
    public var ds = Segment.realMode(selector: 0, isCode: false)
    public var fs = Segment.realMode(selector: 0, isCode: false)
    public var gs = Segment.realMode(selector: 0, isCode: false)
    public var ldtr = Segment(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x82)
    public var tr = Segment(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x8B)
    public var gdtr = DescriptorTableRegister(base: 0, limit: 0xFFFF)
    public var idtr = DescriptorTableRegister(base: 0, limit: 0xFFFF)

    public var cr0: UInt64 = 0x6000_0010
    public var cr2: UInt64 = 0
    public var cr3: UInt64 = 0
    public var cr4: UInt64 = 0
    public var efer: UInt64 = 0
    public var xcr0: UInt64 = 1
    /// DR0–DR3.
    public var debugAddresses: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    public var dr6: UInt64 = 0xFFFF_0FF0
    public var dr7: UInt64 = 0x400

    public var star: UInt64 = 0
    public var lstar: UInt64 = 0
    public var cstar: UInt64 = 0
    public var syscallMask: UInt64 = 0
    public var kernelGSBase: UInt64 = 0
    public var sysenterCS: UInt64 = 0
    public var sysenterESP: UInt64 = 0
    public var sysenterEIP: UInt64 = 0
    public var pat: UInt64 = 0x0007_0406_0007_0406
    public var tscAux: UInt64 = 0
    public var miscEnable: UInt64 = 1
    /// Added to the host's time-stamp counter.
    public var tscOffset: UInt64 = 0
    public var tscAdjust: UInt64 = 0
    public var modelSpecific = ModelSpecificRegisters()

    /// The current privilege level, 0…3.
    public var cpl: UInt8 = 0
    /// STI or a load of SS delays interrupts by one instruction.
    public var interruptShadow = false
    /// An NMI is being handled; IRET ends that.
    public var nmiBlocked = false
    public var activity = Activity.running
    public var systemManagement = SystemManagementState()
    /// An exception, interrupt or NMI whose delivery the client or a fault interrupted.
    public var pendingEvent: PendingEvent?

    public enum Activity: UInt32, Sendable {
        // The values of `KVM_MP_STATE_…`.
        case running = 0
        case uninitialized = 1
        case initReceived = 2
        case halted = 3
        case startupReceived = 4
        /// As halted.
        case resetHold = 9
    }

    public init() {}

    /// The hidden part of `register`.
    @inlinable public subscript(_ register: SegmentRegister) -> Segment {
        get {
            switch register {
            case .es: es
            case .cs: cs
            case .ss: ss
            case .ds: ds
            case .fs: fs
            case .gs: gs
            }
        }
        set {
            switch register {
            case .es: es = newValue
            case .cs: cs = newValue
            case .ss: ss = newValue
            case .ds: ds = newValue
            case .fs: fs = newValue
            case .gs: gs = newValue
            }
        }
    }

    @inlinable public var isLongModeActive: Bool { efer & EFER.longModeActive != 0 }
    @inlinable public var isProtectedMode: Bool { cr0 & CR0.protection != 0 }
    @inlinable public var isPagingEnabled: Bool { cr0 & CR0.paging != 0 }
    /// Long mode with a 64-bit code segment.
    @inlinable public var is64BitMode: Bool { isLongModeActive && cs.isLong }
}

/// Where a processor stands with system management mode (SMM).
public struct SystemManagementState: Sendable {
    /// The processor is in the mode.
    public var isActive = false
    /// NMIs were blocked when the mode was entered, and RSM leaves them so.
    public var isInsideNMI = false
    /// SMBASE: the handler starts 8000H behind it, and the state is saved in the 512 bytes from FE00H on.
    public var base: UInt64 = 0x3_0000

    @inlinable public init() {}
}

/// An event on its way into the guest.
public struct PendingEvent: Equatable, Sendable {
    public var kind: Kind
    public var vector: UInt8
    public var errorCode: UInt32?
    /// CR2 of a page fault or DR6 bits of a debug exception, applied when the event is delivered; nil if there are none,
    /// or the registers have them already.
    public var payload: UInt64?

    public enum Kind: UInt8, Sendable {
        case externalInterrupt, nonMaskableInterrupt, exception
        /// INT n; return address is the next instruction's.
        case softwareInterrupt
        /// INT3 and INTO: like a software interrupt, but vector 3 or 4.
        case softwareException
    }

    public init(kind: Kind, vector: UInt8, errorCode: UInt32? = nil, payload: UInt64? = nil) {
        self.kind = kind
        self.vector = vector
        self.errorCode = errorCode
        self.payload = payload
    }

    public init(_ exception: GuestException) {
        let hasPayload = exception.vector == 14 || exception.vector == 1 && exception.payload != 0
        self.init(
            kind: .exception, vector: exception.vector, errorCode: exception.errorCode,
            payload: hasPayload ? exception.payload : nil)
    }
}
