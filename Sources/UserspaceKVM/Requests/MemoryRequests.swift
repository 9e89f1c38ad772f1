import Addressing
import CHost
import GuestMemory
import MMU
import struct KVMInterface.MemoryBatch
import SystemPackage
import Translator

// Memory slots and their dirty logs.

extension UserspaceVM {
    /// The corresponding C request is `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// When it returns no vCPU uses the old slot any more: all have dropped their translations, and acknowledged.
    /// - Throws: as `GuestMemory.setUserMemoryRegion`.
    func setUserMemoryRegion(at argument: UInt) throws(Errno) {
        var request = kvm_userspace_memory_region()
        try ClientMemory.copyIn(&request, from: argument)
        try memory.setUserMemoryRegion(UserMemoryRegion(request)) { forget([$0]) }
        shadow.setPageLimit(frameCount: memory.counts.pages)
    }

    /// Several changes as one; the request is `KVMRequest.setUserMemoryRegions`.
    ///
    /// - Throws: as `MemoryBatch` says.
    func setUserMemoryRegions(at argument: UInt) throws(Errno) {
        var header = MemoryBatch(count: 0)
        try ClientMemory.copyIn(&header, from: argument)
        guard header.flags == 0 else { throw .invalidArgument }
        guard header.count <= Limits.memoryBatchCount else { throw .argListTooLong }
        let elements = try ClientMemory.copyIn(
            count: Int(header.count), of: MemoryBatch.Element(kvm_userspace_memory_region()),
            from: argument &+ UInt(MemoryLayout<MemoryBatch>.size))
        let bitmaps = try memory.setUserMemoryRegions(
            elements.map { UserMemoryRegion($0.region) },
            prepare: { (changes) throws(Errno) in try Self.checkBitmaps(elements, changes) }, flush: forget)
        shadow.setPageLimit(frameCount: memory.counts.pages)
        for (element, bitmap) in zip(elements, bitmaps) where element.dirtyBitmap != 0 {
            if let bitmap { try ClientMemory.copyOut(bitmap, to: UInt(element.dirtyBitmap)) }
        }
    }

    /// Refuses bitmaps that have too little room or cannot be written, while nothing has changed.
    private static func checkBitmaps(
        _ elements: [MemoryBatch.Element], _ changes: [MemorySlotChange?]
    ) throws(Errno) {
        for (element, change) in zip(elements, changes) where element.dirtyBitmap != 0 {
            guard let old = change?.old, old.flags.contains(.logDirtyPages) else { continue }
            let wordCount = Int((old.pageCount + 63) / 64)
            guard element.dirtyBitmapByteCount >= wordCount * 8 else { throw .argListTooLong }
            try ClientMemory.copyOut([UInt64](repeating: 0, count: wordCount), to: UInt(element.dirtyBitmap))
        }
    }

    /// Drops what is cached of the slots that changes remove or replace: translations of addresses, and of code, which
    /// belongs to the pages of their host memory. When it returns no vCPU uses any of it. Where all frames of the old slots are what
    /// they were, as when a slot is split, there is nothing to forget.
    private func forget(_ changes: [MemorySlotChange]) {
        let changes = changes.filter { change in change.old.map { !memory.hasSameMapping(as: $0) } ?? false }
        guard !changes.isEmpty else { return }
        for change in changes {
            switch change {
            case .delete(let old), .move(let old, _): shadow.zap(frames: old.frameNumbers) {}
            case .flagsOnly(let old, _): shadow.revokeWrites(frames: old.frameNumbers)
            case .create: break
            }
        }
        // Afterwards every vCPU has been outside guest code since the slots changed: none can still translate what lay
        // there.
        requestAll(.flushTLB)
        var hasDropped = false
        for change in changes {
            switch change {
            case .delete(let old), .move(let old, _):
                if cache.drop(old.hostPageNumbers) { hasDropped = true }
            case .create, .flagsOnly: break
            }
        }
        if hasDropped { requestAll(.dropJumpCache) }
    }

    /// The corresponding C request is `KVM_GET_DIRTY_LOG`.
    /// - Throws: `EINVAL` for a slot or address space that cannot be, `ENOENT` for a slot that does not exist or is not
    ///   logged, `ENXIO` if written pages are reported in rings.
    func getDirtyLog(at argument: UInt) throws(Errno) {
        guard !hasDirtyRings else { throw .noSuchAddressOrDevice }
        var request = kvm_dirty_log()
        try ClientMemory.copyIn(&request, from: argument)
        let bitmap = try memory.getDirtyLog(
            slot: request.slot, keeping: protectsLogManually.load(ordering: .relaxed)
        ) { protect($0.frameNumbers) }
        try ClientMemory.copyOut(bitmap, to: UInt(bitPattern: request.dirty_bitmap))
    }

