import Addressing
import Host
import RCU
import SystemPackage

/// Changes of the slots.
extension GuestMemory {
    /// The end of what a process can address.
    private static var hostAddressLimit: UInt64 { 0x7fff_ffff_f000 }

    /// Creates, deletes, moves or changes the flags of a slot. The C request is `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// When the call returns no reader can find the old slot, and `flush` has had its translations dropped.
    ///
    /// - Parameter prepare: the last chance to refuse; the slots are then as before. For a deletion and a move it runs
    ///   after `flush`.
    /// - Parameter flush: called once, between the publication of the INVALID copy and the commit of a deletion or a move,
    ///   and after the commit of a change of flags; not for a creation. Must return only when no vCPU can use a translation
    ///   of the old slot any more.
    /// - Throws: `Errno.invalidArgument` if the id, the address space or a flag is unknown, an address or the size is not
    ///   whole pages or wraps, the size is too large, a slot to delete does not exist, or a slot would change its size, host
    ///   address or read-only flag. `Errno.fileExists` if the frames overlap those of another slot. `Errno.noMemory`. What
    ///   `prepare` throws.
    /// - Complexity: logarithmic in the number of slots, O(1) for a change of flags, and one or two grace periods.
    /// > Concurrency: takes the slots lock. The caller is not inside a read section.
    /// > Source: Linux, `__kvm_set_memory_region` and `kvm_set_memslot` (behaviour).
    public func setUserMemoryRegion(
        _ region: UserMemoryRegion,
        prepare: (MemorySlotChange) throws(Errno) -> Void = { _ in },
        flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let requested = try decode(region)
        try slotsLock.withLock { () throws(Errno) in
            let active = spaces[Int(requested.addressSpace)].active.load()!
            let old = active.pointee.find(id: requested.id)
            guard let change = try classify(requested, old: old, in: active) else { return }
            switch change {
            case .create(let new): try create(new, change, prepare)
            case .delete: try delete(old!, change, prepare, flush)
            case .move(_, let new): try move(old!, to: new, change, prepare, flush)
            case .flagsOnly(_, let new): try changeFlags(old!, to: new, change, prepare, flush)
            }
        }
    }

    // MARK: Decoding

    /// Checks what can be checked without looking at the slots.
    func decode(_ region: UserMemoryRegion) throws(Errno) -> MemorySlotDescription {
        let flags = MemorySlot.Flags(rawValue: region.flags)
        let addressSpace = region.slot >> 16
        let id = UInt16(truncatingIfNeeded: region.slot)
        let offsets = region.guestPhysicalAddress | region.memorySize | region.userspaceAddress
        guard flags.isSubset(of: .settable),
            addressSpace < addressSpaceCount, Int(id) < Self.userSlotCount,
            offsets & (pageSize - 1) == 0,
            region.memorySize <= Self.hostAddressLimit,
            region.userspaceAddress <= Self.hostAddressLimit - region.memorySize,
            !region.guestPhysicalAddress.addingReportingOverflow(region.memorySize).overflow,
            region.memorySize >> pageShift <= Self.maximumPageCount
        else { throw .invalidArgument }
        return MemorySlotDescription(
            id: id, addressSpace: UInt8(addressSpace),
            baseFrame: GuestPhysicalAddress(region.guestPhysicalAddress).frame,
            pageCount: region.memorySize >> pageShift, hostAddress: UInt(region.userspaceAddress), flags: flags)
    }

    /// What the request means for the slots of a set; nil if nothing.
    func classify(
        _ requested: MemorySlotDescription, old: MemorySlot.Pointer?, in set: UnsafePointer<MemorySlotSet>
    ) throws(Errno) -> MemorySlotChange? {
        guard requested.pageCount > 0 else {
            guard let old else { throw .invalidArgument }
            return .delete(old.pointee.description)
        }
        let change: MemorySlotChange
        if let old = old?.pointee.description {
            guard requested.hostAddress == old.hostAddress, requested.pageCount == old.pageCount,
                requested.flags.symmetricDifference(old.flags).isDisjoint(with: .readOnly)
            else { throw .invalidArgument }
            if requested.baseFrame == old.baseFrame {
                return requested.flags == old.flags ? nil : .flagsOnly(from: old, to: requested)
            }
            change = .move(from: old, to: requested)
        } else {
            guard !totalPageCount.addingReportingOverflow(requested.pageCount).overflow else { throw .invalidArgument }
            change = .create(requested)
        }
        guard !set.pointee.overlaps(requested.frames, except: requested.id) else { throw .fileExists }
        // KVM looks for overlaps first, so that a range that is also too high gives EEXIST.
        guard requested.frames.upperBound.value <= Self.frameCount else { throw .invalidArgument }
        return change
    }

    // MARK: The four changes

    // Each works on slots that no reader can reach, and allocates before it publishes anything.

    private func create(
        _ new: MemorySlotDescription, _ change: MemorySlotChange, _ prepare: (MemorySlotChange) throws(Errno) -> Void
    ) throws(Errno) {
        let working = try makeSlot(new, replacing: nil)
        do throws(Errno) {
            try reserve(new)
            try prepare(change)
        } catch {
            discard(working, replacing: nil)
            throw error
        }
        replace(nil, with: working)
        activate(nil, with: working)
        totalPageCount += new.pageCount
    }

