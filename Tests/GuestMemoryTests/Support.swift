import Addressing
import Glibc
import GuestMemory
import Host
import Synchronization
import SystemPackage

extension UserMemoryRegion {
    /// A region in pages. The host address is unlike that of every other slot, unless given.
    init(_ slot: UInt32, frame: UInt64, pages: UInt64, host: UInt64? = nil, flags: UInt32 = 0) {
        self.init(
            slot: slot, flags: flags, guestPhysicalAddress: frame << 12, memorySize: pages << 12,
            userspaceAddress: host ?? (UInt64(slot) + 1) << 24)
    }
}

extension GuestMemory {
    /// A change whose flush has nothing to do.
    func set(_ region: UserMemoryRegion) throws(Errno) { try setUserMemoryRegion(region) { _ in } }

    /// What a change throws; nil if it succeeds.
    func error(_ region: UserMemoryRegion) -> Errno? {
        do throws(Errno) { try set(region) } catch { return error }
        return nil
    }

    /// The id of the slot that backs a frame, for a caller no writer runs against.
    func owner(of frame: UInt64, addressSpace: Int = 0) -> UInt16? {
        lookup(GuestFrameNumber(frame), addressSpace: addressSpace)?.pointee.id
    }
}
