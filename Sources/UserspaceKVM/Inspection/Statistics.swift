import GuestMemory
import Host
import RCU

/// What a virtual CPU has done.
///
/// > Concurrency: counted by the vCPU's owner.
struct VCPUCounters: ~Copyable, Sendable {
    let exits = OwnedCounter()
    let portExits = OwnedCounter()
    let mmioExits = OwnedCounter()
    let haltExits = OwnedCounter()
    let signalExits = OwnedCounter()
    let interruptWindowExits = OwnedCounter()
    let dirtyRingExits = OwnedCounter()
    let entries = OwnedCounter()
    let halts = OwnedCounter()
    let interruptInjections = OwnedCounter()
    let nmiInjections = OwnedCounter()
}

extension UserspaceVCPU {
    /// Names of Linux where it counts the same.
    var statistics: [Statistic] {
        let shadow = processor.shadowStatistics
        return [
            Statistic("exits", counters.exits.value), Statistic("io_exits", counters.portExits.value),
            Statistic("mmio_exits", counters.mmioExits.value), Statistic("halt_exits", counters.haltExits.value),
            Statistic("signal_exits", counters.signalExits.value),
            Statistic("irq_window_exits", counters.interruptWindowExits.value),
            Statistic("dirty_ring_exits", counters.dirtyRingExits.value),
            Statistic("guest_entries", counters.entries.value), Statistic("halts", counters.halts.value),
            Statistic("irq_injections", counters.interruptInjections.value),
            Statistic("nmi_injections", counters.nmiInjections.value),
            Statistic("tlb_fill", processor.fillCount),
            Statistic("shadow_memory_hits", shadow?.memoryHitCount ?? 0),
            Statistic("shadow_device_hits", shadow?.deviceHitCount ?? 0),
            Statistic("shadow_misses", shadow?.missCount ?? 0),
            Statistic("guest_mode", .boolean, requests.standsInside ? 1 : 0),
            Statistic("blocking", .boolean, requests.isSleeping ? 1 : 0),
            Statistic("dirty_ring_used", .instant, UInt64(processor.dirtyRing?.usedCount ?? 0))
        ]
    }
}

extension UserspaceVM {
    var statistics: [Statistic] {
        let slots = memory.counts
        let code = cache.counts
        let shadow = shadow.statistics
        return [
            Statistic("remote_tlb_flush_requests", flushRequestCount.load(ordering: .relaxed)),
            Statistic("memslots", .instant, UInt64(slots.slots)), Statistic("memslot_pages", .instant, slots.pages),
            Statistic("memslot_generation", .instant, memory.generation().rawValue),
            Statistic("vcpus", .instant, UInt64(vcpus.count)),
            Statistic("translated_blocks", .instant, UInt64(code.blocks)),
            Statistic("translated_bytes", .instant, UInt64(code.bytes)),
            Statistic("translated_pages", .instant, UInt64(code.pages)),
            Statistic("translation_resets", code.resets),
            Statistic("mmu_cache_miss", shadow.madePageCount), Statistic("mmu_shadow_zapped", shadow.zappedPageCount),
            Statistic("mmu_recycled", shadow.recycledPageCount), Statistic("mmu_pte_write", shadow.caughtStoreCount),
            Statistic("mmu_flooded", shadow.floodCount), Statistic("shadow_comparisons", shadow.syncCount),
            Statistic("mmu_unsync", .instant, UInt64(shadow.unsyncPageCount)),
            Statistic("shadow_pages", .instant, UInt64(shadow.pageCounts.reduce(0, +))),
            Statistic("shadow_page_limit", .instant, UInt64(shadow.pageLimit)),
            Statistic("shadow_memory_entries", .instant, UInt64(shadow.memoryEntryCount)),
            Statistic("shadow_device_entries", .instant, UInt64(shadow.deviceEntryCount)),
            Statistic("shadow_tracked_frames", .instant, UInt64(shadow.trackedFrameCount)),
            Statistic("rcu_pending", .instant, UInt64(domain.backlog)),
            Statistic("srcu_pending", .instant, UInt64(memory.domain.backlog))
        ]
    }
}
