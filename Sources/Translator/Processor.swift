import CHost
import GuestMemory
import Host
import MMU
import Synchronization
import SystemPackage
import X86

/// One x86-64 processor: its state, its view of memory, and the means to run guest code.
///
/// > Concurrency: confined to the thread inside `KVM_RUN`, except where a member says otherwise.
public final class Processor {
    public let state: CPUState
    public var system = SystemRegisters()
    public unowned(unsafe) let platform: any ProcessorPlatform

    let memory: GuestMemory
    /// How often a page was looked up in the guest's tables and the slots for the software TLB.
    let fills = OwnedCounter()
    public var fillCount: UInt64 { fills.value }
    /// The slot that was used last.
    var lastSlot = MemorySlotCache()
    /// Where written pages are reported, if the client reads rings; fixed before the processor runs.
    public var dirtyRing: DirtyRing? {
        get { walk.dirtyRing }
        set { walk.dirtyRing = newValue }
    }
    let walk: GuestWalk
    /// The machine's shadow pages as this processor uses them; nil without.
    let shadow: ShadowWalker?
    /// Which accesses the shadow pages are asked for first.
    let mmu: MMUKind
    let tlb: SoftTLB
    let cache: TranslationCache
    let decoder = Decoder()
    private let enterRoutine: EnterRoutine

    /// How blocks are translated now, and the number the cache gave that.
    var mode = TranslationMode()
    var modeNumber: UInt8 = 0
    /// The number of the mode with the other RFLAGS.AC, in 64-bit mode at CPL 0.
    var otherModeNumber: UInt8?
    /// The numbers of this mode's supervisor and user sides, in 64-bit code at CPL 0 or 3: what SYSCALL and SYSRET lead to.
    private(set) var privilegeModes: (supervisor: UInt8, user: UInt8)?
    private var selectedFamily: TranslationMode?
    private var family: ModeFamily?
    private var knownModes: [(mode: TranslationMode, number: UInt8)] = []
    private(set) var seenEpoch: UInt64 = 0

    /// The fault of the last access that translated code gave up on.
    var missFault: GuestFault?
    /// The device that it reached instead of memory.
    var missDevice: MissedDevice?
    var clientAnswers = ClientAnswers()
    var pendingClientRequest: ClientRequest?
    /// The instruction that was executed in Swift last, valid until the cache of blocks is reset; what an answer of the
    /// client completes.
    var lastInstruction: UnsafePointer<SwiftInstruction>?
    var lastPlace = InstructionPlace()
    var lastManner = SlowInstructions.Manner.swift
    /// KVM emulates accesses through page-table entries whose reserved bits the host's processor would take for an address, and
    /// its emulator has no x87 instructions: clients that ask for exits on such failures get one here, too, in the place of
    /// the page fault.
    /// > Source: Documentation/virt/kvm/api.rst, KVM_CAP_SMALLER_MAXPHYADDR and KVM_CAP_EXIT_ON_EMULATION_FAILURE.
    public var reportsEmulationFailures = false
    /// How often blocks were dropped by this processor.
    var forgottenDropCount: UInt64 = 0
    /// Where an instruction that has no record in the cache is put.
    let looseInstruction = UnsafeMutablePointer<SwiftInstruction>.allocate(capacity: 1)
    /// Those that translated code could not complete.
    var slowInstructions = SlowInstructions()
    /// `SoftTLB.jumpDropCount` when a block was entered last.
    private(set) var enteredDropCount: UInt64 = 0
    /// Where the jump cache may lead to.
    var knownCode = KnownCode()
    /// Two pages for copies of guest memory: of code that is decoded, and of what a string instruction compares.
    let guestCopy = UnsafeMutableRawPointer.allocate(byteCount: 2 * 4096, alignment: 64)
    /// The code for the instruction at RIP, if the last exit found it; otherwise 0.
    var foundCode: UInt64 = 0
    /// A breakpoint is enabled, or a debugger steps: instructions are executed one at a time.
    var isTraced = false
    /// What the client's debugger wants.
    public private(set) var debugger = DebuggerControl()
    /// The last instruction executed in Swift was INT n or its like.
    var executedInterrupt = false
    /// RIP behind the instruction that set `system.interruptShadow`.
    var shadowRIP: UInt64 = 0
    /// Set by the caller of ``run()`` when an interrupt waits for ``canAcceptInterrupt``: `run()` then returns
    /// `.attention` at the first instruction boundary where it could be delivered.
    public var wantsInterruptWindow: Bool {
        get { state.base.load(fromByteOffset: CPUState.interruptWindowOffset, as: UInt32.self) != 0 }
        set {
            state.base.storeBytes(of: newValue ? 1 : 0, toByteOffset: CPUState.interruptWindowOffset, as: UInt32.self)
        }
    }

