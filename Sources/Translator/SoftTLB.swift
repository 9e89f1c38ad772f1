import Host
import MMU
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
/// generation, so that forgetting everything is one increment. User modes and the others have generations of their own: the
/// kernel's code lies in global pages as a rule and outlives the flushes of an address space. Empty entries use the same
/// trick as data entries.
///
/// **Memory.** Behind the partitions lie, for each, what Swift remembers of it. All of it is address space that takes memory when
/// it is used: a partition is filled with empty entries when it is first entered, and zero is what the rest begins with.
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
    /// How many there are, unless the process runs out of mappings.
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
        /// The data entries filled since the last flush, so that a flush costs what was filled. Each entry is in it once.
        let log: UnsafeMutablePointer<UInt16>
        var logCount = 0
        /// ``EntryMark``s of each data entry.
        let marks: UnsafeMutablePointer<UInt8>
        /// Where data entries, and jump or fetch entries, are fragments of large pages.
        var largeData = LargeRegions()
        var largeCode = LargeRegions()
        var userCode: CodeMemory
        var systemCode: CodeMemory
        let fetchEntries: UnsafeMutablePointer<FetchEntry>

        static var byteCount: Int {
            numberCount * 2 + numberCount + 2 * CodeMemory.wordCount * 8
                + fetchEntryCount * MemoryLayout<FetchEntry>.stride
        }

        /// - Parameter memory: zeroed, `byteCount` bytes, aligned to a page.
        init(_ memory: UnsafeMutableRawPointer) {
            // SAFETY: one behind the other, each a multiple of 8 bytes long; zero is a value of each type.
            log = memory.assumingMemoryBound(to: UInt16.self)
            marks = (memory + numberCount * 2).assumingMemoryBound(to: UInt8.self)
            let words = (memory + numberCount * 3).assumingMemoryBound(to: UInt64.self)
            userCode = CodeMemory(pages: words)
            systemCode = CodeMemory(pages: words + CodeMemory.wordCount)
            fetchEntries = UnsafeMutableRawPointer(words + 2 * CodeMemory.wordCount)
                .assumingMemoryBound(to: FetchEntry.self)
        }
    }

    /// Bloom filters of the 2 MiB and 1 GiB regions with large pages, one for each half of the address space: the kernel's
    /// half is full of them.
    private struct LargeRegions {
        private var large: (UInt64, UInt64) = (0, 0)
        private var huge: (UInt64, UInt64) = (0, 0)

        mutating func note(_ linear: UInt64, pageShift: UInt8) {
            if pageShift <= 12 { return }
            let largeBit: UInt64 = 1 << (linear >> 21 & 63)
            let hugeBit: UInt64 = pageShift >= 30 ? 1 << (linear >> 30 & 63) : 0
            if linear >> 63 == 0 {
                large.0 |= largeBit
                huge.0 |= hugeBit
            } else {
                large.1 |= largeBit
                huge.1 |= hugeBit
            }
        }

        func mayHoldHuge(_ linear: UInt64) -> Bool {
            (linear >> 63 == 0 ? huge.0 : huge.1) >> (linear >> 30 & 63) & 1 != 0
        }

        func mayHold(_ linear: UInt64) -> Bool {
            (linear >> 63 == 0 ? large.0 : large.1) >> (linear >> 21 & 63) & 1 != 0 || mayHoldHuge(linear)
        }
    }

    /// What is known about jump and fetch entries of user modes, or of the others.
    private struct CodeMemory {
        /// Starts at 1: entries of zeroed memory are of none.
        var generation: UInt64 = 1
        /// Code lies in a page that is not global.
        var hasLocalPages = false
        /// A Bloom filter of the pages with entries.
        let pages: UnsafeMutablePointer<UInt64>

        static var wordCount: Int { 128 }

        init(pages: UnsafeMutablePointer<UInt64>) { self.pages = pages }

        private static func bit(_ linear: UInt64) -> (word: Int, bit: UInt64) {
            let hash = (linear >> 12) &* 0x9E37_79B9_7F4A_7C15
            return (Int(hash >> 57), 1 << (hash >> 51 & 63))
        }

        mutating func note(_ linear: UInt64) {
            let (word, bit) = Self.bit(linear)
            pages[word] |= bit
        }

        func mayHold(_ linear: UInt64) -> Bool {
            let (word, bit) = Self.bit(linear)
            return pages[word] & bit != 0
        }

        mutating func forget() {
            generation += 1
            hasLocalPages = false
            pages.update(repeating: 0, count: Self.wordCount)
        }
    }

    private enum EntryMark {
        /// The entry is in the log.
        static var logged: UInt8 { 1 }
        static var global: UInt8 { 2 }
    }

    /// Data entries of all modes and kinds, each of which has a number: mode, kind and index.
    private static var numberCount: Int { Mode.allCases.count * 2 * entryCount }
    private static var fetchEntryCount: Int { 512 }

    private struct FetchEntry {
        var page: UInt64
        var generation: UInt64
        var physical: UInt64
    }

    private let memory: MemoryMapping
    private let area: UnsafeMutableRawPointer
    private var partitions: [Partition]
    private(set) var current = 0
    private var useCounter: UInt64 = 0
    /// The number the cache of blocks gave the current translation mode, below 128.
    private var modeNumber: UInt8 = 0
    private var isUserMode = false
    /// See ``selectPrivilegeModes(_:allowsCall:allowsReturn:)``.
    private var privilegeModes: (supervisor: UInt8, user: UInt8)?
    private var allowsCall = false
    private var allowsReturn = false

    /// The state page, at its canonical address.
    let state: CPUState

    /// - Throws: the errno of the failed mapping.
    init() throws(Errno) {
        let recordsOffset = Self.partitionBytes * Self.partitionCount
        memory = try .anonymous(byteCount: recordsOffset + Partition.byteCount * Self.partitionCount)
        let area = memory.baseAddress
        self.area = area
        activeBase = area
        state = CPUState(base: area)
        partitions = (0..<Self.partitionCount).map { Partition(area + recordsOffset + $0 * Partition.byteCount) }
        let base = state.base
        base.storeBytes(of: UInt64(UInt(bitPattern: base)), toByteOffset: CPUState.selfOffset, as: UInt64.self)
        updateModeTag()
    }

    /// Makes the active partition ready for translated code. Costs nothing once it is.
    @inline(__always)
    func prepare() {
        if !partitions[current].isUsed { _ = use(current) }
    }

    /// Makes a partition ready that was not used before: the state page appears in it.
    ///
    /// - Returns: false if the process can have no more mappings; the first always succeeds.
    private func use(_ partition: Int) -> Bool {
        if partition != 0 {
            do throws(Errno) {
                try shareState()
                try memory.duplicate(0..<CPUState.byteCount, at: partition * Self.partitionBytes)
            } catch { return false }
        }
        reset(partition)
        partitions[partition].isUsed = true
        return true
    }

    /// Makes the state page one that can appear in several partitions: few guests need more than the first.
    private func shareState() throws(Errno) {
        guard !isStateShared else { return }
        let copy = UnsafeMutableRawPointer.allocate(byteCount: CPUState.byteCount, alignment: 64)
        defer { copy.deallocate() }
        copy.copyMemory(from: area, byteCount: CPUState.byteCount)
        try memory.share(0..<CPUState.byteCount)
        area.copyMemory(from: copy, byteCount: CPUState.byteCount)
        isStateShared = true
        // Others raise attention at any moment, and nothing else: what they may have stored to the old page is made up for.
        state.attention.pointee.store(1, ordering: .sequentiallyConsistent)
    }

    private var isStateShared = false

    /// What GS base must be while guest code runs.
    private(set) var activeBase: UnsafeMutableRawPointer

    // MARK: Data entries

    private static func index(_ linear: UInt64) -> Int {
        Int((linear >> 12) & ((1 << UInt64(indexBits)) - 1) | (linear >> 63) << UInt64(indexBits))
    }

    private static func emptyTag(_ index: Int) -> UInt64 { 0 &- (UInt64(index ^ 2) << 12) }

    private func words(_ partition: Int, _ offset: Int) -> UnsafeMutablePointer<UInt64> {
        (area + partition * Self.partitionBytes + offset).assumingMemoryBound(to: UInt64.self)
    }

    private static func number(_ mode: Mode, _ kind: Kind, _ index: Int) -> Int {
        (Int(mode.rawValue) * 2 + Int(kind.rawValue)) * entryCount + index
    }

    /// The tag of the data entry `number`.
    private func tag(_ partition: Int, _ number: Int) -> UnsafeMutablePointer<UInt64> {
        words(partition, Self.dataOffset + number / Self.entryCount * 2 * Self.arrayBytes)
            + number % Self.entryCount
    }

    /// Lets translated code reach the page of `linear` at `host`.
    func insert(
        _ linear: UInt64, _ mode: Mode, _ kind: Kind, host: UnsafeMutableRawPointer, isGlobal: Bool, pageShift: UInt8
    ) {
        let page = linear & ~0xFFF
        let index = Self.index(linear)
        let number = Self.number(mode, kind, index)
        let mark = partitions[current].marks + number
        if mark.pointee & EntryMark.logged == 0 {
            partitions[current].log[partitions[current].logCount] = UInt16(number)
            partitions[current].logCount += 1
        }
        mark.pointee = EntryMark.logged | (isGlobal ? EntryMark.global : 0)
        partitions[current].largeData.note(linear, pageShift: pageShift)
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
        let marks = partitions[partition].marks
        clearEntries(partition) { !keepingGlobal || marks[$0] & EntryMark.global == 0 }
        if partitions[partition].logCount == 0 { partitions[partition].largeData = LargeRegions() }
        dropJumps(partition, user: true, system: !keepingGlobal || partitions[partition].systemCode.hasLocalPages)
    }

    /// Empties the entries that were filled and that `isWanted`, given a number, chooses.
    @inline(__always)
    private func clearEntries(_ partition: Int, _ isWanted: (Int) -> Bool) {
        let log = partitions[partition].log
        var kept = 0
        for i in 0..<partitions[partition].logCount {
            let number = Int(log[i])
            if isWanted(number) {
                tag(partition, number).pointee = Self.emptyTag(number % Self.entryCount)
                partitions[partition].marks[number] = 0
            } else {
                log[kept] = UInt16(number)
                kept += 1
            }
        }
        partitions[partition].logCount = kept
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
        partitions[partition].marks.update(repeating: 0, count: Self.numberCount)
        resetJumps(partition)
    }

    // MARK: Flushes

    /// Forgets everything of every address space.
    func flushAll() {
        for i in partitions.indices where partitions[i].isUsed { flush(partition: i, keepingGlobal: false) }
    }

    func flushNonGlobal() {
        for i in partitions.indices where partitions[i].isUsed { flush(partition: i, keepingGlobal: true) }
    }

    /// Forgets the non-global entries of one address space.
    func flush(pcid: UInt16) {
        for i in partitions.indices where partitions[i].isUsed && partitions[i].pcid == pcid {
            flush(partition: i, keepingGlobal: true)
        }
    }

    /// Forgets one page, in one address space or (with global entries) in all. Of a large page all fragments go.
    func flush(page linear: UInt64, pcid: UInt16?) {
        let page = linear & ~0xFFF
        let index = Self.index(page)
        for i in partitions.indices where partitions[i].isUsed && (pcid == nil || partitions[i].pcid == pcid) {
            if partitions[i].largeData.mayHold(page) { dropLargeRegion(i, page) }
            for mode in Mode.allCases {
                for kind in [Kind.read, .write] {
                    let tags = words(i, Self.tagOffset(mode, kind))
                    if tags[index] == 0 &- page { tags[index] = Self.emptyTag(index) }
                }
            }
            let isInLargePage = partitions[i].largeCode.mayHold(page)
            dropJumps(
                i, user: isInLargePage || partitions[i].userCode.mayHold(page),
                system: isInLargePage || partitions[i].systemCode.mayHold(page))
        }
    }

    /// Clears every data entry in the 1 GiB around `page` that shares its large or huge region.
    private func dropLargeRegion(_ partition: Int, _ page: UInt64) {
        let shift: UInt64 = partitions[partition].largeData.mayHoldHuge(page) ? 30 : 21
        clearEntries(partition) { (0 &- tag(partition, $0).pointee) >> shift == page >> shift }
    }

    /// Empties all entries that allow writing.
    func dropWriteEntries() {
        for i in partitions.indices where partitions[i].isUsed {
            clearEntries(i) { $0 / Self.entryCount & 1 == Kind.write.rawValue }
        }
    }

    /// Makes the address space `pcid` the active one; the least recently used gives way to a new one.
    func activate(pcid: UInt16) {
        useCounter += 1
        // A processor that never ran keeps no memory for any: ``prepare()`` makes this one ready.
        guard partitions[current].isUsed else {
            partitions[current].pcid = pcid
            return
        }
        var victim = 0
        for i in partitions.indices {
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
        } else if !use(victim) {
            // Those that there are have to do.
            partitions.removeSubrange(victim...)
            return activate(pcid: pcid)
        }
        partitions[victim].pcid = pcid
        select(victim)
    }

    private func select(_ partition: Int) {
        current = partition
        activeBase = area + partition * Self.partitionBytes
        partitions[partition].lastUse = useCounter
        updateModeTag()
    }

    // MARK: Jump cache

    /// The block at `target` for `linear` in the current mode.
    func insertJump(_ linear: UInt64, target: UInt64) {
        noteCode(linear, isUser: isUserMode)
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

    /// How often ``dropAllJumps()`` was called.
    private(set) var jumpDropCount: UInt64 = 0

    /// Forgets all jumps and fetch translations of all address spaces.
    func dropAllJumps() {
        jumpDropCount &+= 1
        for i in partitions.indices where partitions[i].isUsed { dropJumps(i, user: true, system: true) }
    }

    /// Blocks of another translation mode are wanted from now on.
    func selectMode(number: UInt8, isUser: Bool) {
        modeNumber = number
        isUserMode = isUser
        updateModeTag()
    }

    /// Tells the modes that SYSCALL and SYSRET change between, and whether translated code may do that.
    func selectPrivilegeModes(_ modes: (supervisor: UInt8, user: UInt8)?, allowsCall: Bool, allowsReturn: Bool) {
        privilegeModes = modes
        self.allowsCall = allowsCall
        self.allowsReturn = allowsReturn
        updatePrivilegeChange()
    }

    /// What translated code adds to a target before it looks it up.
    var modeTag: UInt64 { state.base.load(fromByteOffset: CPUState.modeTagOffset, as: UInt64.self) }

    private func updateModeTag() {
        state.base.storeBytes(
            of: tag(ofMode: modeNumber, isUser: isUserMode), toByteOffset: CPUState.modeTagOffset, as: UInt64.self)
        updatePrivilegeChange()
    }

    private func tag(ofMode number: UInt8, isUser: Bool) -> UInt64 {
        (((generation(isUser: isUser) % 256) << 7 | UInt64(number)) &+ 1) << 48
    }

    private func generation(isUser: Bool) -> UInt64 {
        isUser ? partitions[current].userCode.generation : partitions[current].systemCode.generation
    }

    private func updatePrivilegeChange() {
        var change: UInt64 = 0
        if let privilegeModes {
            change =
                tag(ofMode: privilegeModes.user, isUser: true) &- tag(ofMode: privilegeModes.supervisor, isUser: false)
        }
        let base = state.base
        base.storeBytes(
            of: allowsCall ? 0 &- change : 0, toByteOffset: SystemMirror.callModeChange.offset, as: UInt64.self)
        base.storeBytes(
            of: allowsReturn ? change : 0, toByteOffset: SystemMirror.returnModeChange.offset, as: UInt64.self)
    }

    private func dropJumps(_ partition: Int, user: Bool, system: Bool) {
        guard user || system else { return }
        if user { partitions[partition].userCode.forget() }
        if system { partitions[partition].systemCode.forget() }
        if user && system { partitions[partition].largeCode = LargeRegions() }
        // A generation that comes again must find nothing of its predecessor.
        if user && partitions[partition].userCode.generation % 256 == 0
            || system && partitions[partition].systemCode.generation % 256 == 0
        {
            resetJumps(partition)
        }
        if partition == current { updateModeTag() }
    }

    private func resetJumps(_ partition: Int) {
        let tags = words(partition, Self.jumpTagsOffset)
        for i in 0..<Self.jumpEntryCount { tags[i] = 0 &- (UInt64(i ^ 2) << Self.jumpIndexShift) }
    }

    // MARK: Fetch translations

    /// The guest physical page that `linear` is fetched from, if known.
    func lookupFetch(_ linear: UInt64, isUser: Bool) -> UInt64? {
        let entry = partitions[current].fetchEntries[fetchIndex(linear)]
        guard entry.page == linear & ~0xFFF | (isUser ? 2 : 0), entry.generation == generation(isUser: isUser)
        else {
            return nil
        }
        return entry.physical
    }

    func insertFetch(_ linear: UInt64, isUser: Bool, translation: PageTranslation) {
        noteCode(linear, isUser: isUser)
        partitions[current].largeCode.note(linear, pageShift: translation.pageShift)
        if !isUser && !translation.isGlobal { partitions[current].systemCode.hasLocalPages = true }
        partitions[current].fetchEntries[fetchIndex(linear)] = FetchEntry(
            page: linear & ~0xFFF | (isUser ? 2 : 0), generation: generation(isUser: isUser),
            physical: translation.physical)
    }

    private func fetchIndex(_ linear: UInt64) -> Int {
        Int((linear >> 12 ^ linear >> 21) & UInt64(Self.fetchEntryCount - 1))
    }

    private func noteCode(_ linear: UInt64, isUser: Bool) {
        if isUser { partitions[current].userCode.note(linear) } else { partitions[current].systemCode.note(linear) }
    }
}
