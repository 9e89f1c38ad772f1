import CZydis
import X86

/// One x86-64 processor: its state, its view of memory, and the means to run guest code.
///
/// > Concurrency: confined to the thread inside `KVM_RUN`, except where a member says otherwise.
public final class Processor {
    public let state: CPUState
    public var system = SystemRegisters()
    public unowned let platform: any ProcessorPlatform

    public init(state: CPUState, platform: any ProcessorPlatform) {
        self.state = state
        self.platform = platform
    }
}

/// In whose name memory is accessed.
public enum AccessPrivilege: Sendable {
    /// As the current privilege level and RFLAGS.AC say: what ordinary instructions do.
    case current
    /// An implicit supervisor access (descriptor tables, task state, stack switch to ring 0…2): CPL 3 does not restrict it,
    /// and SMAP applies whatever RFLAGS.AC says.
    case system
}

extension Processor {
    /// Reads a little-endian integer at a linear address; page-crossing and memory-mapped I/O are handled.
    public func read<T: FixedWidthInteger>(
        _ linear: UInt64, as type: T.Type, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> T { fatalError() }

    /// Writes a little-endian integer at a linear address. A fault on any page leaves all of it unwritten.
    public func write<T: FixedWidthInteger>(
        _ linear: UInt64, _ value: T, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) { fatalError() }

    public func readBytes(
        _ linear: UInt64, into buffer: UnsafeMutableRawBufferPointer, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) { fatalError() }

    /// Writes all bytes or, on a fault, none.
    public func writeBytes(
        _ linear: UInt64, from buffer: UnsafeRawBufferPointer, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) { fatalError() }

    /// Checks that `byteCount` bytes may be written, without writing.
    public func probeWrite(
        _ linear: UInt64, byteCount: Int, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) { fatalError() }

    /// The host address of `linear` if it is plain RAM: valid to the end of its 4 KiB page and until the next guest
    /// instruction; nil for memory-mapped I/O, and for writes also where a write needs help (translated code,
    /// dirty logging, read-only). Faults as the access itself would.
    public func hostPointer(
        _ linear: UInt64, forWriting: Bool, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> UnsafeMutableRawPointer? { fatalError() }

    /// Port input: from the core's devices, or from the client's answer; throws `.needsClient` if there is none yet.
    public func readPort(_ port: UInt16, byteCount: Int) throws(GuestFault) -> UInt32 { fatalError() }
    public func writePort(_ port: UInt16, byteCount: Int, value: UInt32) throws(GuestFault) { fatalError() }

    /// Forgets the client's answers used so far. String instructions call it after each completed iteration.
    public func commitClientAccesses() { fatalError() }

    /// Something wants the processor to leave guest code soon (interrupt, request, signal). Long repeat loops look at it.
    public var hasAttention: Bool { fatalError() }

    /// Runs guest code until something needs the caller. Delivers `system.pendingEvent` first, if there is one.
    public func run() -> RunResult { fatalError() }

    /// The client's answer to the read that ``run()`` last asked for; writes are acknowledged with 0.
    public func answerClientRead(_ value: UInt64) { fatalError() }

    /// Whether an external interrupt could be delivered now: IF is set, no shadow, no other event pending.
    public var canAcceptInterrupt: Bool { fatalError() }

    /// Set by the caller of ``run()`` when an interrupt waits for ``canAcceptInterrupt``: `run()` then returns `.attention`
    /// at the first instruction boundary where it could be delivered.
    public var wantsInterruptWindow: Bool {
        get { fatalError() }
        set { fatalError() }
    }

    /// Raises the attention flag: guest code is left at the next block. > Concurrency: any thread.
    public func raiseAttention() { fatalError() }

    /// Lowers it. > Concurrency: the owner, before it looks at its requests.
    public func clearAttention() { fatalError() }

    /// Performs what others asked for. > Concurrency: the owner, outside guest code.
    public func perform(_ requests: ProcessorRequests) { fatalError() }

    /// Recomputes what is derived from CR0, CR4, EFER, CS, SS, CPL and RFLAGS. To be called after each change of those,
    /// except for the six arithmetic flags, DF, IF and ID.
    public func modeDidChange() { fatalError() }

    /// Drops cached translations.
    public func flushTLB(_ scope: TLBFlush) { fatalError() }

    /// The effective linear address of a memory operand, segment base added and truncated to the address size.
    /// `rip`-relative operands count from the end of the instruction.
    public func linearAddress(_ operand: DecodedInstruction.MemoryOperand, of instruction: DecodedInstruction) -> UInt64 {
        fatalError()
    }
}

/// What ``Processor/flushTLB(_:)`` drops.
public enum TLBFlush: Sendable {
    /// Everything, global pages included.
    case all
    /// Everything of every PCID but global pages.
    case allNonGlobal
    /// Non-global entries of one PCID.
    case context(pcid: UInt16)
    /// One page in the current PCID, and global entries for it in all (INVLPG).
    case page(UInt64)
    /// One page in one PCID, not global ones (INVPCID type 0).
    case pageInContext(UInt64, pcid: UInt16)
    /// The address space switched to CR3 value `cr3` (PCID included when enabled), `preserving` bit 63 was set.
    case contextSwitch(preserving: Bool)
}
