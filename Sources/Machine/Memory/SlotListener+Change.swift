import AddressSpace
import KVMInterface
import SystemPackage

/// A change of one slot: it is made, deleted, or gets other flags.
struct SlotEdit {
    let old: MappedSlot?
    let new: MappedSlot?

    /// The request that makes the change. One of `old` and `new` is there.
    var request: UserMemoryRegion { new?.request ?? old?.deletion ?? UserMemoryRegion() }

    /// The edit that takes it back.
    var undo: SlotEdit { SlotEdit(old: new, new: old) }

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

// All of these with the machine lock and the slots lock held.
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
            limit: slotLimit, used: change.slots.values.joined().lazy.map(\.number))
        for range in added {
            for part in MappedSlot.parts(of: range) {
                guard let number = numbers.take() else { throw .noSpace }
                let slot = MappedSlot(number: number, addresses: part, range: range)
                change.edits.append(SlotEdit(old: nil, new: slot))
                change.slots[range.addresses.start, default: []].append(slot)
            }
        }
        for range in relogged {
            guard let old = change.slots[range.addresses.start] else { continue }
            let new = old.map { MappedSlot(number: $0.number, addresses: $0.addresses, range: range) }
            for (old, new) in zip(old, new) { change.edits.append(SlotEdit(old: old, new: new)) }
            change.slots[range.addresses.start] = new
        }
        return change
    }

    /// Makes the change in one request, or in none if nothing that slots map is part of it.
    func applyAtOnce(_ change: SlotChange) throws(Errno) {
        if !change.edits.isEmpty {
            let bitmaps = try blocker.withMachineRequest { () throws(Errno) in
                try target.setUserMemoryRegions(
                    change.edits.map(\.request),
                    dirtyPageCounts: change.edits.map { $0.dropsLog ? $0.old?.pageCount ?? 0 : 0 })
            }
            for (edit, bitmap) in zip(change.edits, bitmaps) { edit.old?.record(bitmap) }
        }
        slots = change.slots
    }

    /// Makes one edit after the other, and on an error takes back those made.
    func applyInOrder(_ change: SlotChange) throws(Errno) {
        for (index, edit) in change.edits.enumerated() {
            do throws(Errno) {
                try make(edit)
            } catch {
                for edit in change.edits[..<index].reversed() {
                    do throws(Errno) { try make(edit.undo) } catch { repairs.append(edit.undo) }
                }
                throw error
            }
        }
        slots = change.slots
    }

    func make(_ edit: SlotEdit) throws(Errno) {
        try blocker.withMachineRequest { () throws(Errno) in
            if edit.dropsLog, let old = edit.old { try fetchDirtyPages(of: old) }
            try target.setUserMemoryRegion(edit.request)
        }
    }
}
