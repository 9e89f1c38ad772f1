/// Catching stores to tables.
///
/// A vCPU that wants frames tracked marks them (``beginTracking(_:)``), has every vCPU drop its write entries, and only
/// then lets their pages count as kept in agreement (``finishTracking(_:)``).
extension ShadowMMU {
    /// One tracking that has begun.
    public struct TrackingTicket: Sendable {
        let frame: UInt64
        let serial: UInt64
    }

    /// Marks frames of tables: nobody gets a new write entry for them.
    ///
    /// - Returns: what to finish when all vCPUs have dropped their write entries.
    /// > Concurrency: a vCPU.
    public func beginTracking(_ frames: [UInt64]) -> [TrackingTicket] {
        withLock {
            let tickets = frames.compactMap { frame -> TrackingTicket? in
                let isTable = tables.shadows(of: frame).contains { $0.pointee.role.level > 1 }
                guard isTable, tracked[frame] == nil else { return nil }
                trackingSerial += 1
                tracked[frame] = TrackedFrame(serial: trackingSerial)
                forbidWrites(frame)
                return TrackingTicket(frame: frame, serial: trackingSerial)
            }
            publishTrackedCount()
            return tickets
        }
    }

    /// Every vCPU has dropped its write entries since the tickets were given.
    ///
    /// > Concurrency: a vCPU.
    public func finishTracking(_ tickets: [TrackingTicket]) {
        memory.withReadSection {
            withLock {
                for ticket in tickets where tracked[ticket.frame]?.serial == ticket.serial { finish(ticket.frame) }
                publishTrackedCount()
            }
        }
    }

    private func finish(_ frame: UInt64) {
        tracked[frame]?.isComplete = true
        var hasPages = false
        for page in tables.shadows(of: frame) where page.pointee.role.level > 1 {
            guard synchronize(page) else { break }
            page.pointee.isTracked = true
            // ORDERING: release, as in `synchronize`; from here on stores are caught (invariant 4).
            page.synced.pointee.store(ShadowPage.always, ordering: .releasing)
            hasPages = true
        }
        if !hasPages { tracked[frame] = nil }
    }

    /// Performs a vCPU's store to a frame that ``isTracked(_:)`` named, and drops what the table does not bear out any more.
    ///
    /// Who has seen the new value, flushes, and walks, finds the old entry no more.
    /// A frame that is stored to again and again is not used as a table any more, and stops being treated as one.
    /// - Parameter store: stores the bytes; called with the lock held.
    /// > Concurrency: the vCPU; not inside a read section of the memory that began before a request was acknowledged.
    public func guestStore(frame: UInt64, offset: Int, byteCount: Int, _ store: () -> Void) {
        memory.withReadSection {
            withLock {
                guard tracked[frame] != nil, byteCount > 0 else { return store() }
                counters.caughtStoreCount += 1
                let pages = tables.shadows(of: frame).filter { $0.pointee.isTracked }
                // ORDERING: released before the store, as all later stores are on x86: who sees the new value sees that the
                // pages have to be compared, and waits for the lock (invariant 2).
                for page in pages { page.synced.pointee.store(0, ordering: .releasing) }
                store()
                for page in pages { page.pointee.storeCount += 1 }
                if !pages.isEmpty, pages.allSatisfy({ $0.pointee.storeCount > TrackedFrame.storeLimit }) {
                    return stopTracking(frame)
                }
                for page in pages where compare(page, offset..<offset + byteCount) {
                    // ORDERING: release, after what differs was dropped.
                    page.synced.pointee.store(ShadowPage.always, ordering: .releasing)
                }
            }
        }
    }

    /// Compares the entries that stand for a range of bytes of the guest's table.
    /// - Returns: false if the table has no memory any more; the page is zapped then.
    private func compare(_ page: ShadowPage.Pointer, _ range: Range<Int>) -> Bool {
        let role = page.pointee.role
        guard let table = hostPage(page.pointee.frame, role.addressSpace) else {
            zap(page)
            return false
        }
        let guestIndexes =
            range.lowerBound / role.guestEntryByteCount...(range.upperBound - 1) / role.guestEntryByteCount
        page.forEachUsed { index in
            if guestIndexes.contains(role.guestIndex(index)) {
                _ = compare(page, index, GuestTableEntry.load(table, role, index))
            }
        }
        return true
    }

    private func stopTracking(_ frame: UInt64) {
        // The pages go first: then nothing relies on the stores being caught.
        for page in tables.shadows(of: frame) where page.pointee.role.level > 1 {
            if tables.shadows(of: frame).contains(page) { zap(page) }
        }
        tracked[frame] = nil
        publishTrackedCount()
        counters.floodCount += 1
    }
}
