import Addressing

/// What a client says of a memory slot. The C structure is `kvm_userspace_memory_region`.
public struct UserMemoryRegion: Hashable, Sendable {
    /// Bits 15–0 the slot's id, bits 31–16 the address space.
    public var slot: UInt32
    /// `KVM_MEM_LOG_DIRTY_PAGES`, `KVM_MEM_READONLY`.
    public var flags: UInt32
    /// In bytes, whole pages.
    public var guestPhysicalAddress: UInt64
    /// In bytes, whole pages; 0 deletes the slot.
    public var memorySize: UInt64
    /// In bytes, whole pages.
    public var userspaceAddress: UInt64

    public init(
        slot: UInt32, flags: UInt32, guestPhysicalAddress: UInt64, memorySize: UInt64, userspaceAddress: UInt64
    ) {
        self.slot = slot
        self.flags = flags
        self.guestPhysicalAddress = guestPhysicalAddress
        self.memorySize = memorySize
        self.userspaceAddress = userspaceAddress
    }
}

/// One change of the slots, as those who cache translations need to know it.
public enum MemorySlotChange: Hashable, Sendable {
    case create(MemorySlotDescription)
    case delete(MemorySlotDescription)
    case move(from: MemorySlotDescription, to: MemorySlotDescription)
    case flagsOnly(from: MemorySlotDescription, to: MemorySlotDescription)

    /// The slot whose translations may be cached; nil if it did not exist.
    public var old: MemorySlotDescription? {
        switch self {
        case .create: nil
        case .delete(let old), .move(let old, _), .flagsOnly(let old, _): old
        }
    }

    /// The slot after the change; nil if it is gone.
    public var new: MemorySlotDescription? {
        switch self {
        case .delete: nil
        case .create(let new), .move(_, let new), .flagsOnly(_, let new): new
        }
    }
}

/// A number that differs after each change of an address space's slots, to recognise information cached before.
public struct MemorySlotGeneration: Hashable, Sendable {
    /// Bit 63: an update is in progress. Below: the counter, which wraps.
    public let rawValue: UInt64

    @inline(__always)
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    static let updateInProgressBit: UInt64 = 1 << 63

    /// Whether readers may see the slots before or after a change: nothing may be cached under this generation.
    @inline(__always)
    public var isUpdateInProgress: Bool { rawValue & Self.updateInProgressBit != 0 }
}
