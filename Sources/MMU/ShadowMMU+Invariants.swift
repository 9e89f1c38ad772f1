extension ShadowMMU {
    /// What is wrong with the tables; nil if nothing is. For tests.
    /// - Complexity: linear in the number of entries.
    public func brokenInvariant() -> String? {
        withLock {
            var counts = (memory: 0, device: 0, link: 0, pages: 0)
            var broken: String?
            tables.forEachPage { page in
                counts.pages += 1
                var usedCount = 0
                for index in 0..<ShadowPage.entryCount {
                    let entry = page.value(index)
                    let isUsed = page.pointee.used[index >> 6] >> UInt64(index & 63) & 1 != 0
                    if isUsed != (entry != .empty) { broken = "the bit of a used entry is wrong" }
                    if entry == .empty { continue }
                    usedCount += 1
                    let reference = ShadowEntryReference(page, index)
                    if entry.isLink {
                        counts.link += 1
                        if !tables.parents(of: entry.page).contains(reference) { broken = "a link is not known" }
                        if entry.page.pointee.role.level != page.pointee.role.level - 1 {
                            broken = "a link leads to the wrong level"
                        }
                        if tables.find(frame: entry.page.pointee.frame, role: entry.page.pointee.role) != entry.page {
                            broken = "a link leads to a page that is gone"
                        }
                    } else if entry.isDevice {
                        counts.device += 1
                    } else {
                        counts.memory += 1
                        let frame = tables.mappedFrame(page, index)
                        let key = ReverseMap.key(frame: frame, level: page.pointee.role.level)
                        if !tables.memoryEntries[key].contains(reference) { broken = "an entry is not known" }
                    }
                }
                if usedCount != page.pointee.usedCount { broken = "the number of used entries is wrong" }
                if page.pointee.isPinned { broken = "a page is pinned" }
                if page.pointee.isTracked && tracked[page.pointee.frame]?.isComplete != true {
                    broken = "a tracked page's frame is not tracked"
                }
            }
            if counts.memory != tables.memoryEntries.count || counts.device != tables.deviceEntries.count
                || counts.link != tables.links.count || counts.pages != tables.pageCount
            {
                broken = "a count is wrong"
            }
            return broken
        }
    }
}
