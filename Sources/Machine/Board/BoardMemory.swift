import Addressing
import Glibc
import Host
import KVMInterface
import SystemPackage

/// A board's RAM: its mappings in this process and the memory slots that give them to the guest.
struct BoardMemory {
    /// The RAM as the loader writes it.
    let ram: GuestRAM

    /// Maps `size` bytes; nothing is committed before it is touched.
    ///
    /// - Throws: ``MachineError/badInput(_:)`` if no guest can have that much, or the host cannot map it.
    init(_ size: MemorySize) throws(MachineError) {
        guard size.byteCount <= BoardLayout.maximumRAMByteCount else {
            throw .badInput(
                "\(size) of memory is more than a guest can address, which is "
                    + "\(BoardLayout.maximumRAMByteCount >> 40)T; give it less (--memory)")
        }
        let owner = Mappings()
        var regions: [GuestRAM.Region] = []
        for range in BoardLayout.ramRanges(byteCount: size.byteCount) {
            let byteCount = range.upperBound.value - range.lowerBound.value
            do {
                let base = try owner.add(MemoryMapping.anonymous(byteCount: Int(byteCount)))
                regions.append(
                    GuestRAM.Region(
                        start: range.lowerBound, byteCount: byteCount,
                        host: HostVirtualAddress(UInt(bitPattern: base))))
            } catch {
                throw .badInput("the host cannot map \(size) of memory (\(error)); give the guest less (--memory)")
            }
        }
        ram = GuestRAM(regions: regions, owner: owner)
    }

    /// Gives all RAM to `machine`.
    func attach(to machine: VirtualMachine) throws(Errno) {
        for slot in slots { try machine.setUserMemoryRegion(slot) }
    }

    /// Takes the slots back, so that the mappings can go.
    func detach(from machine: VirtualMachine) {
        for var slot in slots {
            slot.memory_size = 0
            // Fails only for a slot that was never attached.
            try? machine.setUserMemoryRegion(slot)
        }
    }

    /// A slot holds fewer than 2³¹ pages.
    private static var slotByteCountLimit: UInt64 { 4 << 40 }

    /// The memory slots of the regions.
    private var slots: [UserMemoryRegion] {
        var slots: [UserMemoryRegion] = []
        for region in ram.regions {
            for offset in stride(from: 0, to: region.byteCount, by: Int(Self.slotByteCountLimit)) {
                slots.append(
                    UserMemoryRegion(
                        slot: UInt32(slots.count), flags: 0, guest_phys_addr: region.start.value + offset,
                        memory_size: min(Self.slotByteCountLimit, region.byteCount - offset),
                        userspace_addr: UInt64(region.host.value) + offset))
            }
        }
        return slots
    }

    /// Unmaps when it goes. Filled before it is shared.
    private final class Mappings: @unchecked Sendable {
        private var mappings: [(address: UnsafeMutableRawPointer, byteCount: Int)] = []

        func add(_ mapping: consuming MemoryMapping) -> UnsafeMutableRawPointer {
            let range = mapping.release()
            mappings.append(range)
            return range.address
        }

        // SAFETY: `release` gave the ranges up to this object; whoever uses them keeps it alive.
        deinit { for mapping in mappings { munmap(mapping.address, mapping.byteCount) } }
    }
}
