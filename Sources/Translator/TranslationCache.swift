import Host
import Synchronization
import SystemPackage
import X86

/// The translated blocks of one machine, shared by its processors.
///
/// Blocks are keyed by the guest physical address of their first byte and their translation mode, which tells the address
/// space, and belong to the page (or two) of the host's memory their bytes lie in: guests can reach the same memory at
/// several addresses, and through slots of both address spaces, and a store to it counts whatever way it takes. Direct links
/// exist only within a page, so dropping all blocks of a page at once leaves no link into a dropped block; jump caches are
/// dropped by their owners on request. Memory of dropped blocks is not reused until the whole cache is reset, which happens
/// while no processor runs guest code.
///
/// A page of the host's, named by its number, with blocks is *guarded*: no processor holds a software-TLB entry that lets
/// translated code write to it. The first translation marks the page, has all processors drop their write entries, and reads
/// the bytes after they acknowledged.
///
/// > Concurrency: `lock` guards everything but the elements of the chunked arrays, which are immutable once indexed.
/// Nobody waits for another processor while holding it.
public final class TranslationCache: @unchecked Sendable {
    let buffer: CodeBuffer
    let trampolines: Trampolines
    private let lock = FutexLock()

    private var used: Int
    private let blocks: ChunkedArray<CompactBlock>
    /// The guest's second pages of the blocks that span two, by block number.
    private var secondPages: [Int32: UInt64] = [:]
    private let instructions = InstructionTable()
    private let sites: ChunkedArray<InstructionSite>
    private let linkSites: ChunkedArray<CompactLinkSite>
    private let points: ChunkedArray<CompactPoint>
    /// Blocks by their keys, with open addressing: one more than a block's number, or 0.
    private let table: UnsafeMutablePointer<Int32>
    private let tableMemory: MemoryMapping
    private static let tableCount = 1 << 18
    private var pages: [UInt64: CodePage] = [:]
    private var modes: [TranslationMode] = []
    /// Counts resets. A processor that sees a new value forgets its jumps before it enters a block.
    let epoch = Atomic<UInt64>(0)
    /// Counts translations, each of which may change a page's ``CodeSample``.
    let codeCount = Atomic<UInt64>(0)

    /// One block.
    struct Block {
        var address: UInt64
        var modeNumber: UInt8
        var form: BlockTranslator.Form
        var physical: UInt64
        /// The guest's page with the second part of a spanning instruction, or ``noPage``.
        var secondPage: UInt64

        static var noPage: UInt64 { ~0 }
    }

    /// A page of the host's with translated code.
    private struct CodePage {
        var blocks: [Int32] = []
        /// 64-byte pieces that blocks were translated from.
        var pieces: UInt64 = 0
        /// A sum over the bytes of those pieces, as they were then.
        var checksum: UInt64 = 0
        var isGuarded = false
        /// Stores since the last translation that hit no block.
        var idleStoreCount = 0
    }

    /// A page whose blocks were dropped stays guarded, because code that changes itself is translated again soon; after so
    /// many stores that hit no block it is data, and stores go through the software TLB again.
    private static var idleStoreLimit: Int { 32 }

    /// - Parameter byteCount: room for translated code; memory is used as code is translated.
    public init(byteCount: Int = 64 << 20) throws(Errno) {
        buffer = try CodeBuffer(byteCount: byteCount)
        trampolines = Trampolines(into: buffer)
        used = trampolines.byteCount
        blocks = ChunkedArray(capacity: 1 << 20)
        sites = ChunkedArray(capacity: 1 << 19)
        linkSites = ChunkedArray(capacity: 1 << 21)
        points = ChunkedArray(capacity: 1 << 23)
        tableMemory = try .anonymous(byteCount: Self.tableCount * MemoryLayout<Int32>.stride)
        table = tableMemory.baseAddress.assumingMemoryBound(to: Int32.self)
    }

    // MARK: Modes

    /// The number of `mode`, below 127; nil when there are too many and the cache has to be reset.
    func number(of mode: TranslationMode) -> UInt8? {
        lock.lock()
        defer { lock.unlock() }
        if let index = modes.firstIndex(of: mode) { return UInt8(index) }
        guard modes.count < 127 else { return nil }
        modes.append(mode)
        return UInt8(modes.count - 1)
    }

    // MARK: Lookup

