import GuestMemory

/// Events since the machine was made.
struct ShadowCounters {
    var madePageCount: UInt64 = 0
    var zappedPageCount: UInt64 = 0
    var recycledPageCount: UInt64 = 0
    var zapCount: UInt64 = 0
    var syncCount: UInt64 = 0
    var caughtStoreCount: UInt64 = 0
    var floodCount: UInt64 = 0
    var deviceDropCount: UInt64 = 0
}

extension ShadowMMU {
    /// What there is, and what has happened since the machine was made.
    public struct Statistics: Equatable, Sendable {
        /// Pages by level, 1 first.
        public var pageCounts: [Int] = [0, 0, 0, 0]
        /// Those of them that shadow no table.
        public var directPageCount = 0
        /// Those whose tables are compared after flushes.
        public var unsyncPageCount = 0
        /// Unlinked pages that wait to be freed.
        public var garbagePageCount = 0
        /// The greatest number of pages there may be.
        public var pageLimit = 0
        public var memoryEntryCount = 0
        public var deviceEntryCount = 0
        public var linkCount = 0
        /// Frames of tables whose stores are caught.
        public var trackedFrameCount = 0

        public var madePageCount: UInt64 = 0
        public var zappedPageCount: UInt64 = 0
        /// Zapped to make room.
        public var recycledPageCount: UInt64 = 0
        /// Calls that zapped ranges, or everything.
        public var zapCount: UInt64 = 0
        /// Comparisons of a page with the guest's table.
        public var syncCount: UInt64 = 0
        /// Stores to tracked frames.
        public var caughtStoreCount: UInt64 = 0
        /// Frames that were given up because of their many stores.
        public var floodCount: UInt64 = 0
        /// How often all device entries were dropped because the slots' generation wraps in them.
        public var deviceDropCount: UInt64 = 0
    }

    /// > Concurrency: any thread; takes the lock.
    /// - Complexity: linear in the number of pages.
    public var statistics: Statistics {
        withLock {
            var result = Statistics(
                garbagePageCount: garbage.count, pageLimit: pageLimit, memoryEntryCount: tables.memoryEntries.count,
                deviceEntryCount: tables.deviceEntries.count, linkCount: tables.links.count,
                trackedFrameCount: tracked.count, madePageCount: counters.madePageCount,
                zappedPageCount: counters.zappedPageCount, recycledPageCount: counters.recycledPageCount,
                zapCount: counters.zapCount, syncCount: counters.syncCount,
                caughtStoreCount: counters.caughtStoreCount, floodCount: counters.floodCount,
                deviceDropCount: counters.deviceDropCount)
            tables.forEachPage { page in
                result.pageCounts[page.pointee.role.level - 1] += 1
                if page.pointee.role.isDirect { result.directPageCount += 1 }
                if page.synced.pointee.load(ordering: .relaxed) != ShadowPage.always { result.unsyncPageCount += 1 }
            }
            return result
        }
    }

    /// A shadow page as a value.
    public struct PageDescription: Equatable, Sendable {
        public var role: ShadowRole
        /// The frame of the guest's table; of a direct page the first it maps.
        public var frame: UInt64
        public var isRoot: Bool
        public var isTracked: Bool
        public var entries: [EntryDescription]
    }

    /// An entry that is not empty.
    public struct EntryDescription: Equatable, Sendable {
        public var index: Int
        public var target: Target
        public var isGlobal: Bool
        /// Bits 0–7: read, write and execute by the user; the same by the supervisor; read and write with RFLAGS.AC.
        public var permissions: UInt8

        public enum Target: Equatable, Sendable {
            /// A page of the next level.
            case page(frame: UInt64, role: ShadowRole)
            /// Memory, at the first of the frames the entry maps.
            case memory(frame: UInt64)
            case device(frame: UInt64)
        }
    }

    /// All pages, those of higher levels first, then by frame and role, and their entries in order.
    /// > Concurrency: any thread; takes the lock.
    public func describePages() -> [PageDescription] {
        withLock {
            var result: [PageDescription] = []
            tables.forEachPage { page in
                var entries: [EntryDescription] = []
                page.forEachUsed { entries.append(describe(page, $0)) }
                result.append(
                    PageDescription(
                        role: page.pointee.role, frame: page.pointee.frame, isRoot: page.pointee.isRoot,
                        isTracked: page.pointee.isTracked, entries: entries))
            }
            return result.sorted {
                ($1.role.level, $0.frame, $0.role.rawValue) < ($0.role.level, $1.frame, $1.role.rawValue)
            }
        }
    }

    private func describe(_ page: ShadowPage.Pointer, _ index: Int) -> EntryDescription {
        let entry = page.value(index)
        let target: EntryDescription.Target =
            if entry.isLink {
                .page(frame: entry.page.pointee.frame, role: entry.page.pointee.role)
            } else if entry.isDevice {
                .device(frame: entry.deviceFrame)
            } else {
                .memory(frame: tables.mappedFrame(page, index))
            }
        return EntryDescription(
            index: index, target: target, isGlobal: !entry.isLink && entry.isGlobal,
            permissions: entry.isLink ? 0 : entry.permissions.rawValue)
    }
}
