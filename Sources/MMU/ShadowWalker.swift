import GuestMemory
import Host
import Synchronization
import X86

/// A vCPU's use of the shadow page tables: walks without locks, and what its flushes require of them.
///
///     switch walker.lookup(linear, access, context) {
///     case .memory(let page): …                       // no guest walk, no slot look-up
///     case .device(let physical): …
///     case .none:
///         guard case .translated(let found) = walk.translate(linear, access, context) else { … }
///         walker.install(linear, access, context)
///     }
///
/// > Concurrency: belongs to one vCPU, which is inside a read section of the shadow MMU's domain during each walk,
/// > installation and flush of a page. Other threads may read ``statistics``.
public final class ShadowWalker {
    public let mmu: ShadowMMU
    let walk: GuestWalk

    /// The context for which roots and requirements below hold.
    private(set) var context = PagingContext(cr0: 0, cr3: ~0, cr4: 0, efer: 0)
    private var contextNumber = 0
    private var hasGlobalPages = false
    private var isLong = false
    /// Where walks start: the first in long mode, else one for each GiB.
    private var roots = RootSet()
    /// Roots of contexts that were left, by place.
    private var formerRoots: [RootSet] = Array(repeating: RootSet(), count: 8)
    private var nextFormer = 0

    /// What flushes require: entries are taken only from pages compared after these epochs.
    private var required = Requirement()
    /// Of every context.
    private var requiredOfAll: UInt64 = 0
    private var requiredOfGlobal: UInt64 = 0
    /// The last flush of a single page, which reaches global entries of other contexts.
    private var lastPageFlush: UInt64 = 0
    private var contexts = ContextRecords()

    /// Pages of which some may be devices.
    private var deviceFilter = InlineArray<8, UInt64>(repeating: 0)
    private var deviceMissCount = 0
    /// Frames of tables that have proved steady; see ``takeTrackingCandidates()``.
    private var candidates: [UInt64] = []

    private let memoryHits = OwnedCounter()
    private let deviceHits = OwnedCounter()
    private let misses = OwnedCounter()

    private struct Requirement {
        /// For links to tables.
        var upper: UInt64 = 0
        /// For leaves of the guest that are not global.
        var local: UInt64 = 0
        /// For global leaves.
        var global: UInt64 = 0

        var highest: UInt64 { max(upper, local, global) }
    }

    private struct ContextRecord {
        var upper: UInt64 = 0
        var local: UInt64 = 0
        /// ``ShadowWalker/rootKey(_:)`` when the context was used last.
        var root: UInt64 = 0
    }

    /// The records of all contexts, of which a guest uses a few.
    private struct ContextRecords {
        private var parts: [[ContextRecord]] = Array(repeating: [], count: 64)

        subscript(_ number: Int) -> ContextRecord {
            get { parts[number >> 6].isEmpty ? ContextRecord() : parts[number >> 6][number & 63] }
            _modify {
                if parts[number >> 6].isEmpty { parts[number >> 6] = Array(repeating: ContextRecord(), count: 64) }
                yield &parts[number >> 6][number & 63]
            }
        }
    }

    private struct RootSet {
        var context = PagingContext(cr0: 0, cr3: ~0, cr4: 0, efer: 0)
        var generation: UInt64 = 0
        var pages = InlineArray<4, ShadowPage.Pointer?>(repeating: nil)
    }

    /// - Parameter walk: the same vCPU's.
    public init(_ mmu: ShadowMMU, walk: GuestWalk) {
        self.mmu = mmu
        self.walk = walk
    }

    // MARK: Walks

    /// Translates the page of `linear`, if there is an entry that allows the access now.
    ///
    /// Takes no lock and writes nothing that others read but its own counters.
    /// - Parameter linear: canonical, or below 2^32.
    @inline(__always)
    public func lookup(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) -> ShadowTranslation {
        var path = ShadowPath()
        let result = lookup(linear, access, context, &path)
        switch result {
        case .memory: memoryHits.increment()
        case .device: deviceHits.increment()
        case .none: misses.increment()
        }
        return result
    }

