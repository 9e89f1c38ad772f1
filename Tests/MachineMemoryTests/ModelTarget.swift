import KVMInterface
import Machine
import SystemPackage

/// Memory slots by KVM's rules, and nothing behind them.
///
/// > Concurrency: one thread.
final class ModelTarget: MemorySlotTarget, @unchecked Sendable {
    let memorySlotLimit: Int
    let memoryRegionBatchLimit: Int
    /// By number.
    private(set) var slots: [UInt32: UserMemoryRegion] = [:]
    /// Pages written since they were last fetched.
    var dirty: [UInt32: Set<Int>] = [:]
    /// How many changes were made, and how many calls that took.
    private(set) var changeCount = 0
    private(set) var callCount = 0
    /// Runs before each call that changes slots.
    var onCall: () -> Void = {}
    /// What the calls from now on throw; nil for success.
    var errors: [Errno?] = []

    init(slotLimit: Int = 100, batchLimit: Int = 0) {
        memorySlotLimit = slotLimit
        memoryRegionBatchLimit = batchLimit
    }

    private func begin() throws(Errno) {
        callCount += 1
        onCall()
        if !errors.isEmpty, let error = errors.removeFirst() { throw error }
    }

    func setUserMemoryRegion(_ region: UserMemoryRegion) throws(Errno) {
        try begin()
        try set(region)
    }

    func setUserMemoryRegions(_ regions: [UserMemoryRegion], dirtyPageCounts: [Int]) throws(Errno) -> [[UInt64]] {
        guard memoryRegionBatchLimit > 0 else { throw .inappropriateIOCTLForDevice }
        guard regions.count <= memoryRegionBatchLimit else { throw .argListTooLong }
        try begin()
        let before = (slots, dirty)
        do throws(Errno) {
            var bitmaps: [[UInt64]] = []
            for (region, pageCount) in zip(regions, dirtyPageCounts) {
                bitmaps.append(pageCount > 0 ? takeDirty(region.slot, pageCount) : [])
                try set(region)
            }
            return bitmaps
        } catch {
            (slots, dirty) = before
            throw error
        }
    }

    func dirtyLog(slot: UInt32, pageCount: Int) throws(Errno) -> [UInt64] {
        guard let known = slots[slot], known.flags & 1 != 0 else { throw .noSuchFileOrDirectory }
        return takeDirty(slot, pageCount)
    }

    private func takeDirty(_ slot: UInt32, _ pageCount: Int) -> [UInt64] {
        var words = [UInt64](repeating: 0, count: (pageCount + 63) / 64)
        for page in dirty.removeValue(forKey: slot) ?? [] { words[page / 64] |= 1 << UInt64(page % 64) }
        return words
    }

    private func set(_ region: UserMemoryRegion) throws(Errno) {
        guard region.slot < memorySlotLimit else { throw .invalidArgument }
        guard (region.guest_phys_addr | region.memory_size | region.userspace_addr) & 4095 == 0 else {
            throw .invalidArgument
        }
        changeCount += 1
        guard region.memory_size > 0 else {
            guard slots.removeValue(forKey: region.slot) != nil else { throw .invalidArgument }
            dirty[region.slot] = nil
            return
        }
        guard region.memory_size <= 4 << 40 else { throw .invalidArgument }
        if let old = slots[region.slot] {
            guard old.userspace_addr == region.userspace_addr, old.memory_size == region.memory_size,
                (old.flags ^ region.flags) & 2 == 0
            else { throw .invalidArgument }
        }
        for (number, other) in slots where number != region.slot {
            guard
                region.guest_phys_addr + (region.memory_size - 1) < other.guest_phys_addr
                    || other.guest_phys_addr + (other.memory_size - 1) < region.guest_phys_addr
            else { throw .fileExists }
        }
        slots[region.slot] = region
        if region.flags & 1 == 0 { dirty[region.slot] = nil }
    }

    /// A guest's write to the page at `address`: whether a slot took it.
    func write(page address: UInt64) -> Bool {
        for (number, slot) in slots
        where slot.guest_phys_addr <= address && address - slot.guest_phys_addr < slot.memory_size
            && slot.flags & 2 == 0
        {
            if slot.flags & 1 != 0 { dirty[number, default: []].insert(Int((address - slot.guest_phys_addr) / 4096)) }
            return true
        }
        return false
    }

    /// Each slot as text, lowest address first, without its number.
    var text: [String] {
        slots.values.sorted { $0.guest_phys_addr < $1.guest_phys_addr }.map {
            func hexadecimal(_ value: UInt64) -> String { String(value, radix: 16) }
            return
                "\(hexadecimal($0.guest_phys_addr))+\(hexadecimal($0.memory_size)) \(hexadecimal($0.userspace_addr)) \($0.flags)"
        }
    }
}