    private func slot(_ physical: UInt64, _ modeNumber: UInt8, _ form: BlockTranslator.Form) -> Int {
        let formBits: UInt64 =
            switch form {
            case .block: 0
            case .step: 1
            case .bounce: 2
            case .plain: 3
            }
        let key = (physical << 10) ^ UInt64(modeNumber) << 2 ^ formBits
        return Int((key &* 0x9E37_79B9_7F4A_7C15) >> 46)
    }

    /// The valid block for a key. `secondPage` is asked for only if the block spans two pages.
    func find(
        physical: UInt64, modeNumber: UInt8, form: BlockTranslator.Form
    ) -> Block? {
        lock.lock()
        defer { lock.unlock() }
        return findLocked(physical, modeNumber, form)
    }

    private func findLocked(_ physical: UInt64, _ modeNumber: UInt8, _ form: BlockTranslator.Form) -> Block? {
        var i = slot(physical, modeNumber, form)
        while table[i] != 0 {
            let number = table[i] - 1
            let block = blocks.pointer(at: Int(number))
            if block.pointee.physical == physical && block.pointee.modeNumber == modeNumber
                && block.pointee.form == form
            {
                guard block.pointee.isValid else { return nil }
                return Block(
                    address: block.pointee.address(start: buffer.addresses.lowerBound), modeNumber: modeNumber,
                    form: form,
                    physical: physical,
                    secondPage: block.pointee.spansPages ? secondPages[number] ?? Block.noPage : Block.noPage)
            }
            i = (i + 1) & (Self.tableCount - 1)
        }
        return nil
    }

    private func insertLocked(_ index: Int32) {
        let block = blocks.pointer(at: Int(index)).pointee
        var i = slot(block.physical, block.modeNumber, block.form)
        while table[i] != 0 {
            let other = blocks.pointer(at: Int(table[i] - 1)).pointee
            if other.physical == block.physical && other.modeNumber == block.modeNumber && other.form == block.form {
                break
            }
            i = (i + 1) & (Self.tableCount - 1)
        }
        table[i] = index + 1
    }

    // MARK: Guarded pages

    // Pages are named by the numbers of the host's.

    /// Whether blocks may be translated from `page`.
    func isGuarded(_ page: UInt64) -> Bool {
        lock.lock()
        defer { lock.unlock() }
        return pages[page]?.isGuarded ?? false
    }

    /// Marks `page` so that nobody gets a new write entry for it.
    func mark(_ page: UInt64) {
        lock.lock()
        defer { lock.unlock() }
        if pages[page] == nil { pages[page] = CodePage() }
    }

    /// All processors have dropped their write entries since ``mark(_:)``.
    func guardPage(_ page: UInt64) {
        lock.lock()
        defer { lock.unlock() }
        pages[page]?.isGuarded = true
    }

    /// Whether translated code must not write to `page`.
    public func isMarked(_ page: UInt64) -> Bool {
        lock.lock()
        defer { lock.unlock() }
        return pages[page] != nil
    }

    /// Stores to a page that may hold translated code.
    /// - Returns: whether blocks were dropped, so that every processor has to drop its jump cache.
    func store(to page: UInt64, offset: Int, byteCount: Int, _ body: () -> Void) -> Bool {
        lock.lock()
        defer { lock.unlock() }
        body()
        guard byteCount > 0, let entry = pages[page] else { return false }
        let first = offset >> 6
        let last = (offset + byteCount - 1) >> 6
        let mask = (~UInt64(0) >> UInt64(63 - (last - first))) << UInt64(first)
        guard entry.pieces & mask != 0 else {
            if entry.blocks.isEmpty && entry.isGuarded {
                pages[page]?.idleStoreCount += 1
                if entry.idleStoreCount >= Self.idleStoreLimit { pages[page] = nil }
            }
            return false
        }
        dropLocked(entry)
        pages[page] = CodePage(isGuarded: entry.isGuarded)
        return true
    }

    /// What ``dropOutdated(_:)`` found.
    enum PageState {
        /// The code is that of the page, of which this tells.
        case current(CodeSample)
        /// Blocks were dropped, so that every processor has to drop its jump cache.
        case outdated
        /// The page has code but no memory any more.
        case missing
    }