    /// As the other `lookup`; leaves the entries it read in `path`.
    @inline(__always)
    public func lookup(
        _ linear: UInt64, _ access: PageAccess, _ context: PagingContext, _ path: inout ShadowPath
    ) -> ShadowTranslation {
        if context != self.context { adopt(context) }
        // ORDERING: acquire pairs with the release of who frees a root (invariant 1 of ``ShadowMMU``).
        guard roots.generation == mmu.published.rootGeneration.pointee.load(ordering: .acquiring),
            var page = roots.pages[isLong ? 0 : Int(linear >> 30) & 3]
        else { return .none }
        // ORDERING: acquire, before any entry (invariant 6).
        let era = mmu.published.deviceEra.pointee.load(ordering: .acquiring)
        var shift: UInt64 = isLong ? 39 : 21
        var floor: UInt64 = 0
        while true {
            // ORDERING: acquire, before the entry (invariant 2); the page's link published `linked` (invariant 3).
            let synced = page.synced.pointee.load(ordering: .acquiring)
            floor = max(floor, page.linked.pointee.load(ordering: .relaxed))
            // ORDERING: acquire pairs with the release in `ShadowPage.set`.
            let entry = ShadowEntry(
                rawValue: page.entry(Int(linear >> shift) & 511).pointee.load(ordering: .acquiring))
            path.append(entry.rawValue)
            let requirement =
                entry.isGuestLeaf ? max(floor, entry.isGlobal ? required.global : required.local) : required.upper
            guard synced > requirement else { return .none }
            if entry.isLink {
                page = entry.page
                shift -= 9
                continue
            }
            let permission = ShadowPermissions(access)
            if entry.isMemory {
                guard entry.allows(permission) else { return .none }
                let offset = UInt(linear & ((1 << shift) - 1) & ~0xFFF)
                // SAFETY: the entry was made with a host address of the slot, which no change takes away before this vCPU
                // has left guest code.
                return .memory(
                    ShadowMemory(
                        host: UnsafeMutableRawPointer(bitPattern: entry.hostAddress &+ offset).unsafelyUnwrapped,
                        isGlobal: entry.isGlobal && hasGlobalPages, pageShift: entry.guestPageSize.shift))
            }
            guard entry.isDevice, entry.allowsDevice(permission) else { return .none }
            let generation = mmu.memory.generation(addressSpace: context.addressSpace).rawValue
            guard generation >> ShadowEntry.generationBits == era, entry.isMade(under: generation) else {
                return .none
            }
            return .device(entry.deviceFrame << 12)
        }
    }

    /// Makes the entry for `linear`, which the guest's tables translate: the caller has just walked them, for the same
    /// access.
    ///
    /// > Concurrency: as for the others, and inside a read section of the guest memory.
    public func install(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) {
        if context != self.context { adopt(context) }
        let wish = ShadowMMU.Wish(
            linear: linear, isWrite: access.kind == .write, context: context, requirement: required.highest, walk: walk)
        let quadrant = isLong ? 0 : Int(linear >> 30) & 3
        let installers = mmu.published.installers
        // ORDERING: the full fence between the announcement and the reads of the guest's tables; see `flush(page:)`.
        installers.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
        let isDevice = mmu.withLock {
            guard let root = root(quadrant) else { return false }
            let isDevice = mmu.install(wish, from: root)
            candidates += mmu.candidates
            mmu.candidates.removeAll(keepingCapacity: true)
            return isDevice
        }
        // ORDERING: release, after the entries are visible.
        installers.pointee.wrappingSubtract(1, ordering: .releasing)
        if isDevice { noteDevice(linear) }
    }

    /// The root for a GiB, looked for if it is not known. > Concurrency: the lock is held.
    private func root(_ quadrant: Int) -> ShadowPage.Pointer? {
        let generation = mmu.published.rootGeneration.pointee.load(ordering: .relaxed)
        if roots.generation == generation, let root = roots.pages[quadrant] { return root }
        let root = mmu.root(context, quadrant: quadrant)
        // Finding room may have freed other roots.
        let current = mmu.published.rootGeneration.pointee.load(ordering: .relaxed)
        if roots.generation != current {
            roots.pages = InlineArray(repeating: nil)
            roots.generation = current
        }
        roots.pages[quadrant] = root
        return root
    }

    // MARK: Devices

    /// Whether the page of `linear` may have a device entry: what is not known to be a device is not worth a walk where
    /// memory is looked for elsewhere.
    @inline(__always)
    public func mayBeDevice(_ linear: UInt64) -> Bool {
        let (word, bit) = Self.filterBit(linear)
        return deviceFilter[word] & bit != 0
    }