    /// The guest's MXCSR is the host's now, inside ``run()``: only there may shadow pages be read.
    private(set) var hasGuestControl = false

    /// What GS base holds inside ``withGuestControl(_:)``. Writing the register costs 30 cycles.
    private var loadedBase: UnsafeMutableRawPointer

    private typealias EnterRoutine = @convention(c) (UInt64) -> Void
    private typealias PlainRoutine = @convention(c) () -> Void

    /// - Parameters:
    ///   - memory: the guest's memory slots.
    ///   - cache: the machine's translated code.
    ///   - shadow: the machine's shadow pages, in whose domain the processor is a reader while it runs.
    ///   - mmu: what the shadow pages are used for.
    ///   - platform: what surrounds the processor; must outlive it.
    /// - Throws: the errno of a failed mapping, e.g. `Errno.noMemory`.
    public init(
        memory: GuestMemory, cache: TranslationCache, shadow: ShadowMMU? = nil, mmu: MMUKind = .walk,
        platform: any ProcessorPlatform
    ) throws(Errno) {
        self.memory = memory
        self.cache = cache
        self.platform = platform
        let walk = GuestWalk(memory: memory)
        self.walk = walk
        self.shadow = shadow.map { ShadowWalker($0, walk: walk) }
        self.mmu = mmu
        tlb = try SoftTLB()
        state = tlb.state
        loadedBase = tlb.activeBase
        looseInstruction.initialize(to: SwiftInstruction(DecodedInstruction(), offset: 0))
        // SAFETY: the address is that of a routine with this signature in the cache's buffer, which `cache` keeps alive.
        enterRoutine = unsafeBitCast(UInt(cache.trampolines.enter), to: EnterRoutine.self)
        let handler: @convention(c) (UnsafeMutableRawPointer) -> Int32 = { base in Processor.handleMiss(base) }
        cache.trampolines.install(
            in: state, fillHandler: UInt64(UInt(bitPattern: unsafeBitCast(handler, to: Int.self))))
        HostFaults.install(state, cache)
        state.base.storeBytes(
            of: UInt64(UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque())),
            toByteOffset: CPUState.processorOffset, as: UInt64.self)
        for mask in BlockTranslator.FlagMask.allCases {
            state.base.storeBytes(of: mask.value, toByteOffset: mask.offset, as: UInt64.self)
        }
        reset()
    }

    deinit {
        decoder.destroy()
        looseInstruction.deallocate()
        slowInstructions.destroy()
        guestCopy.deallocate()
    }

    /// Puts the processor into its state after RESET (or INIT, which keeps the vector registers and some others).
    /// > Source: APM volume 2, section 14.1.3.
    public func reset() {
        system = SystemRegisters()
        for register in GeneralRegister.allCases { state[register] = 0 }
        state[.rdx] = 0x600
        state.rip = 0xFFF0
        state.rflags = 2
        for i in 0..<16 { state.vectorRegister(i).initializeMemory(as: UInt8.self, repeating: 0, count: 32) }
        let fxsave = state.fxsaveArea
        fxsave.initializeMemory(as: UInt8.self, repeating: 0, count: 512)
        fxsave.storeBytes(of: 0x40, toByteOffset: 0, as: UInt16.self)
        state.mxcsr = 0x1F80
        isX87Live = false
        for segment in SegmentRegister.allCases { state.setSegmentBase(segment, system[segment].base) }
        clientAnswers.removeAll()
        pendingClientRequest = nil
        wantsInterruptWindow = false
        flushTLB(.all)
        modeDidChange()
    }

    /// Has the client's debugger watch from now on.
    public func attach(_ debugger: DebuggerControl) {
        self.debugger = debugger
        modeDidChange()
    }

    // MARK: Host registers

    var isX87Live: Bool {
        get { state.base.load(fromByteOffset: CPUState.x87LiveOffset, as: UInt32.self) != 0 }
        set { state.base.storeBytes(of: newValue ? 1 : 0, toByteOffset: CPUState.x87LiveOffset, as: UInt32.self) }
    }

    private func call(_ routine: UInt64) {
        // SAFETY: one of the argument-less routines of the trampolines; GS base is this processor's.
        unsafeBitCast(UInt(routine), to: PlainRoutine.self)()
    }

    /// Runs `body` with GS base at the state, the guest's MXCSR loaded, and puts the host's back.
    func withGuestControl<Result>(_ body: () -> Result) -> Result {
        let hostBase = martlet_rdgsbase()
        loadedBase = tlb.activeBase
        martlet_wrgsbase(UInt64(UInt(bitPattern: loadedBase)))
        call(cache.trampolines.loadControl)
        hasGuestControl = true
        let result = body()
        hasGuestControl = false
        saveX87()
        call(cache.trampolines.saveControl)
        martlet_wrgsbase(hostBase)
        return result
    }

    /// Runs `body` with the host's MXCSR inside ``withGuestControl(_:)``. Collections compute in floating point when they
    /// grow, and must neither see the guest's rounding mode nor set its sticky flags.
    func withHostControl<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        guard hasGuestControl else { return try body() }
        call(cache.trampolines.saveControl)
        hasGuestControl = false
        defer {
            hasGuestControl = true
            call(cache.trampolines.loadControl)
        }
        return try body()
    }

    /// Moves the guest's x87 registers from the host's to the state, if they are there.
    func saveX87() {
        guard isX87Live else { return }
        call(cache.trampolines.saveX87)
        isX87Live = false
        let scratch = state.base + Trampolines.fxsaveScratchOffset
        // The instruction and data pointers are the host's: kept out. FCW, FSW, FTW and the eight registers go over.
        let area = state.fxsaveArea
        area.copyMemory(from: scratch, byteCount: 6)
        (area + 6).initializeMemory(as: UInt8.self, repeating: 0, count: 18)
        (area + 32).copyMemory(from: scratch + 32, byteCount: 128)
    }

    func loadX87() {
        call(cache.trampolines.loadX87)
        isX87Live = true
    }

    /// Runs `body` with x87 registers and MXCSR in the state, as instruction implementations expect them.
    func withFloatingPointInState<Result>(_ body: () throws(GuestFault) -> Result) throws(GuestFault) -> Result {
        saveX87()
        call(cache.trampolines.storeMXCSR)
        defer { call(cache.trampolines.reloadMXCSR) }
        return try body()
    }

    /// The guest's MXCSR, which is in the host's inside ``withGuestControl(_:)``.
    func liveMXCSR() -> UInt32 {
        call(cache.trampolines.storeMXCSR)
        return state.mxcsr
    }

    /// Runs the block at `code` until it leaves.
    /// - Returns: the exit word.
    func enter(_ code: UInt64) -> UInt32 {
        let base = tlb.activeBase
        if base != loadedBase {
            loadedBase = base
            martlet_wrgsbase(UInt64(UInt(bitPattern: base)))
        }
        enteredDropCount = tlb.jumpDropCount
        missDevice = nil
        enterRoutine(code)
        return state.base.load(fromByteOffset: CPUState.exitValueOffset, as: UInt32.self)
    }

    /// Forgets jumps into code that a reset of the cache has dropped.
    func followCacheResets() {
        let epoch = cache.epoch.load(ordering: .acquiring)
        guard epoch != seenEpoch else { return }
        seenEpoch = epoch
        knownModes.removeAll()
        family = nil
        tlb.dropAllJumps()
        modeDidChange()
    }

    // MARK: Mode

    /// Recomputes what is derived from CR0, CR4, EFER, CS, SS, CPL and RFLAGS. To be called after each change of those,
    /// except for the six arithmetic flags, DF, IF and ID.
    public func modeDidChange() {
        var mode = TranslationMode()
        let is64 = system.is64BitMode
        mode.codeSize = is64 ? .bits64 : system.cs.isDefault32 ? .bits32 : .bits16
        mode.hasWideStack = is64 || system.ss.isDefault32
        let flags = state.systemFlags
        if system.cpl == 3 {
            mode.tlbMode = .user
        } else {
            mode.tlbMode = flags & RFlags.alignmentCheck != 0 ? .supervisorOverride : .supervisor
        }
        let blocked = system.cr0 & (CR0.emulation | CR0.taskSwitched)
        mode.allowsX87 = blocked == 0
        mode.allowsSSE = blocked == 0 && system.cr4 & CR4.fxsave != 0
        mode.allowsAVX =
            system.cr0 & CR0.taskSwitched == 0 && system.cr4 & CR4.xsave != 0 && system.xcr0 & 6 == 6
            && system.isProtectedMode && flags & RFlags.virtual8086 == 0
        mode.singleSteps = flags & RFlags.trap != 0
        mode.isVirtual8086 = flags & RFlags.virtual8086 != 0
        mode.isProtected = system.isProtectedMode
        mode.isSystem = system.cpl == 0
        mode.allowsTimeStamp = system.cpl == 0 || system.cr4 & CR4.timeStampDisable == 0
        mode.isSystemManagement = system.systemManagement.isActive
        mode.allowsBaseAccess = system.cr4 & CR4.fsgsbase != 0
        if !is64 {
            for segment in SegmentRegister.allCases where state.segmentBase(segment) != 0 {
                mode.setBase(segment, true)
            }
        }
        isTraced = breakpoints.control & DebugRegister.breakpointEnables != 0 || debugger.singleSteps
        let key = is64 && (system.cpl == 0 || system.cpl == 3) ? familyKey(mode) : nil
        guard mode != self.mode || key != selectedFamily || knownModes.isEmpty else { return }
        self.mode = mode
        selectedFamily = key
        selectNumbers()
        tlb.selectMode(number: modeNumber, isUser: system.cpl == 3)
        mirrorSystem()
    }

    private func familyKey(_ mode: TranslationMode) -> TranslationMode {
        var key = mode
        key.isSystem = false
        key.tlbMode = .user
        key.allowsTimeStamp = system.cr4 & CR4.timeStampDisable == 0
        return key
    }

    /// Numbers the mode, and those that translated code changes to by itself.
    private func selectNumbers() {
        guard let selectedFamily else {
            modeNumber = number(of: mode)
            otherModeNumber = nil
            privilegeModes = nil
            return
        }
        let family = family?.key == selectedFamily ? family! : numberedFamily(selectedFamily)
        self.family = family
        switch mode.tlbMode {
        case .user: (modeNumber, otherModeNumber) = (family.user, nil)
        case .supervisor: (modeNumber, otherModeNumber) = (family.supervisor, family.override)
        case .supervisorOverride: (modeNumber, otherModeNumber) = (family.override, family.supervisor)
        }
        privilegeModes = (family.supervisor, family.user)
    }

    /// The modes of 64-bit code that differ in nothing but CPL (0 or 3) and RFLAGS.AC.
    private struct ModeFamily {
        /// The mode at CPL 3.
        var key: TranslationMode
        var supervisor: UInt8
        var override: UInt8
        var user: UInt8
    }

    private func numberedFamily(_ key: TranslationMode) -> ModeFamily {
        var supervisor = key
        supervisor.isSystem = true
        supervisor.allowsTimeStamp = true
        supervisor.tlbMode = .supervisor
        var override = supervisor
        override.tlbMode = .supervisorOverride
        while true {
            let epoch = seenEpoch
            let result = ModeFamily(
                key: key, supervisor: number(of: supervisor), override: number(of: override), user: number(of: key))
            // Numbering one of them may have reset the cache.
            if epoch == seenEpoch { return result }
        }
    }

    private func number(of mode: TranslationMode) -> UInt8 {
        if let known = knownModes.first(where: { $0.mode == mode }) { return known.number }
        while true {
            if let number = cache.number(of: mode) {
                knownModes.append((mode, number))
                return number
            }
            platform.withOthersPaused { cache.reset() }
            seenEpoch = cache.epoch.load(ordering: .acquiring)
            knownModes.removeAll()
            family = nil
            tlb.dropAllJumps()
        }
    }

    /// Translated code executes STAC and CLAC by itself and leaves the new mode in the mode tag.
    func followModeTag() {
        let number = UInt8(truncatingIfNeeded: (tlb.modeTag >> 48) &- 1) & 127
        if number != modeNumber { modeDidChange() }
    }

    // MARK: Requests

    /// Something wants the processor to leave guest code soon (interrupt, request, signal). Long repeat loops look at it.
    public var hasAttention: Bool { state.attention.pointee.load(ordering: .relaxed) != 0 }

    /// Raises the attention flag: guest code is left at the next block. > Concurrency: any thread.
    public func raiseAttention() { state.attention.pointee.store(1, ordering: .sequentiallyConsistent) }

    /// Lowers it. > Concurrency: the owner, before it looks at its requests.
    public func clearAttention() { state.attention.pointee.store(0, ordering: .sequentiallyConsistent) }

    /// Performs what others asked for. > Concurrency: the owner, outside guest code.
    public func perform(_ requests: ProcessorRequests) {
        if requests.contains(.flushTLB) {
            tlb.flushAll()
            walk.flush()
        }
        if requests.contains(.dropWriteEntries) { tlb.dropWriteEntries() }
        if requests.contains(.dropJumpCache) { tlb.dropAllJumps() }
    }

    /// Whether an external interrupt could be delivered now: IF is set, no shadow, no other event pending.
    public var canAcceptInterrupt: Bool {
        state.systemFlags & RFlags.interrupt != 0 && !isInShadow && system.pendingEvent == nil && !isCompletingAccess
    }

    /// The client has answered an access of the instruction at RIP, which has not used all answers yet. Nothing is
    /// delivered before it is complete: it would make the access twice.
    public var isCompletingAccess: Bool { !clientAnswers.isEmpty }

    /// STI or a load of SS was the previous instruction.
    var isInShadow: Bool { system.interruptShadow && state.rip == shadowRIP }

    /// Whether the instruction at RIP is executed before any interrupt is accepted, as behind STI.
    public var hasInterruptShadow: Bool {
        get { isInShadow }
        set {
            system.interruptShadow = newValue
            shadowRIP = state.rip
        }
    }

    /// How walks of the shadow pages ended. > Concurrency: any thread.
    public var shadowStatistics: ShadowWalker.Statistics? { shadow?.statistics }

    /// The guest physical address of `linear` by the guest's tables as they are now, in the name of the supervisor; nil if
    /// there is none.
    /// > Concurrency: the owner, inside.
    public func translate(_ linear: UInt64) -> UInt64? {
        walk.flush()
        let access = PageAccess(.read, isUser: false, overridesAccessPrevention: true)
        let result = memory.withReadSection { walk.translate(linear, access, pagingContext) }
        guard case .translated(let translation) = result else { return nil }
        return translation.physical | linear & 0xFFF
    }

    /// Where the instruction is whose access reaches a device now: RIP may be behind it already.
    public var accessingRIP: UInt64 { lastPlace.rip }

    // MARK: Flushes

    /// Drops cached translations.
    public func flushTLB(_ scope: TLBFlush) {
        walk.flush()
        switch scope {
        case .all:
            tlb.flushAll()
            shadow?.flushAll()
        case .allNonGlobal:
            tlb.flushNonGlobal()
            shadow?.flushNonGlobal()
        case .context(let pcid):
            tlb.flush(pcid: pcid)
            shadow?.flush(pcid: pcid)
        case .page(let linear):
            tlb.flush(page: linear, pcid: nil)
            dropShadow(of: linear, pcid: nil)
        case .pageInContext(let linear, let pcid):
            tlb.flush(page: linear, pcid: pcid)
            dropShadow(of: linear, pcid: pcid)
        case .contextSwitch(let preserving):
            let pcid = currentContext
            tlb.activate(pcid: pcid)
            if !preserving { tlb.flush(pcid: pcid) }
            shadow?.switchContext(to: pagingContext, preserving: preserving)
        }
    }

    private func dropShadow(of linear: UInt64, pcid: UInt16?) {
        guard let shadow else { return }
        guard hasGuestControl else { return shadow.flushAll() }
        withHostControl { shadow.flush(page: linear, pcid: pcid, pagingContext) }
    }

    /// The current PCID; 0 when they are off.
    var currentContext: UInt16 {
        system.cr4 & CR4.processContextIdentifiers != 0 ? UInt16(system.cr3 & 0xFFF) : 0
    }
}

