import Addressing
import RCU
import SystemPackage

/// Several changes of the slots as one.
///
/// The changes are made one after the other in the inactive set, where no reader sees them and where each can still be
/// refused: then those before it are undone there. One switch then publishes them all, so a reader sees the slots before
/// the first change or after the last; frames that are backed before and after are so all the time. No INVALID copy is
/// published: to readers such a slot is none, and a guest's access a device's.
///
/// Old slots remain in use until the switch is complete, that is until the grace period is over and `flush` has returned.
/// Only then are their dirty bitmaps read: a page is marked inside the read section that looked its slot up, so by then
/// every write through an old slot is in its bitmap. A slot that takes the place of another never shares its bitmap. So
/// each written page is in the bitmap returned or in that of a slot that is there afterwards.
extension GuestMemory {
    /// A change made in the inactive set.
    private struct Edit {
        let change: MemorySlotChange
        let old: MemorySlot.Pointer?
        let new: MemorySlot.Pointer?
    }

    /// Applies a list of changes of one address space in one switch, and returns what was written through the slots that
    /// they remove or replace.
    ///
    /// The outcome is that of the requests one after the other: a request may name a slot that one before it created, and
    /// use frames that one before it left.
    ///
    /// - Parameter prepare: the last chance to refuse, called once with what each request changes (nil for nothing), if
    ///   any changes something.
    /// - Parameter flush: called once, with the changes, after the switch, if it removed or replaced a slot. Must return only
    ///   when no vCPU can use a translation of an old slot any more.
    /// - Returns: for each request the bitmap of the slot as it was before, with one bit a page, if the request changed the
    ///   slot and it was logged; else nil. A slot that is still logged afterwards starts with a clean bitmap.
    /// - Throws: `Errno.invalidArgument` if not all requests name the same address space; what `setUserMemoryRegion` throws
    ///   for any of the requests; what `prepare` throws. Nothing is changed then.
    /// - Complexity: logarithmic in the number of slots for each request, linear in the bitmaps returned, and one grace
    ///   period.
    /// > Concurrency: as for `setUserMemoryRegion`.
    public func setUserMemoryRegions(
        _ regions: [UserMemoryRegion],
        prepare: ([MemorySlotChange?]) throws(Errno) -> Void = { _ in },
        flush: ([MemorySlotChange]) -> Void
    ) throws(Errno) -> [[UInt64]?] {
        var requests: [MemorySlotDescription] = []
        requests.reserveCapacity(regions.count)
        for region in regions { requests.append(try decode(region)) }
        guard let addressSpace = requests.first?.addressSpace else { return [] }
        guard requests.allSatisfy({ $0.addressSpace == addressSpace }) else { throw .invalidArgument }
        return try slotsLock.withLock { () throws(Errno) in
            let edits = try stage(requests, prepare)
            commit(edits.compactMap { $0 }, addressSpace: addressSpace, flush)
            return edits.map { edit in
                guard let old = edit?.old else { return nil }
                defer { discard(old, replacing: nil) }
                return old.pointee.dirtyBitmap.map { bitmap in
                    let count = MemorySlot.bitmapWordCount(pageCount: old.pointee.pageCount)
                    // ORDERING: relaxed; the grace period and the acknowledgements order all marks before this.
                    return (0..<count).map { MemorySlot.atomic(bitmap + $0).pointee.load(ordering: .relaxed) }
                }
            }
        }
    }

    /// Whether readers find every frame of a slot at the same host address and with the same flags as when it was
    /// `description`, so that translations through it still hold. False for a slot that is logged: its pages are to be marked
    /// elsewhere.
    ///
    /// - Complexity: logarithmic in the number of slots for each slot that has its frames now.
    public func hasSameMapping(as description: MemorySlotDescription) -> Bool {
        guard !description.flags.contains(.logDirtyPages) else { return false }
        return withReadSection {
            var frame = description.baseFrame
            while frame < description.frames.upperBound {
                guard let slot = lookup(frame, addressSpace: Int(description.addressSpace)),
                    slot.pointee.flags == description.flags,
                    UInt(bitPattern: slot.pointee.hostPointer(for: frame))
                        == description.hostAddress + UInt((frame.value - description.baseFrame.value) << pageShift)
                else { return false }
                frame = slot.pointee.endFrame
            }
            return true
        }
    }

    /// Makes the changes in the inactive set: all, or none.
    ///
    /// - Returns: one edit for each request; nil if it changes nothing.
    private func stage(
        _ requests: [MemorySlotDescription], _ prepare: ([MemorySlotChange?]) throws(Errno) -> Void
    ) throws(Errno) -> [Edit?] {
        let pageCount = totalPageCount
        var edits: [Edit?] = []
        edits.reserveCapacity(requests.count)
        do throws(Errno) {
            for request in requests { edits.append(try stage(request)) }
            let changes = edits.map { $0?.change }
            if changes.contains(where: { $0 != nil }) { try prepare(changes) }
        } catch {
            let inactive = spaces[Int(requests[0].addressSpace)].inactive
            for case let edit? in edits.reversed() {
                inactive.pointee.replace(edit.new, with: edit.old)
                if let new = edit.new { discard(new, replacing: nil) }
            }
            totalPageCount = pageCount
            throw error
        }
        return edits
    }

    private func stage(_ request: MemorySlotDescription) throws(Errno) -> Edit? {
        let inactive = spaces[Int(request.addressSpace)].inactive
        let old = inactive.pointee.find(id: request.id)
        guard let change = try classify(request, old: old, in: inactive) else { return nil }
        var new: MemorySlot.Pointer?
        if let description = change.new {
            try reserve(description)
            new = try makeSlot(description, replacing: nil)
        }
        inactive.pointee.replace(old, with: new)
        totalPageCount -= old?.pointee.pageCount ?? 0
        totalPageCount += change.new?.pageCount ?? 0
        return Edit(change: change, old: old, new: new)
    }

    /// Publishes the edits and repeats them in the other set. Cannot fail.
    private func commit(_ edits: [Edit], addressSpace: UInt8, _ flush: ([MemorySlotChange]) -> Void) {
        guard !edits.isEmpty else { return }
        swap(addressSpace: addressSpace)
        let inactive = spaces[Int(addressSpace)].inactive
        for edit in edits { inactive.pointee.replace(edit.old, with: edit.new) }
        if edits.contains(where: { $0.old != nil }) { flush(edits.map(\.change)) }
    }
}
