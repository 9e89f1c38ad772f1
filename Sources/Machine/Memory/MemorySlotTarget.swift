import KVMInterface
import SystemPackage

/// What the memory listener needs of an accelerator.
package protocol MemorySlotTarget: Sendable {
    /// The first slot number that is too large.
    var memorySlotLimit: Int { get }

    /// The greatest number of changes that ``setUserMemoryRegions(_:dirtyPageCounts:)`` takes; 0 if it is not there.
    var memoryRegionBatchLimit: Int { get }

    /// Creates a slot, changes its flags or, with size 0, deletes it.
    func setUserMemoryRegion(_ region: UserMemoryRegion) throws(Errno)

    /// Makes all changes at once, or none.
    ///
    /// - Returns: for each change the pages written through the slot as it was, as many as `dirtyPageCounts` says.
    func setUserMemoryRegions(_ regions: [UserMemoryRegion], dirtyPageCounts: [Int]) throws(Errno) -> [[UInt64]]

    /// Fetches and clears the pages written through a slot.
    func dirtyLog(slot: UInt32, pageCount: Int) throws(Errno) -> [UInt64]
}

extension VirtualMachine: MemorySlotTarget {
    package var memorySlotLimit: Int {
        // What KVM had before the number could be asked for.
        guard let count = try? checkExtension(.memorySlotCount), count > 0 else { return 32 }
        return count
    }
}