/// Where the last access that translated code gave up on leads, if all of it lies in one page of a device's.
struct MissedDevice {
    var linear: UInt64
    var physical: UInt64
}

/// Where an instruction was executed.
struct InstructionPlace: Equatable {
    var rip: UInt64 = 0
    var modeNumber: UInt8 = 0
    var epoch: UInt64 = 0
}

/// In whose name memory is accessed.
public enum AccessPrivilege: Sendable {
    /// As the current privilege level and RFLAGS.AC say: what ordinary instructions do.
    case current
    /// An implicit supervisor access (descriptor tables, task state, stack switch to ring 0…2): CPL 3 does not restrict it,
    /// and SMAP applies whatever RFLAGS.AC says.
    case system
}

/// What ``Processor/flushTLB(_:)`` drops.
public enum TLBFlush: Sendable {
    /// Everything, global pages included.
    case all
    /// Everything of every PCID but global pages.
    case allNonGlobal
    /// Non-global entries of one PCID.
    case context(pcid: UInt16)
    /// One page in every PCID, global entries included (INVLPG).
    case page(UInt64)
    /// One page in one PCID (INVPCID type 0).
    case pageInContext(UInt64, pcid: UInt16)
    /// CR3 was written; `preserving`: bit 63 was set.
    case contextSwitch(preserving: Bool)
}