    /// As ``install(_:_:_:)``, where only device accesses use the shadow pages: not before the context has proved to be one
    /// that uses devices.
    public func installDevice(_ linear: UInt64, _ access: PageAccess, _ context: PagingContext) {
        if context != self.context { adopt(context) }
        deviceMissCount += 1
        if deviceMissCount >= Self.deviceMissLimit || roots.pages[isLong ? 0 : Int(linear >> 30) & 3] != nil {
            install(linear, access, context)
        }
    }

    private static var deviceMissLimit: Int { 4 }

    private func noteDevice(_ linear: UInt64) {
        let (word, bit) = Self.filterBit(linear)
        deviceFilter[word] |= bit
    }

    private static func filterBit(_ linear: UInt64) -> (word: Int, bit: UInt64) {
        let hash = (linear >> 12) &* 0x9E37_79B9_7F4A_7C15
        return (Int(hash >> 61), 1 << (hash >> 55 & 63))
    }

    // MARK: Tracking

    /// Whether tables wait for ``takeTrackingCandidates()``.
    public var hasTrackingCandidates: Bool { !candidates.isEmpty }

    /// Frames of tables whose stores had better be caught, for `ShadowMMU.beginTracking`; each is named once.
    public func takeTrackingCandidates() -> [UInt64] {
        defer { candidates.removeAll(keepingCapacity: true) }
        return candidates
    }

    // MARK: Contexts

    /// Makes `context` the one that walks are for.
    private func adopt(_ context: PagingContext) {
        formerRoots[nextFormer] = roots
        nextFormer = (nextFormer + 1) % formerRoots.count
        let generation = mmu.published.rootGeneration.pointee.load(ordering: .acquiring)
        if let former = formerRoots.firstIndex(where: { $0.context == context && $0.generation == generation }) {
            roots = formerRoots[former]
            formerRoots[former] = RootSet()
        } else {
            roots = RootSet(context: context, generation: generation)
        }
        self.context = context
        isLong = context.tableFormat == .long
        hasGlobalPages = context.hasGlobalPages
        contextNumber = context.contextNumber
        deviceMissCount = 0
        let root = Self.rootKey(context)
        if contexts[contextNumber].root != root {
            // What single pages were flushed of is not known of the new tables.
            let now = self.now()
            contexts[contextNumber] = ContextRecord(upper: now, local: now, root: root)
            requiredOfGlobal = max(requiredOfGlobal, lastPageFlush)
        }
        updateRequirement()
    }

    /// Tells the tables of contexts with the same number apart; not 0.
    private static func rootKey(_ context: PagingContext) -> UInt64 {
        // PAE's pointer table is smaller than a page.
        (context.tableFormat == .physicalAddressExtension ? context.cr3 & 0xFFFF_FFE0 : context.root)
            | (context.isSystemManagement ? 3 : 1)
    }

    private func updateRequirement() {
        let record = contexts[contextNumber]
        required.upper = max(record.upper, requiredOfAll)
        required.local = max(record.local, requiredOfAll)
        required.global = hasGlobalPages ? requiredOfGlobal : required.local
    }

    /// The epoch that comparisons have to be younger than from now on.
    private func now() -> UInt64 {
        // ORDERING: the full fence of invariant 2: stores to the guest's tables come before the load.
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return mmu.published.epoch.pointee.load(ordering: .sequentiallyConsistent)
    }

    // MARK: Flushes

    /// Forgets everything of every context.
    public func flushAll() {
        requiredOfAll = now()
        requiredOfGlobal = requiredOfAll
        forgetPointers()
        updateRequirement()
    }

    /// Forgets everything but global pages.
    public func flushNonGlobal() {
        requiredOfAll = now()
        updateRequirement()
    }

    /// Forgets the pages of one context that are not global.
    public func flush(pcid: UInt16) {
        let now = self.now()
        contexts[Int(pcid & 0xFFF)].upper = now
        contexts[Int(pcid & 0xFFF)].local = now
        updateRequirement()
    }

