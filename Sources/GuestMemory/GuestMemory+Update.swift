import Addressing
import Glibc
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
    /// > Concurrency: takes the slots lock. The caller is not an on-line reader of the domain (`RCUReader.whileOffline`).
    /// > Source: Linux, `__kvm_set_memory_region` and `kvm_set_memslot` (behaviour).
    public func setUserMemoryRegion(
        _ region: UserMemoryRegion,
        prepare: (MemorySlotChange) throws(Errno) -> Void = { _ in },
        flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let requested = try decode(region)
        try slotsLock.withLock { () throws(Errno) in
            let old = spaces[Int(requested.addressSpace)].active.load()!.pointee.find(id: requested.id)
            guard let change = try classify(requested, old: old) else { return }
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
    private func decode(_ region: UserMemoryRegion) throws(Errno) -> MemorySlotDescription {
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

    /// What the request means for the slots as they are; nil if nothing.
    private func classify(
        _ requested: MemorySlotDescription, old: MemorySlot.Pointer?
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
        let active = spaces[Int(requested.addressSpace)].active.load()!
        guard !active.pointee.overlaps(requested.frames, except: requested.id) else { throw .fileExists }
        // KVM looks for overlaps first, so that a range that is also too high gives EEXIST.
        guard requested.frames.upperBound.value <= Self.frameCount else { throw .invalidArgument }
        return change
    }

    // MARK: The four changes

    // Each works on slots that no reader can reach, and allocates before it publishes anything.

    private func create(
        _ new: MemorySlotDescription, _ change: MemorySlotChange, _ prepare: (MemorySlotChange) throws(Errno) -> Void
    ) throws(Errno) {
        let bitmap = try makeBitmap(for: new)
        do throws(Errno) { try prepare(change) } catch {
            bitmap.map(Self.freeBitmap)
            throw error
        }
        let working = MemorySlot.Pointer.make(MemorySlot(new, dirtyBitmap: bitmap))
        replace(nil, with: working)
        activate(nil, with: working)
        totalPageCount += new.pageCount
    }

    private func delete(
        _ old: MemorySlot.Pointer, _ change: MemorySlotChange, _ prepare: (MemorySlotChange) throws(Errno) -> Void,
        _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let working = invalidate(old)
        flush(change)
        do throws(Errno) { try prepare(change) } catch {
            restore(old, from: working)
            throw error
        }
        replace(old, with: nil)
        activate(working, with: nil)
        totalPageCount -= old.pointee.pageCount
        old.pointee.dirtyBitmap.map(Self.freeBitmap)
        old.free()
        working.free()
    }

    private func move(
        _ old: MemorySlot.Pointer, to new: MemorySlotDescription, _ change: MemorySlotChange,
        _ prepare: (MemorySlotChange) throws(Errno) -> Void, _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let oldBitmap = old.pointee.dirtyBitmap
        let bitmap = try bitmap(for: new, replacing: oldBitmap)
        let working = invalidate(old)
        flush(change)
        do throws(Errno) { try prepare(change) } catch {
            restore(old, from: working)
            if bitmap != oldBitmap { bitmap.map(Self.freeBitmap) }
            throw error
        }
        // `old` is in the inactive set only, and no reader holds it: its memory becomes the moved slot.
        let inactive = spaces[Int(new.addressSpace)].inactive
        inactive.pointee.erase(old)
        old.pointee.move(to: new)
        old.pointee.dirtyBitmap = bitmap
        inactive.pointee.insert(old)
        activate(working, with: old)
        if bitmap != oldBitmap { oldBitmap.map(Self.freeBitmap) }
        working.free()
    }

    private func changeFlags(
        _ old: MemorySlot.Pointer, to new: MemorySlotDescription, _ change: MemorySlotChange,
        _ prepare: (MemorySlotChange) throws(Errno) -> Void, _ flush: (MemorySlotChange) -> Void
    ) throws(Errno) {
        let oldBitmap = old.pointee.dirtyBitmap
        let bitmap = try bitmap(for: new, replacing: oldBitmap)
        do throws(Errno) { try prepare(change) } catch {
            if bitmap != oldBitmap { bitmap.map(Self.freeBitmap) }
            throw error
        }
        let working = MemorySlot.Pointer.make(MemorySlot(new, dirtyBitmap: bitmap))
        replace(old, with: working)
        activate(old, with: working)
        flush(change)
        if bitmap != oldBitmap { oldBitmap.map(Self.freeBitmap) }
        old.free()
    }

    // MARK: Steps

    /// Publishes an INVALID copy in the place of `old`, which stays in the inactive set. Returns the copy.
    private func invalidate(_ old: MemorySlot.Pointer) -> MemorySlot.Pointer {
        var description = old.pointee.description
        description.flags.insert(.invalid)
        let working = MemorySlot.Pointer.make(MemorySlot(description, dirtyBitmap: old.pointee.dirtyBitmap))
        replace(old, with: working)
        swap(addressSpace: description.addressSpace)
        return working
    }

    /// Publishes `old` again after `invalidate`, and frees the copy.
    private func restore(_ old: MemorySlot.Pointer, from working: MemorySlot.Pointer) {
        activate(working, with: old)
        working.free()
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

    private func swap(addressSpace: UInt8) {
        spaces[Int(addressSpace)].swap(domain: domain, stride: UInt64(addressSpaceCount))
    }

    // MARK: Memory

    /// The bitmap of the slot that takes an old one's place: the same, a new one or none.
    private func bitmap(
        for new: MemorySlotDescription, replacing old: UnsafeMutablePointer<UInt64>?
    ) throws(Errno) -> UnsafeMutablePointer<UInt64>? {
        if let old, new.flags.contains(.logDirtyPages) { return old }
        return try makeBitmap(for: new)
    }

    /// A clean bitmap if the slot is to be logged.
    private func makeBitmap(for slot: MemorySlotDescription) throws(Errno) -> UnsafeMutablePointer<UInt64>? {
        guard slot.flags.contains(.logDirtyPages) else { return nil }
        let count = MemorySlot.bitmapWordCount(pageCount: slot.pageCount)
        guard let memory = calloc(count, MemoryLayout<UInt64>.size) else { throw .noMemory }
        return memory.bindMemory(to: UInt64.self, capacity: count)
    }

    static func freeBitmap(_ bitmap: UnsafeMutablePointer<UInt64>) { free(bitmap) }
}
