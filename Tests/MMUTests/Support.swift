import Addressing
import GuestMemory
import Host
import MMU
import RCU
import Synchronization
import X86

/// Bits of page-table entries.
enum Bit {
    static let present: UInt64 = 1 << 0
    static let writable: UInt64 = 1 << 1
    static let user: UInt64 = 1 << 2
    static let accessed: UInt64 = 1 << 5
    static let dirty: UInt64 = 1 << 6
    static let large: UInt64 = 1 << 7
    static let global: UInt64 = 1 << 8
    static let noExecute: UInt64 = 1 << 63
    /// What tables need to lead on with all rights.
    static let table: UInt64 = 7
    static let status: UInt64 = accessed | dirty
}

/// A machine without processors: memory, shadow pages, and what tests say is guarded.
final class TestMachine: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: guest memory is accessed as atomics, `guarded` under the lock.

    let ram: MemoryMapping
    let memory: GuestMemory
    let domain = RCUDomain()
    let mmu: ShadowMMU
    private let guarded: GuardedFrames

    /// - Parameter frameCount: of the one slot, number 0, at frame 0.
    init(
        frameCount: Int = 4096, pageLimit: Int = 1024, trackingThreshold: Int = 1000, initialGeneration: UInt64 = 0
    ) throws {
        ram = try .anonymous(byteCount: frameCount << 12)
        memory = GuestMemory(initialGeneration: initialGeneration)
        let guarded = GuardedFrames()
        self.guarded = guarded
        let firstPage = UInt64(UInt(bitPattern: ram.baseAddress)) >> 12
        mmu = ShadowMMU(
            memory: memory, domain: domain, pageLimit: pageLimit, trackingThreshold: trackingThreshold,
            isGuarded: { guarded.contains($0 &- firstPage) })
        try set(slot: 0, frame: 0, pages: UInt64(frameCount), host: UInt(bitPattern: ram.baseAddress))
    }

    func set(slot: UInt32, frame: UInt64, pages: UInt64, host: UInt, flags: UInt32 = 0) throws {
        let region = UserMemoryRegion(
            slot: slot, flags: flags, guestPhysicalAddress: frame << 12, memorySize: pages << 12,
            userspaceAddress: UInt64(host))
        try memory.setUserMemoryRegion(region) { change in
            switch change {
            case .create: break
            case .delete(let old), .move(let old, _): mmu.zap(frames: Self.frames(of: old)) {}
            case .flagsOnly(let old, _): mmu.revokeWrites(frames: Self.frames(of: old))
            }
        }
    }

    static func frames(of slot: MemorySlotDescription) -> Range<UInt64> {
        slot.baseFrame.value..<slot.baseFrame.value + slot.pageCount
    }

    /// - Parameter frame: of slot 0.
    func setGuarded(_ frame: UInt64, _ isGuarded: Bool) {
        guarded.set(frame, isGuarded)
        if isGuarded { mmu.revokeWrites(hostPage: UInt64(UInt(bitPattern: ram.baseAddress)) >> 12 + frame) }
    }

    // MARK: Guest memory

    func word(_ address: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>> {
        (ram.baseAddress + Int(address)).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    func load(_ address: UInt64) -> UInt64 { word(address).pointee.load(ordering: .relaxed) }

    /// What a guest's store does.
    func store(_ value: UInt64, _ address: UInt64) {
        let body = { self.word(address).pointee.store(value, ordering: .sequentiallyConsistent) }
        let frame = address >> 12
        if mmu.isTracked(frame) {
            mmu.guestStore(frame: frame, offset: Int(address & 0xFFF), byteCount: 8, body)
        } else {
            body()
        }
    }

    func store32(_ value: UInt32, _ address: UInt64) {
        let old = load(address & ~7)
        let shift = address & 4 * 8
        store(old & ~(0xFFFF_FFFF << shift) | UInt64(value) << shift, address & ~7)
    }

    /// The frame at a host address of slot 0.
    func frame(_ host: UnsafeMutableRawPointer) -> UInt64 { UInt64(host - ram.baseAddress) >> 12 }
}

/// Frames that tests have guarded.
private final class GuardedFrames: @unchecked Sendable {
    private let lock = FutexLock()
    private var frames: Set<UInt64> = []

    func contains(_ frame: UInt64) -> Bool { lock.withLock { frames.contains(frame) } }

    func set(_ frame: UInt64, _ isGuarded: Bool) {
        lock.withLock {
            if isGuarded { frames.insert(frame) } else { frames.remove(frame) }
        }
    }
}

/// A processor's view: what a vCPU does on a miss of its TLB, without the TLB.
final class TestProcessor {
    let machine: TestMachine
    let reader: RCUReader
    let walk: GuestWalk
    let walker: ShadowWalker
    var context: PagingContext

    init(_ machine: TestMachine, _ context: PagingContext) {
        self.machine = machine
        self.context = context
        reader = RCUReader(machine.domain)
        walk = GuestWalk(memory: machine.memory)
        walker = ShadowWalker(machine.mmu, walk: walk)
        reader.online()
        walker.switchContext(to: context, preserving: false)
    }

    deinit { reader.offline() }

    enum Outcome: Equatable {
        case memory(UInt64)
        case device(UInt64)
        case fault
    }

    func lookup(_ linear: UInt64, _ access: PageAccess) -> ShadowTranslation { walker.lookup(linear, access, context) }

    /// Walks the guest's tables and installs what they say.
    func fill(_ linear: UInt64, _ access: PageAccess) -> WalkResult {
        machine.memory.withReadSection {
            let result = walk.translate(linear, access, context)
            if case .translated = result { walker.install(linear, access, context) }
            return result
        }
    }

    /// An access: by the shadow pages, or else by the guest's tables, whose translation is installed.
    @discardableResult
    func access(_ linear: UInt64, _ access: PageAccess = .supervisorRead) -> Outcome {
        switch lookup(linear, access) {
        case .memory(let page): return .memory(machine.frame(page.host))
        case .device(let physical): return .device(physical >> 12)
        case .none: break
        }
        guard case .translated(let found) = fill(linear, access) else { return .fault }
        let frame = GuestFrameNumber(found.physical >> 12)
        return machine.memory.withReadSection {
            machine.memory.lookup(frame, addressSpace: 0) == nil ? .device(frame.value) : .memory(frame.value)
        }
    }

    func isHit(_ linear: UInt64, _ access: PageAccess = .supervisorRead) -> Bool { lookup(linear, access) != .none }

    func invalidate(_ linear: UInt64) {
        walk.flush()
        walker.flush(page: linear, pcid: nil, context)
    }

    func loadCR3(_ value: UInt64, preserving: Bool = false) {
        walk.flush()
        context.cr3 = value
        walker.switchContext(to: context, preserving: preserving)
    }

    /// Has tables tracked that proved steady, with no other processor to ask.
    func track() { machine.mmu.finishTracking(machine.mmu.beginTracking(walker.takeTrackingCandidates())) }
}

extension PageAccess {
    static let supervisorRead = PageAccess(.read, isUser: false)
    static let supervisorWrite = PageAccess(.write, isUser: false)
    static let userRead = PageAccess(.read, isUser: true)
    static let userWrite = PageAccess(.write, isUser: true)

    static let all: [PageAccess] = [PageAccess.Kind.read, .write, .execute].flatMap { kind in
        [
            PageAccess(kind, isUser: true), PageAccess(kind, isUser: false),
            PageAccess(kind, isUser: false, overridesAccessPrevention: true)
        ]
    }
}

extension PagingContext {
    static func long(root: UInt64, cr0: UInt64 = CR0.writeProtect, cr4: UInt64 = 0, noExecute: Bool = true) -> Self {
        PagingContext(
            cr0: CR0.protection | CR0.paging | cr0, cr3: root,
            cr4: CR4.physicalAddressExtension | CR4.globalPages | cr4,
            efer: EFER.longModeEnable | EFER.longModeActive | (noExecute ? EFER.noExecute : 0))
    }
}

/// Builds four-level tables in a machine's memory.
struct TableBuilder {
    let machine: TestMachine
    /// The next frame to be used for a table.
    var nextFrame: UInt64
    /// The root's address.
    let root: UInt64

    init(_ machine: TestMachine, firstFrame: UInt64 = 1) {
        self.machine = machine
        root = firstFrame << 12
        nextFrame = firstFrame + 1
    }

    /// The address of the entry that maps `linear` at `level`, with the tables above it made.
    mutating func entry(_ linear: UInt64, level: Int = 1) -> UInt64 {
        var table = root
        var current = 4
        while true {
            let address = table + (linear >> UInt64(3 + 9 * current) & 511) * 8
            if current == level { return address }
            if machine.load(address) & Bit.present == 0 {
                machine.store(nextFrame << 12 | Bit.table, address)
                nextFrame += 1
            }
            table = machine.load(address) & 0xF_FFFF_FFFF_F000
            current -= 1
        }
    }

    /// Maps a page.
    mutating func map(_ linear: UInt64, _ frame: UInt64, _ bits: UInt64 = 7, level: Int = 1) {
        let large = level > 1 ? Bit.large : 0
        machine.store(frame << 12 | bits | large | Bit.present, entry(linear, level: level))
    }
}