    /// Forgets one page, in one context or (with global entries) in all, and the upper levels of the context.
    ///
    /// - Parameter context: the one that is in use.
    public func flush(page linear: UInt64, pcid: UInt16?, _ context: PagingContext) {
        if context != self.context { adopt(context) }
        if let pcid, Int(pcid) != contextNumber { return flush(pcid: pcid) }
        let now = self.now()
        contexts[contextNumber].upper = now
        if pcid == nil { lastPageFlush = now }
        if !dropEntry(linear) {
            contexts[contextNumber].local = now
            if pcid == nil { requiredOfGlobal = now }
        }
        updateRequirement()
    }

    /// The context was, or will be, loaded into CR3.
    ///
    /// - Parameter preserving: what is cached of the context may be used again.
    public func switchContext(to context: PagingContext, preserving: Bool) {
        // Global entries of single pages were flushed in the old context only.
        requiredOfGlobal = max(requiredOfGlobal, lastPageFlush)
        if !preserving {
            let now = self.now()
            contexts[context.contextNumber] = ContextRecord(upper: now, local: now, root: Self.rootKey(context))
        }
        if context != self.context { adopt(context) }
        if !preserving { forgetPointers() }
        updateRequirement()
    }

    /// PAE's pointer table is read when CR3 is loaded, and not again.
    private func forgetPointers() {
        if context.tableFormat == .physicalAddressExtension { roots.pages = InlineArray(repeating: nil) }
        for index in formerRoots.indices
        where formerRoots[index].context.tableFormat == .physicalAddressExtension {
            formerRoots[index] = RootSet()
        }
    }

    /// Drops the entry of a linear address unless the guest's tables still bear it out.
    ///
    /// - Returns: false if it is not known where to look.
    private func dropEntry(_ linear: UInt64) -> Bool {
        let generation = mmu.published.rootGeneration.pointee.load(ordering: .acquiring)
        guard roots.generation == generation, let root = roots.pages[isLong ? 0 : Int(linear >> 30) & 3] else {
            return false
        }
        // Nothing has to be done if there is no entry. That is known if nobody makes one from what the guest's table held
        // before the flush.
        // ORDERING: after the fence in `now`; acquire pairs with the release at the end of `install`. Who counts later
        // than this load reads the table after the flush.
        if mmu.published.installers.pointee.load(ordering: .sequentiallyConsistent) == 0, !hasEntry(linear, root) {
            return true
        }
        return mmu.memory.withReadSection {
            mmu.withLock {
                // Another thread may have zapped the root since.
                guard mmu.published.rootGeneration.pointee.load(ordering: .relaxed) == generation else { return false }
                mmu.compare(pathTo: linear, from: root)
                return true
            }
        }
    }

    private func hasEntry(_ linear: UInt64, _ root: ShadowPage.Pointer) -> Bool {
        var page = root
        var shift: UInt64 = isLong ? 39 : 21
        while true {
            // ORDERING: acquire pairs with the release in `ShadowPage.set`.
            let entry = ShadowEntry(
                rawValue: page.entry(Int(linear >> shift) & 511).pointee.load(ordering: .acquiring))
            guard entry.isLink else { return entry != .empty }
            page = entry.page
            shift -= 9
        }
    }

    // MARK: Inspection

    /// How walks ended.
    public struct Statistics: Equatable, Sendable {
        public var memoryHitCount: UInt64
        public var deviceHitCount: UInt64
        public var missCount: UInt64
    }

    /// > Concurrency: any thread; the counts may be of slightly different moments.
    public var statistics: Statistics {
        Statistics(memoryHitCount: memoryHits.value, deviceHitCount: deviceHits.value, missCount: misses.value)
    }
}

/// What a walk of the shadow pages found.
public enum ShadowTranslation: Equatable {
    case memory(ShadowMemory)
    /// The guest physical address of the page.
    case device(UInt64)
    /// The guest's tables have to be walked.
    case none
}

/// A page of memory that an access may use.
public struct ShadowMemory: Equatable {
    /// The first byte of the 4 KiB page.
    public var host: UnsafeMutableRawPointer
    public var isGlobal: Bool
    /// log2 of the size of the guest's page: 12, 21, 22 or 30.
    public var pageShift: UInt8
}

/// The entries that a walk read, from the root down. Stale as soon as they are read.
public struct ShadowPath {
    public private(set) var entries = InlineArray<5, UInt64>(repeating: 0)
    public private(set) var count = 0

    @inline(__always)
    public init() {}

    @inline(__always)
    mutating func append(_ entry: UInt64) {
        entries[count] = entry
        count += 1
    }
}
