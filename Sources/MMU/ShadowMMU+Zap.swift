import Addressing
import GuestMemory

/// Taking translations away.
extension ShadowMMU {
    /// Unlinks a page. It is freed after a grace period; walkers that are in it find what they find.
    ///
    /// > Concurrency: the lock is held, as for all here that is not public.
    func zap(_ page: ShadowPage.Pointer) {
        for parent in tables.parents(of: page) { _ = tables.empty(parent.page, parent.index) }
        page.forEachUsed { empty(page, $0) }
        tables.remove(page)
        if page.pointee.isRoot { advanceRootGeneration() }
        counters.zappedPageCount += 1
        if page.pointee.isTracked, !tables.shadows(of: page.pointee.frame).contains(where: { $0.pointee.isTracked }) {
            tracked[page.pointee.frame] = nil
            publishTrackedCount()
        }
        page.pointee.newer = retired
        retired = page
    }

    /// Zaps a page to which no link leads any more, unless it is wanted all the same.
    func zapOrphan(_ page: ShadowPage.Pointer) {
        if !page.pointee.isRoot && !page.pointee.isPinned { zap(page) }
    }

    private func advanceRootGeneration() {
        // ORDERING: release, before the page is handed to `domain`; pairs with the walkers' acquire (invariant 1).
        published.rootGeneration.pointee.wrappingAdd(1, ordering: .releasing)
    }

    // MARK: Ranges

    /// Drops every translation of a range of guest frames, and every table that lies in it.
    ///
    /// - Parameter flush: must return only when every vCPU has left guest code and dropped its translations.
    /// - Complexity: linear in the number of entries dropped, and in the frames of the range or those mapped, whichever
    ///   are less.
    /// > Concurrency: any thread that is not inside guest code. May hold the slots lock. When it returns no vCPU can use
    /// > what was dropped.
    public func zap(frames: Range<UInt64>, flush: () -> Void) {
        withLock {
            counters.zapCount += 1
            forEachMemoryKey(overlapping: frames) { key in
                for entry in tables.memoryEntries[key] { empty(entry.page, entry.index) }
            }
            for frame in tableFrames(in: frames) {
                for page in tables.shadows(of: frame) where !isRetired(page, of: frame) { zap(page) }
            }
        }
        flush()
        domain.throttle()
    }

    /// Drops every translation to a range of host addresses; see ``zap(frames:flush:)``.
    public func zap(hostRange: Range<UInt>, flush: () -> Void) {
        for range in memory.withReadSection({ frames(backedBy: hostRange) }) { zap(frames: range) {} }
        flush()
    }

    /// The frames of all address spaces that a range of host addresses backs.
    /// > Concurrency: inside a read section of the memory.
    private func frames(backedBy hostRange: Range<UInt>) -> [Range<UInt64>] {
        var ranges: [Range<UInt64>] = []
        for space in 0..<memory.addressSpaceCount {
            memory.forEachSlot(overlapping: hostRange, addressSpace: space) { slot in
                let host = slot.pointee.hostRange.clamped(to: hostRange)
                let first = UInt64(host.lowerBound - slot.pointee.hostAddress) >> pageShift
                let last = UInt64(host.upperBound - 1 - slot.pointee.hostAddress) >> pageShift
                let base = slot.pointee.baseFrame.value
                ranges.append(base + first..<base + last + 1)
            }
        }
        return ranges
    }

    /// Drops everything; see ``zap(frames:flush:)``. Stores are caught no more.
    public func zapAll(flush: () -> Void) {
        withLock {
            counters.zapCount += 1
            counters.zappedPageCount += UInt64(tables.pageCount)
            let old = tables
            tables = ShadowTables()
            tracked = [:]
            publishTrackedCount()
            // Walkers look for their roots again; those under way are made to leave by `flush`.
            advanceRootGeneration()
            old.forEachPage { page in
                page.pointee.newer = retired
                retired = page
            }
        }
        flush()
        domain.throttle()
    }

    /// A page that was zapped with another of the same frame.
    private func isRetired(_ page: ShadowPage.Pointer, of frame: UInt64) -> Bool {
        !tables.shadows(of: frame).contains(page)
    }

    private func tableFrames(in frames: Range<UInt64>) -> [UInt64] {
        UInt64(frames.count) < UInt64(tables.frameCount)
            ? frames.filter { !tables.shadows(of: $0).isEmpty } : tables.frames.filter(frames.contains)
    }

    private func forEachMemoryKey(overlapping frames: Range<UInt64>, _ body: (UInt64) -> Void) {
        if UInt64(frames.count) >= UInt64(tables.memoryEntries.keyCount) {
            for key in Array(tables.memoryEntries.keys) where ReverseMap.frames(ofKey: key).overlaps(frames) {
                body(key)
            }
            return
        }
        for level in 1...3 {
            var frame = frames.lowerBound
            while frame < frames.upperBound {
                let key = ReverseMap.key(frame: frame, level: level)
                if tables.memoryEntries.contains(key) { body(key) }
                frame = ReverseMap.frames(ofKey: key).upperBound
            }
        }
    }

    // MARK: Writes

    /// Takes the permission to write a page of the host's from all entries, at whatever frames it is shown, and has it mapped
    /// by small pages from now on.
    ///
    /// The caller has said why where `install` looks, and then has the vCPUs drop their write entries (invariant 5).
    /// - Parameter hostPage: the page's number.
    /// > Concurrency: any thread; not inside a read section of the memory.
    public func revokeWrites(hostPage: UInt64) {
        memory.withReadSection {
            withLock {
                // A slot that comes later finds this.
                for index in mixedHostRegions.indices {
                    let region = hostPage >> UInt64(9 * (index + 1))
                    let known = mixedHostRegions[index][region] ?? hostPage...hostPage
                    mixedHostRegions[index][region] =
                        min(known.lowerBound, hostPage)...max(known.upperBound, hostPage)
                }
                let first = UInt(hostPage) << UInt(pageShift)
                for frames in frames(backedBy: first..<first + UInt(pageSize)) { dropWrites(frames.lowerBound) }
            }
        }
    }

    /// Takes the permission to write a frame from all entries, and has it mapped by small pages from now on: its table is
    /// to be tracked.
    func forbidWrites(_ frame: UInt64) {
        mixedRegions[0].insert(frame >> 9)
        mixedRegions[1].insert(frame >> 18)
        dropWrites(frame)
    }

    private func dropWrites(_ frame: UInt64) {
        forEachMemoryKey(overlapping: frame..<frame + 1) { key in
            for entry in tables.memoryEntries[key] {
                if entry.page.pointee.role.level == 1 {
                    entry.page.set(entry.index, entry.page.value(entry.index).withoutWrites)
                } else {
                    empty(entry.page, entry.index)
                }
            }
        }
    }

    /// Takes the permission to write from all entries of a range of frames: their slot's log was read, or begins.
    ///
    /// The caller then has the vCPUs drop their write entries.
    /// > Concurrency: any thread; may hold the slots lock.
    public func revokeWrites(frames: Range<UInt64>) {
        withLock {
            forEachMemoryKey(overlapping: frames) { key in
                for entry in tables.memoryEntries[key] {
                    entry.page.set(entry.index, entry.page.value(entry.index).withoutWrites)
                }
            }
        }
    }
}
