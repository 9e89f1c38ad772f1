import CHost
import Glibc
import Synchronization
import SystemPackage
import X86

/// The software TLB and jump cache of one vCPU, laid out for translated code.
///
/// The area is divided into partitions, one for each address space (PCID) that is kept. GS base selects the active one.
/// A partition starts with the state page, which is the same memory in all of them, so that translated code reaches state and
/// tables through GS with constant displacements:
///
///     0x00000  state page (aliased)
///     0x01000  jump cache: tags, targets, page bases
///     then     for each mode (user, supervisor, supervisor with AC): read tags, read addends, write tags, write addends
///
/// **Data entries.** A tag is minus the linear address of a page, an addend the host address minus the linear address.
/// The index is made of address bits 12… and bit 63, so that user and kernel halves never share an entry. An entry that
/// matches nothing holds −((i XOR 2) << 12): the page in it has another index, so no address that is looked up at i can
/// lie in it (nor in the byte before it, because i XOR 2 is never i + 1).
///
/// **Jump entries.** A tag is minus (linear target + mode tag << 48). The mode tag joins the translation mode and a
/// generation, so that forgetting everything is one increment. Empty entries use the same trick as data entries.
///
/// **Who writes.** Only the vCPU's thread fills and clears. Others ask it to (``ProcessorRequests``).
final class SoftTLB {
    // Shape. `indexBits` address bits and the half bit select a data entry.
    static var indexBits: Int { 10 }
    static var entryCount: Int { 1 << (indexBits + 1) }
    static var indexMask: UInt64 { 1 << 63 | ((1 << UInt64(indexBits)) - 1) << 12 }
    static var arrayBytes: Int { entryCount * 8 }
    static var jumpIndexBits: Int { 13 }
    static var jumpEntryCount: Int { 1 << jumpIndexBits }
    /// Functions start at multiples of 16 and return addresses anywhere, so the lowest bits tell little.
    static var jumpIndexShift: UInt64 { 2 }
    static var jumpIndexMask: UInt64 { UInt64(jumpEntryCount - 1) << jumpIndexShift }
    static var jumpTagsOffset: Int { CPUState.byteCount }
    static var jumpTargetsOffset: Int { jumpTagsOffset + jumpEntryCount * 8 }
    static var jumpPageBasesOffset: Int { jumpTargetsOffset + jumpEntryCount * 8 }
    static var dataOffset: Int { jumpPageBasesOffset + jumpEntryCount * 8 }
    static var partitionBytes: Int { dataOffset + Mode.allCases.count * 4 * arrayBytes }
    static var partitionCount: Int { 8 }

    /// The table set translated code uses.
    enum Mode: UInt8, CaseIterable { case user, supervisor, supervisorOverride }
    enum Kind: UInt8 { case read, write }

    static func tagOffset(_ mode: Mode, _ kind: Kind) -> Int {
        dataOffset + (Int(mode.rawValue) * 4 + Int(kind.rawValue) * 2) * arrayBytes
    }
    static func addendOffset(_ mode: Mode, _ kind: Kind) -> Int { tagOffset(mode, kind) + arrayBytes }

    /// Where one partition stands.
    private struct Partition {
        var pcid: UInt16 = 0
        var isUsed = false
        var lastUse: UInt64 = 0
        var generation: UInt64 = 0
        /// Entries filled since the last flush, so that a flush costs what was filled.
        var log: UnsafeMutablePointer<UInt32>
        var logCount = 0
        /// Bloom filters: 2 MiB and 1 GiB regions with fragments of large pages; pages with jump or fetch entries.
        var largeRegions: UInt64 = 0
        var hugeRegions: UInt64 = 0
        var codePages: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    }

    private static var logCapacity: Int { 4096 }
    private static var fetchEntryCount: Int { 512 }

    private struct FetchEntry {
        var page: UInt64 = 1
        var generation: UInt64 = 0
        var physical: UInt64 = 0
    }

    private let area: UnsafeMutableRawPointer
    private let areaBytes: Int
    private var partitions: [Partition]
    private let fetchEntries: UnsafeMutablePointer<FetchEntry>
    private(set) var current = 0
    private var useCounter: UInt64 = 0
    /// The number the cache of blocks gave the current translation mode, below 128.
    private var modeNumber: UInt64 = 0

    /// The state page, at its canonical address.
    let state: CPUState