    private func delete(
        _ old: MemorySlot.Pointer, _ change: MemorySlotChange, _ prepare: (MemorySlotChange) throws(Errno) -> Void,
        _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let working = try makeInvalid(old)
        invalidate(old, working)
        flush(change)
        do throws(Errno) { try prepare(change) } catch {
            activate(working, with: old)
            discard(working, replacing: old)
            throw error
        }
        replace(old, with: nil)
        activate(working, with: nil)
        totalPageCount -= old.pointee.pageCount
        discard(working, replacing: old)
        discard(old, replacing: nil)
    }

    private func move(
        _ old: MemorySlot.Pointer, to new: MemorySlotDescription, _ change: MemorySlotChange,
        _ prepare: (MemorySlotChange) throws(Errno) -> Void, _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let oldBitmap = old.pointee.dirtyBitmap
        let bitmap = try makeBitmap(for: new, replacing: oldBitmap)
        let working: MemorySlot.Pointer
        do throws(Errno) { working = try makeInvalid(old) } catch {
            if bitmap != oldBitmap { allocator.free(bitmap) }
            throw error
        }
        invalidate(old, working)
        flush(change)
        do throws(Errno) { try prepare(change) } catch {
            activate(working, with: old)
            discard(working, replacing: old)
            if bitmap != oldBitmap { allocator.free(bitmap) }
            throw error
        }
        // `old` is in the inactive set only, and no reader holds it: its memory becomes the moved slot.
        let inactive = spaces[Int(new.addressSpace)].inactive
        inactive.pointee.move(old) { slot in
            slot.pointee.move(to: new)
            slot.pointee.dirtyBitmap = bitmap
        }
        activate(working, with: old)
        // The old bitmap, if another or none took its place, goes with the copy that shares it.
        discard(working, replacing: old)
    }

    private func changeFlags(
        _ old: MemorySlot.Pointer, to new: MemorySlotDescription, _ change: MemorySlotChange,
        _ prepare: (MemorySlotChange) throws(Errno) -> Void, _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let working = try makeSlot(new, replacing: old)
        do throws(Errno) { try prepare(change) } catch {
            discard(working, replacing: old)
            throw error
        }
        replace(old, with: working)
        activate(old, with: working)
        flush(change)
        discard(old, replacing: working)
    }

    // MARK: Steps

    /// Publishes `working`, the INVALID copy, in the place of `old`, which stays in the inactive set.
    private func invalidate(_ old: MemorySlot.Pointer, _ working: MemorySlot.Pointer) {
        replace(old, with: working)
        swap(addressSpace: old.pointee.addressSpace)
    }

    /// Changes the inactive set.
    private func replace(_ old: MemorySlot.Pointer?, with new: MemorySlot.Pointer?) {
        let addressSpace = Int((old ?? new)!.pointee.addressSpace)
        let inactive = spaces[addressSpace].inactive
        inactive.pointee.replace(old, with: new)
    }

    /// Makes the inactive set active and repeats the change in the other: both are the same then, and readers of `old`
    /// are gone.
    private func activate(_ old: MemorySlot.Pointer?, with new: MemorySlot.Pointer?) {
        swap(addressSpace: (old ?? new)!.pointee.addressSpace)
        replace(old, with: new)
    }

    func swap(addressSpace: UInt8) {
        spaces[Int(addressSpace)].swap(domain: domain, stride: UInt64(addressSpaceCount))
    }

    // MARK: Memory

    /// A slot that no set holds. It shares the bitmap of `old` if both are logged.
    func makeSlot(
        _ description: MemorySlotDescription, replacing old: MemorySlot.Pointer?
    ) throws(Errno) -> MemorySlot.Pointer {
        let oldBitmap = old?.pointee.dirtyBitmap
        let bitmap = try makeBitmap(for: description, replacing: oldBitmap)
        guard let slot = allocator.makeSlot(description, dirtyBitmap: bitmap) else {
            if bitmap != oldBitmap { allocator.free(bitmap) }
            throw .noMemory
        }
        return slot
    }

    /// The INVALID copy of a slot.
    private func makeInvalid(_ slot: MemorySlot.Pointer) throws(Errno) -> MemorySlot.Pointer {
        var description = slot.pointee.description
        description.flags.insert(.invalid)
        return try makeSlot(description, replacing: slot)
    }

    /// Frees a slot that no reader can reach, and its bitmap unless it is also that of `other`.
    func discard(_ slot: MemorySlot.Pointer, replacing other: MemorySlot.Pointer?) {
        if slot.pointee.dirtyBitmap != other?.pointee.dirtyBitmap { allocator.free(slot.pointee.dirtyBitmap) }
        allocator.free(slot)
    }

    /// The bitmap of the slot that takes an old one's place: the same, a clean one or none.
    private func makeBitmap(
        for new: MemorySlotDescription, replacing old: UnsafeMutablePointer<UInt64>?
    ) throws(Errno) -> UnsafeMutablePointer<UInt64>? {
        guard new.flags.contains(.logDirtyPages) else { return nil }
        if let old { return old }
        guard let bitmap = allocator.makeBitmap(pageCount: new.pageCount) else { throw .noMemory }
        if logsStartSet.load(ordering: .relaxed) { MemorySlot.fill(bitmap, pageCount: new.pageCount) }
        return bitmap
    }

    /// Makes room for the slot's id.
    func reserve(_ slot: MemorySlotDescription) throws(Errno) {
        guard allocator.reserve(slot.id, in: spaces[Int(slot.addressSpace)].ids) else { throw .noMemory }
    }
}
