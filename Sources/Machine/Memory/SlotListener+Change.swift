import AddressSpace
import KVMInterface
import SystemPackage

/// A change of one slot.
struct SlotEdit {
    let old: MappedSlot?
    let new: MappedSlot?

    /// The request that makes the change. One of `old` and `new` is there.
    var request: UserMemoryRegion { new?.request ?? old?.deletion ?? UserMemoryRegion() }

    /// The request that takes it back.
    var undo: UserMemoryRegion { old?.request ?? new?.deletion ?? UserMemoryRegion() }

    /// Whether what was written through the old slot has to be fetched.
    var dropsLog: Bool { old?.range.logsDirtyPages ?? false }
}

/// All that a commit does.
struct SlotChange {
    var edits: [SlotEdit] = []
    /// What follows if all edits are made.
    var slots: [UInt64: [MappedSlot]]

    /// Whether a slot goes whose written pages are recorded.
    var removesLoggedSlots: Bool { edits.contains { $0.dropsLog && $0.new == nil } }
}

// All of these with the slots lock held.
extension SlotListener {
    /// The edits that the collected changes ask for: deletions, additions, changes of logging.
    ///
    /// - Throws: `Errno.noSpace` if there are not enough slots.
    func makeChange() throws(Errno) -> SlotChange {
        var change = SlotChange(slots: slots)
        for range in deleted {
            for slot in change.slots.removeValue(forKey: range.addresses.start) ?? [] {
                change.edits.append(SlotEdit(old: slot, new: nil))
            }
        }
        // The numbers of slots that go can be used again at once.
        var numbers = SlotNumbers(
            limit: slotLimit, used: (change.slots.values.joined() + strays).map(\.number))
        let wanted =
            missing.filter { slot in !deleted.contains { $0.isSame(as: slot.range) } }.map { ($0.addresses, $0.range) }
            + added.flatMap { range in MappedSlot.parts(of: range).map { ($0, range) } }
        for (addresses, range) in wanted {
            guard let number = numbers.take() else { throw .noSpace }
            let slot = MappedSlot(number: number, addresses: addresses, range: range)
            change.edits.append(SlotEdit(old: nil, new: slot))
            change.slots[range.addresses.start, default: []].append(slot)
        }
        for range in relogged {
            guard let old = change.slots[range.addresses.start] else { continue }
            let new = old.map { MappedSlot(number: $0.number, addresses: $0.addresses, range: range) }
            for (old, new) in zip(old, new) { change.edits.append(SlotEdit(old: old, new: new)) }
            change.slots[range.addresses.start] = new
        }
        return change
    }

    /// Makes the change in one request.
    func applyAtOnce(_ change: SlotChange) throws(Errno) {
        let bitmaps = try blocker.withMachineRequest { () throws(Errno) in
            try target.setUserMemoryRegions(
                change.edits.map(\.request),
                dirtyPageCounts: change.edits.map { $0.dropsLog ? $0.old?.pageCount ?? 0 : 0 })
        }
        for (edit, bitmap) in zip(change.edits, bitmaps) { edit.old?.record(bitmap) }
        (slots, missing) = (change.slots, [])
    }

    /// Makes one edit after the other, and on an error takes back those made.
    func applyInOrder(_ change: SlotChange) throws(Errno) {
        try blocker.withMachineRequest { () throws(Errno) in
            for (index, edit) in change.edits.enumerated() {
                do throws(Errno) {
                    if edit.dropsLog, let old = edit.old { try fetchDirtyPages(of: old) }
                    try target.setUserMemoryRegion(edit.request)
                } catch {
                    for edit in change.edits[..<index].reversed() { takeBack(edit) }
                    throw error
                }
            }
        }
        (slots, missing) = (change.slots, [])
    }

    /// Deletes slots that an earlier commit could not.
    func deleteStrays() throws(Errno) {
        try blocker.withMachineRequest { () throws(Errno) in
            while let slot = strays.last {
                if slot.range.logsDirtyPages { try fetchDirtyPages(of: slot) }
                try target.setUserMemoryRegion(slot.deletion)
                strays.removeLast()
            }
        }
    }

    /// Undoes an edit; what cannot be undone is remembered.
    private func takeBack(_ edit: SlotEdit) {
        do throws(Errno) {
            if let new = edit.new, new.range.logsDirtyPages { try fetchDirtyPages(of: new) }
            try target.setUserMemoryRegion(edit.undo)
        } catch {
            switch (edit.old, edit.new) {
            case (let old?, nil):
                slots[old.range.addresses.start]?.removeAll { $0.number == old.number }
                missing.append(old)
            case (nil, let new?): strays.append(new)
            // The slot is there; only whether it is logged differs.
            default: break
            }
        }
    }
}