    /// Drops the blocks of a page whose bytes are others than those that were translated.
    ///
    /// Guests' stores are seen as they happen; this finds those of the client, which loads programs and performs the transfers
    /// of devices.
    /// - Parameter bytes: the page.
    func dropOutdated(_ bytes: UnsafeMutableRawPointer) -> PageState {
        lock.lock()
        defer { lock.unlock() }
        guard let entry = pages[bytes.pageNumber], entry.pieces != 0 else {
            return .current(CodeSample(page: bytes, pieces: 0, checksum: 0))
        }
        let sample = CodeSample(page: bytes, pieces: entry.pieces, checksum: entry.checksum)
        switch sample.isCurrent {
        case true?: return .current(sample)
        case nil: return .missing
        case false?: break
        }
        dropLocked(entry)
        pages[bytes.pageNumber] = CodePage(isGuarded: entry.isGuarded)
        return .outdated
    }

    /// Makes every block of a page invalid.
    private func dropLocked(_ page: CodePage) {
        for index in page.blocks { blocks.pointer(at: Int(index)).pointee.invalidate() }
    }

    /// Drops the blocks of a range of pages.
    ///
    /// - Returns: whether there were any, so that every processor has to drop its jump cache.
    /// - Complexity: linear in the number of pages of the range or of those with code, whichever is less.
    public func drop(_ range: Range<UInt64>) -> Bool {
        lock.lock()
        defer { lock.unlock() }
        guard !pages.isEmpty else { return false }
        var hasDropped = false
        func drop(_ page: UInt64) {
            guard let entry = pages.removeValue(forKey: page) else { return }
            dropLocked(entry)
            hasDropped = hasDropped || !entry.blocks.isEmpty
        }
        if range.count < pages.count {
            for page in range { drop(page) }
        } else {
            for page in pages.keys.filter(range.contains) { drop(page) }
        }
        return hasDropped
    }

    // MARK: Translation

    /// How much code is written before its writable pages are given back.
    private static var releaseByteCount: Int { 1 << 20 }

    /// Whether another block might not fit.
    var isNearlyFull: Bool {
        lock.lock()
        defer { lock.unlock() }
        return buffer.byteCount - used < 1 << 18 || !blocks.hasRoom(for: 16) || blocks.count > Self.tableCount / 2
            || !sites.hasRoom(for: 256) || !linkSites.hasRoom(for: 512) || !points.hasRoom(for: 4096)
            || modes.count > 120
    }

    /// Forgets everything. > Concurrency: no other processor runs guest code.
    public func reset() {
        lock.lock()
        defer { lock.unlock() }
        used = trampolines.byteCount
        buffer.discard(from: used)
        blocks.removeAll()
        secondPages.removeAll()
        instructions.removeAll()
        sites.removeAll()
        linkSites.removeAll()
        points.removeAll()
        pages.removeAll()
        modes.removeAll()
        // Cannot fail: the range is the whole mapping.
        try? tableMemory.discardPages(0..<tableMemory.byteCount)
        epoch.add(1, ordering: .releasing)
    }

    /// Translates a block from the bytes of one guarded page, or of two if its only instruction spans them.
    /// - Parameters:
    ///   - secondPage: the guest's second page, or ``Block/noPage``.
    ///   - hostPages: the numbers of the host's pages.
    ///   - copy: where `decode` puts copies of the pages, one behind the other, or of the second its first 64 bytes.
    ///   - decode: called with stores to the pages kept out; nil if they cannot be read.
    /// - Returns: nil if the page is no longer guarded, or cannot be read.
    func translate(
        physical: UInt64, secondPage: UInt64, hostPages: (first: UInt64, second: UInt64), copy: UnsafeRawPointer,
        mode: TranslationMode, modeNumber: UInt8, otherModeNumber: UInt8?, form: BlockTranslator.Form,
        decode: () -> (instructions: [ClassifiedInstruction], spansNext: Bool)?
    ) -> Block? {
        lock.lock()
        defer { lock.unlock() }
        guard pages[hostPages.first]?.isGuarded ?? false else { return nil }
        if secondPage != Block.noPage && !(pages[hostPages.second]?.isGuarded ?? false) { return nil }
        // The bytes are read while the lock keeps stores to the page out.
        guard let (decoded, spansNext) = decode() else { return nil }
        var translator = BlockTranslator(
            emitter: buffer.emitter(from: used), mode: mode, form: form, startOffset: Int(physical & 0xFFF),
            records: BlockRecords(),
            bases: BlockTranslator.RecordBases(
                instructions: sites.count, linkSites: linkSites.count,
                otherModeNumber: otherModeNumber, modeNumber: modeNumber, trampolines: trampolines))
        let address = translator.e.address
        translator.translate(decoded, spans: spansNext || secondPage != Block.noPage)
        precondition(!translator.e.hasOverflowed, "a block outgrew the room kept for it")
        let byteCount = Int(translator.e.address - address)
        let before = used / Self.releaseByteCount
        used += byteCount
        if used / Self.releaseByteCount != before {
            buffer.release(before * Self.releaseByteCount..<(before + 1) * Self.releaseByteCount)
        }
        let firstPoint = points.count
        for point in translator.records.points { points.append(CompactPoint(point, start: address)) }
        for record in translator.records.instructions {
            sites.append(
                InstructionSite(number: instructions.number(of: record, mode.codeSize), offset: record.offset))
        }
        for site in translator.records.linkSites {
            linkSites.append(CompactLinkSite(site, start: buffer.addresses.lowerBound))
        }
        let block = Block(
            address: address, modeNumber: modeNumber, form: form, physical: physical, secondPage: secondPage)
        let index = Int32(blocks.count)
        blocks.append(
            CompactBlock(
                block, byteCount: byteCount, firstPoint: firstPoint, pointCount: translator.records.points.count,
                start: buffer.addresses.lowerBound))
        insertLocked(index)
        let end = decoded.reduce(0) { max($0, $1.offset + Int($1.decoded.length)) }
        note(index, hostPages.first, copy, from: Int(physical & 0xFFF), to: min(end, 4096))
        if secondPage != Block.noPage {
            secondPages[index] = secondPage
            note(index, hostPages.second, copy + 4096, from: 0, to: 16)
        }
        return block
    }

