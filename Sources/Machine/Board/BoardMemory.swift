import AddressSpace
import Addressing
import Glibc
import Host
import KVMInterface
import SystemPackage

/// A board's guest physical addresses: its RAM, mapped in this process, and what else is there.
struct BoardMemory {
    /// The RAM as the loader writes it.
    let ram: GuestRAM
    /// What is at which address; performs accesses that the accelerator does not.
    let space: AddressSpace

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
        do {
            space = try Self.makeSpace(regions, owner)
        } catch {
            throw .host("the guest's address space cannot be made: \(error)")
        }
    }

    private static func makeSpace(_ regions: [GuestRAM.Region], _ owner: Mappings) throws(Errno) -> AddressSpace {
        let topology = MemoryTopology()
        let root = topology.makeContainer("system", byteCount: 1 << 64)
        for region in regions {
            let ram = topology.makeRAM("RAM", host: region.host, byteCount: region.byteCount, owner: owner)
            try root.add(ram, at: region.start.value)
        }
        return AddressSpace("memory", root: root)
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