    /// - Throws: the errno of the failed mapping.
    init() throws(Errno) {
        let stride = Self.partitionBytes
        areaBytes = stride * Self.partitionCount
        let file = martlet_memfd_create("martlet-vcpu", UInt32(MARTLET_MFD_CLOEXEC))
        guard file >= 0 else { throw Errno(rawValue: errno) }
        defer { close(file) }
        guard ftruncate(file, off_t(CPUState.byteCount)) == 0 else { throw Errno(rawValue: errno) }
        guard
            let reserved = mmap(
                nil, areaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            reserved != MAP_FAILED
        else { throw Errno(rawValue: errno) }
        for i in 0..<Self.partitionCount {
            let place = mmap(
                reserved + i * stride, CPUState.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0)
            if place == MAP_FAILED {
                let error = Errno(rawValue: errno)
                munmap(reserved, areaBytes)
                throw error
            }
        }
        area = reserved
        state = CPUState(base: reserved)
        fetchEntries = .allocate(capacity: Self.fetchEntryCount * Self.partitionCount)
        fetchEntries.initialize(repeating: FetchEntry(), count: Self.fetchEntryCount * Self.partitionCount)
        partitions = (0..<Self.partitionCount).map { _ in
            Partition(log: .allocate(capacity: Self.logCapacity))
        }
        partitions[0].isUsed = true
        reset(0)
        let base = state.base
        base.storeBytes(of: UInt64(UInt(bitPattern: base)), toByteOffset: CPUState.selfOffset, as: UInt64.self)
        base.storeBytes(of: Self.indexMask, toByteOffset: CPUState.tlbIndexMaskOffset, as: UInt64.self)
        base.storeBytes(of: ~UInt64(0xFFF), toByteOffset: CPUState.pageMaskOffset, as: UInt64.self)
        base.storeBytes(of: Self.jumpIndexMask, toByteOffset: CPUState.jumpIndexMaskOffset, as: UInt64.self)
        updateModeTag()
    }

    deinit {
        for partition in partitions { partition.log.deallocate() }
        fetchEntries.deallocate()
        munmap(area, areaBytes)
    }

    /// What GS base must be while guest code runs.
    var activeBase: UnsafeMutableRawPointer { area + current * Self.partitionBytes }

    // MARK: Data entries

    private static func index(_ linear: UInt64) -> Int {
        Int((linear >> 12) & ((1 << UInt64(indexBits)) - 1) | (linear >> 63) << UInt64(indexBits))
    }

    private static func emptyTag(_ index: Int) -> UInt64 { 0 &- (UInt64(index ^ 2) << 12) }

    private func words(_ partition: Int, _ offset: Int) -> UnsafeMutablePointer<UInt64> {
        (area + partition * Self.partitionBytes + offset).assumingMemoryBound(to: UInt64.self)
    }

    /// Lets translated code reach the page of `linear` at `host`.
    func insert(
        _ linear: UInt64, _ mode: Mode, _ kind: Kind, host: UnsafeMutableRawPointer, isGlobal: Bool, pageShift: UInt8
    ) {
        let page = linear & ~0xFFF
        let index = Self.index(linear)
        if partitions[current].logCount == Self.logCapacity { flush(partition: current, keepingGlobal: false) }
        let entry =
            UInt32(index) | UInt32(mode.rawValue) << 16 | UInt32(kind.rawValue) << 18 | (isGlobal ? 1 << 19 : 0)
        partitions[current].log[partitions[current].logCount] = entry
        partitions[current].logCount += 1
        if pageShift > 12 {
            partitions[current].largeRegions |= 1 << ((linear >> 21) & 63)
            if pageShift >= 30 { partitions[current].hugeRegions |= 1 << ((linear >> 30) & 63) }
        }
        words(current, Self.tagOffset(mode, kind))[index] = 0 &- page
        words(current, Self.addendOffset(mode, kind))[index] = UInt64(UInt(bitPattern: host)) &- page
    }

    /// The host address of `linear` if an entry covers it.
    func lookup(_ linear: UInt64, _ mode: Mode, _ kind: Kind) -> UnsafeMutableRawPointer? {
        let index = Self.index(linear)
        guard words(current, Self.tagOffset(mode, kind))[index] == 0 &- (linear & ~0xFFF) else { return nil }
        let host = words(current, Self.addendOffset(mode, kind))[index] &+ linear
        return UnsafeMutableRawPointer(bitPattern: UInt(host))
    }

    /// Empties the entries of `partition` that were filled, or only those of non-global pages.
    private func flush(partition: Int, keepingGlobal: Bool) {
        let log = partitions[partition].log
        var kept = 0
        for i in 0..<partitions[partition].logCount {
            let entry = log[i]
            if keepingGlobal && entry & 1 << 19 != 0 {
                log[kept] = entry
                kept += 1
                continue
            }
            clear(partition, entry)
        }
        partitions[partition].logCount = kept
        if kept == 0 {
            partitions[partition].largeRegions = 0
            partitions[partition].hugeRegions = 0
        }
        dropJumps(partition)
    }

    private func clear(_ partition: Int, _ entry: UInt32) {
        guard let mode = Mode(rawValue: UInt8(entry >> 16 & 3)), let kind = Kind(rawValue: UInt8(entry >> 18 & 1))
        else {
            return
        }
        let index = Int(entry & 0xFFFF)
        words(partition, Self.tagOffset(mode, kind))[index] = Self.emptyTag(index)
    }

    /// Makes every entry of `partition` empty.
    private func reset(_ partition: Int) {
        for mode in Mode.allCases {
            for kind in [Kind.read, .write] {
                let tags = words(partition, Self.tagOffset(mode, kind))
                for i in 0..<Self.entryCount { tags[i] = Self.emptyTag(i) }
            }
        }
        partitions[partition].logCount = 0
        resetJumps(partition)
    }

    // MARK: Flushes

    /// Forgets everything of every address space.
    func flushAll() {
        for i in 0..<Self.partitionCount where partitions[i].isUsed { flush(partition: i, keepingGlobal: false) }
    }

    func flushNonGlobal() {
        for i in 0..<Self.partitionCount where partitions[i].isUsed { flush(partition: i, keepingGlobal: true) }
    }

    /// Forgets the non-global entries of one address space.
    func flush(pcid: UInt16) {
        for i in 0..<Self.partitionCount where partitions[i].isUsed && partitions[i].pcid == pcid {
            flush(partition: i, keepingGlobal: true)
        }
    }

    /// Forgets one page, in one address space or (with global entries) in all. Of a large page all fragments go.
    func flush(page linear: UInt64, pcid: UInt16?) {
        let page = linear & ~0xFFF
        let index = Self.index(page)
        for i in 0..<Self.partitionCount where partitions[i].isUsed && (pcid == nil || partitions[i].pcid == pcid) {
            if partitions[i].largeRegions >> ((page >> 21) & 63) & 1 != 0
                || partitions[i].hugeRegions >> ((page >> 30) & 63) & 1 != 0
            {
                dropLargeRegion(i, page)
            }
            for mode in Mode.allCases {
                for kind in [Kind.read, .write] {
                    let tags = words(i, Self.tagOffset(mode, kind))
                    if tags[index] == 0 &- page { tags[index] = Self.emptyTag(index) }
                }
            }
            if mayHoldCode(i, page) { dropJumps(i) }
        }
    }

    /// Clears every entry in the 1 GiB around `page` that shares its large or huge region.
    private func dropLargeRegion(_ partition: Int, _ page: UInt64) {
        let isHuge = partitions[partition].hugeRegions >> ((page >> 30) & 63) & 1 != 0
        let shift: UInt64 = isHuge ? 30 : 21
        for i in 0..<partitions[partition].logCount {
            let entry = partitions[partition].log[i]
            guard let mode = Mode(rawValue: UInt8(entry >> 16 & 3)), let kind = Kind(rawValue: UInt8(entry >> 18 & 1))
            else { continue }
            let index = Int(entry & 0xFFFF)
            let cached = 0 &- words(partition, Self.tagOffset(mode, kind))[index]
            if cached >> shift == page >> shift { clear(partition, entry) }
        }
        dropJumps(partition)
    }

    /// Empties all entries that allow writing.
    func dropWriteEntries() {
        for i in 0..<Self.partitionCount where partitions[i].isUsed {
            let log = partitions[i].log
            var kept = 0
            for j in 0..<partitions[i].logCount {
                if log[j] >> 18 & 1 != 0 {
                    clear(i, log[j])
                } else {
                    log[kept] = log[j]
                    kept += 1
                }
            }
            partitions[i].logCount = kept
        }
    }

    /// Makes the address space `pcid` the active one; the least recently used gives way to a new one.
    func activate(pcid: UInt16) {
        useCounter += 1
        var victim = 0
        for i in 0..<Self.partitionCount {
            if partitions[i].isUsed && partitions[i].pcid == pcid {
                select(i)
                return
            }
            if !partitions[i].isUsed {
                if partitions[victim].isUsed { victim = i }
            } else if partitions[victim].isUsed && partitions[i].lastUse < partitions[victim].lastUse {
                victim = i
            }
        }
        if partitions[victim].isUsed {
            flush(partition: victim, keepingGlobal: true)
        } else {
            reset(victim)
            partitions[victim].isUsed = true
        }
        partitions[victim].pcid = pcid
        select(victim)
    }

    private func select(_ partition: Int) {
        current = partition
        partitions[partition].lastUse = useCounter
        updateModeTag()
    }

    // MARK: Jump cache

    /// The block at `target` for `linear` in the current mode.
    func insertJump(_ linear: UInt64, target: UInt64) {
        noteCode(current, linear)
        let key = linear &+ modeTag
        let index = Int((key & Self.jumpIndexMask) >> Self.jumpIndexShift)
        words(current, Self.jumpTagsOffset)[index] = 0 &- key
        words(current, Self.jumpTargetsOffset)[index] = target
        words(current, Self.jumpPageBasesOffset)[index] = linear & ~0xFFF
    }

    /// The host code for `linear` in the current mode, if the jump cache has it.
    func lookupJump(_ linear: UInt64) -> UInt64? {
        let key = linear &+ modeTag
        let index = Int((key & Self.jumpIndexMask) >> Self.jumpIndexShift)
        guard words(current, Self.jumpTagsOffset)[index] == 0 &- key else { return nil }
        return words(current, Self.jumpTargetsOffset)[index]
    }

    /// Forgets all jumps and fetch translations of all address spaces.
    func dropAllJumps() {
        for i in 0..<Self.partitionCount where partitions[i].isUsed { dropJumps(i) }
    }

    /// Blocks of another translation mode are wanted from now on.
    func selectMode(number: UInt64) {
        modeNumber = number
        updateModeTag()
    }

    /// What translated code adds to a target before it looks it up.
    var modeTag: UInt64 { state.base.load(fromByteOffset: CPUState.modeTagOffset, as: UInt64.self) }

    private func updateModeTag() {
        let tag = (partitions[current].generation % 256) << 7 | modeNumber
        state.base.storeBytes(of: (tag + 1) << 48, toByteOffset: CPUState.modeTagOffset, as: UInt64.self)
    }

    private func dropJumps(_ partition: Int) {
        partitions[partition].generation += 1
        partitions[partition].codePages = (0, 0, 0, 0)
        if partitions[partition].generation % 256 == 0 { resetJumps(partition) }
        if partition == current { updateModeTag() }
    }

    private func resetJumps(_ partition: Int) {
        let tags = words(partition, Self.jumpTagsOffset)
        for i in 0..<Self.jumpEntryCount { tags[i] = 0 &- (UInt64(i ^ 2) << Self.jumpIndexShift) }
    }

    // MARK: Fetch translations

    /// The guest physical page that `linear` is fetched from, if known.
    func lookupFetch(_ linear: UInt64, isUser: Bool) -> UInt64? {
        let entry = fetchEntries[fetchIndex(linear)]
        guard entry.page == linear & ~0xFFF | (isUser ? 2 : 0), entry.generation == partitions[current].generation
        else {
            return nil
        }
        return entry.physical
    }

    func insertFetch(_ linear: UInt64, isUser: Bool, physical: UInt64) {
        noteCode(current, linear)
        fetchEntries[fetchIndex(linear)] = FetchEntry(
            page: linear & ~0xFFF | (isUser ? 2 : 0), generation: partitions[current].generation, physical: physical)
    }

    private func fetchIndex(_ linear: UInt64) -> Int {
        current * Self.fetchEntryCount + Int((linear >> 12 ^ linear >> 21) & UInt64(Self.fetchEntryCount - 1))
    }

    private static func codeBit(_ linear: UInt64) -> (Int, UInt64) {
        let hash = (linear >> 12) &* 0x9E37_79B9_7F4A_7C15
        return (Int(hash >> 62), 1 << (hash >> 56 & 63))
    }

    private func noteCode(_ partition: Int, _ linear: UInt64) {
        let (word, bit) = Self.codeBit(linear)
        withUnsafeMutableBytes(of: &partitions[partition].codePages) {
            $0.assumingMemoryBound(to: UInt64.self)[word] |= bit
        }
    }

    private func mayHoldCode(_ partition: Int, _ linear: UInt64) -> Bool {
        let (word, bit) = Self.codeBit(linear)
        return withUnsafeBytes(of: partitions[partition].codePages) {
            $0.assumingMemoryBound(to: UInt64.self)[word] & bit != 0
        }
    }
}