    /// Enters a block into the list of a page, of which `copy` is one.
    private func note(_ block: Int32, _ page: UInt64, _ copy: UnsafeRawPointer, from start: Int, to end: Int) {
        let first = start >> 6
        let last = max(start, end - 1) >> 6
        let pieces = (~UInt64(0) >> UInt64(63 - (last - first))) << UInt64(first)
        var entry = pages[page] ?? CodePage()
        // Moved, not copied: the array of blocks has one owner.
        pages[page] = nil
        entry.blocks.append(block)
        entry.checksum &+= CodeChecksum.of(copy, pieces: pieces & ~entry.pieces) ?? 0
        entry.pieces |= pieces
        pages[page] = entry
        // ORDERING: release, so that who sees the count finds the page's new sum.
        codeCount.wrappingAdd(1, ordering: .releasing)
    }

    // MARK: Inspection

    /// What the cache holds; `bytes` counts from the last reset on, dropped blocks among them.
    public var counts: (blocks: Int, bytes: Int, pages: Int, resets: UInt64) {
        lock.lock()
        defer { lock.unlock() }
        return (blocks.count, used - trampolines.byteCount, pages.count, epoch.load(ordering: .relaxed))
    }

    // MARK: Records

    /// The instruction that is executed at a place, and its offset from the page base.
    func instruction(at index: Int) -> (instruction: UnsafeMutablePointer<SwiftInstruction>, offset: Int) {
        let site = sites.pointer(at: index).pointee
        return (instructions.pointer(at: site.number), Int(site.offset))
    }

    func linkSite(at index: Int) -> BlockRecords.LinkSite {
        linkSites.pointer(at: index).pointee.site(start: buffer.addresses.lowerBound)
    }

    /// Points a link at `target`.
    func link(_ site: BlockRecords.LinkSite, to target: UInt64) { buffer.patch(site.place, to: target) }

    /// The page offset of the guest instruction whose code holds executable address `address`.
    func guestOffset(at address: UInt64) -> UInt16? {
        lock.lock()
        defer { lock.unlock() }
        // Blocks and points are in address order.
        let start = buffer.addresses.lowerBound
        var low = 0
        var high = blocks.count
        while low < high {
            let middle = (low + high) / 2
            if blocks.pointer(at: middle).pointee.address(start: start) <= address {
                low = middle + 1
            } else {
                high = middle
            }
        }
        guard low > 0 else { return nil }
        let block = blocks.pointer(at: low - 1).pointee
        let first = block.address(start: start)
        guard address < first + UInt64(block.byteCount) else { return nil }
        var result: UInt16?
        for i in 0..<Int(block.pointCount) {
            let point = points.pointer(at: Int(block.firstPoint) + i).pointee
            if first + point.distance > address { break }
            result = point.guestOffset
        }
        return result
    }
}
