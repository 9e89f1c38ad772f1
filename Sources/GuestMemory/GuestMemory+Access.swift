import Addressing
import CHost
import SystemPackage

/// Copies between guest memory and the core's own memory.
///
/// Guest memory changes under the reader: copy once, validate the copy, use the copy. Does not tell anybody that
/// translated code may have been overwritten.
extension GuestMemory {
    /// Copies bytes out of guest memory.
    ///
    /// - Throws: `Errno.badAddress` if a byte lies in no slot, or in memory that the client has taken away; the buffer's
    ///   contents are undefined then.
    /// > Concurrency: inside a read section of the domain.
    public func read(
        _ address: GuestPhysicalAddress, into buffer: UnsafeMutableRawBufferPointer, addressSpace: Int = 0
    ) throws(Errno) {
        try forEachPage(address, byteCount: buffer.count, addressSpace) { (slot, address, range) throws(Errno) in
            let page = slot.pointee.hostPointer(for: address.frame)
            // SAFETY: `range` lies in the buffer and is not longer than the rest of the page, which may be missing.
            let error = martlet_guarded_copy(
                buffer.baseAddress! + range.lowerBound, page + Int(address.offsetInPage), range.count)
            if error != 0 { throw .badAddress }
        }
    }

    /// Copies bytes into guest memory and marks the pages dirty.
    ///
    /// - Parameter ring: that of the vCPU on whose behalf it is written.
    /// - Throws: `Errno.badAddress` if a byte lies in no slot, in a read-only one, or in memory that the client has taken away;
    ///   bytes before it are written.
    /// > Concurrency: inside a read section of the domain.
    public func write(
        _ address: GuestPhysicalAddress, from buffer: UnsafeRawBufferPointer, addressSpace: Int = 0,
        ring: DirtyRing? = nil
    ) throws(Errno) {
        try forEachPage(address, byteCount: buffer.count, addressSpace) { (slot, address, range) throws(Errno) in
            guard !slot.pointee.flags.contains(.readOnly) else { throw .badAddress }
            let page = slot.pointee.hostPointer(for: address.frame)
            // SAFETY: as above.
            let error = martlet_guarded_copy(
                page + Int(address.offsetInPage), buffer.baseAddress! + range.lowerBound, range.count)
            if error != 0 { throw .badAddress }
            slot.pointee.markDirty(frame: address.frame, ring: ring)
        }
    }

    /// Calls `body` for the part of a range in each page: its slot, its address, its place in the range.
    private func forEachPage(
        _ address: GuestPhysicalAddress, byteCount: Int, _ addressSpace: Int,
        _ body: (UnsafePointer<MemorySlot>, GuestPhysicalAddress, Range<Int>) throws(Errno) -> Void
    ) throws(Errno) {
        guard !address.value.addingReportingOverflow(UInt64(byteCount)).overflow else { throw .badAddress }
        var done = 0
        while done < byteCount {
            let current = address + UInt64(done)
            let count = min(byteCount - done, Int(pageSize - current.offsetInPage))
            guard let slot = lookup(current.frame, addressSpace: addressSpace) else { throw .badAddress }
            try body(slot, current, done..<done + count)
            done += count
        }
    }
}