    /// The corresponding C request is `KVM_CLEAR_DIRTY_LOG`.
    /// - Throws: as `getDirtyLog`; `EINVAL` also for a range that is not whole words of the bitmap or leaves the slot.
    func clearDirtyLog(at argument: UInt) throws(Errno) {
        guard !hasDirtyRings else { throw .noSuchAddressOrDevice }
        var request = kvm_clear_dirty_log()
        try ClientMemory.copyIn(&request, from: argument)
        let pages = (first: request.first_page, count: UInt64(request.num_pages))
        // The bits are copied only for a range that fits the slot.
        try memory.checkLogRange(slot: request.slot, firstPage: pages.first, pageCount: pages.count)
        let bits = try ClientMemory.copyIn(
            count: Int((pages.count + 63) / 64), of: UInt64(0), from: UInt(bitPattern: request.dirty_bitmap))
        try memory.clearDirtyLog(slot: request.slot, firstPage: pages.first, pageCount: pages.count, bits: bits) {
            protect($0.frameNumbers)
        }
    }

    /// Has the next write to each of a range of frames marked in the log.
    private func protect(_ frames: Range<UInt64>) {
        shadow.revokeWrites(frames: frames)
        requestAll(.dropWriteEntries)
    }

    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: `KVM_GET_DIRTY_LOG` clears nothing.
    /// - Throws: `EINVAL` for unknown flags.
    func setManualProtection(_ flags: UInt64) throws(Errno) {
        let isManual = flags & UInt64(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0
        let allowed: UInt64 = isManual ? 3 : UInt64(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        guard flags & ~allowed == 0 else { throw .invalidArgument }
        protectsLogManually.store(isManual, ordering: .relaxed)
        memory.logsStartSet.store(flags & UInt64(KVM_DIRTY_LOG_INITIALLY_SET) != 0, ordering: .relaxed)
    }

    // MARK: Rings

    /// `KVM_CAP_DIRTY_LOG_RING`: gives each vCPU a ring.
    /// - Throws: `EINVAL` for a size that is no power of two or too small, if there are rings already, or vCPUs; `E2BIG` for
    ///   a size that is too large.
    func enableDirtyRings(byteCount: UInt64) throws(Errno) {
        let stride = UInt64(MemoryLayout<DirtyRing.Entry>.stride)
        guard byteCount != 0, byteCount & (byteCount - 1) == 0, byteCount >= 4096 else { throw .invalidArgument }
        guard byteCount <= UInt64(DirtyRing.maximumCount) * stride else { throw .argListTooLong }
        try lock.withLock { () throws(Errno) in
            guard !hasDirtyRings, vcpus.count == 0 else { throw .invalidArgument }
            dirtyRingByteCount.store(Int(byteCount), ordering: .relaxed)
        }
    }

    /// The corresponding C request is `KVM_RESET_DIRTY_RINGS`.
    /// - Throws: `EINVAL` if there are no rings.
    func resetDirtyRings() throws(Errno) -> Int32 {
        guard hasDirtyRings else { throw .invalidArgument }
        var rings: [DirtyRing] = []
        vcpus.forEach { vcpu in
            if let ring = vcpu.processor.dirtyRing { rings.append(ring) }
            return true
        }
        return Int32(clamping: memory.resetDirtyRings(rings) { protect(0..<GuestMemory.frameCount) })
    }
}

extension UserspaceVCPU {
    /// Writes guest memory by its physical address. Where there is none, nothing is written.
    /// > Concurrency: the owner, inside.
    /// - Returns: whether all was written.
    @discardableResult
    func writeGuest(_ bytes: [UInt8], at address: UInt64) -> Bool {
        bytes.withUnsafeBytes { buffer in
            vm.memory.withReadSection {
                let place = GuestPhysicalAddress(address)
                return (try? vm.memory.write(place, from: buffer, ring: processor.dirtyRing)) != nil
            }
        }
    }

    /// Reads a number from guest memory; nil if there is no memory.
    /// > Concurrency: the owner, inside.
    func readGuest<T: FixedWidthInteger>(_ type: T.Type, at address: UInt64) -> T? {
        var value: T = 0
        let isRead = withUnsafeMutableBytes(of: &value) { buffer in
            vm.memory.withReadSection {
                (try? vm.memory.read(GuestPhysicalAddress(address), into: buffer)) != nil
            }
        }
        return isRead ? value : nil
    }
}

extension MemorySlotDescription {
    /// The numbers of the slot's guest frames.
    fileprivate var frameNumbers: Range<UInt64> { frames.lowerBound.value..<frames.upperBound.value }

    /// The numbers of the host's pages that back it.
    fileprivate var hostPageNumbers: Range<UInt64> {
        let first = UInt64(hostAddress) >> pageShift
        return first..<first + pageCount
    }
}

extension UserMemoryRegion {
    init(_ region: kvm_userspace_memory_region) {
        self.init(
            slot: region.slot, flags: region.flags, guestPhysicalAddress: region.guest_phys_addr,
            memorySize: region.memory_size, userspaceAddress: region.userspace_addr)
    }
}
