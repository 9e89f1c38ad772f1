import KVMInterface
import Machine
import Testing

@Suite struct ProcessorTopologyTests {
    /// What a kernel's KVM tells of the host's own processors.
    private static let supported = [
        CPUIDEntry(function: 0x1, ebx: 0x2A08_0800), CPUIDEntry(function: 0xB, index: 0, edx: 42),
        CPUIDEntry(function: 0x8000_0008, ecx: 0x703F),
        CPUIDEntry(function: 0x8000_001D, index: 0, eax: 1 << 14 | 1 << 5 | 1),
        CPUIDEntry(function: 0x8000_001D, index: 1, eax: 15 << 14 | 3 << 5 | 3),
        CPUIDEntry(function: 0x8000_001D, index: 2, eax: 0),
        CPUIDEntry(function: 0x8000_001E, eax: 42, ebx: 0x115, ecx: 0x301),
        CPUIDEntry(function: 0x8000_0026, index: 0, edx: 42)
    ]

    @Test func identifiersAreTheGuests() throws {
        let leaves = ProcessorTopology(count: 3).leaves(Self.supported, for: 2)
        func leaf(_ function: UInt32, _ index: UInt32 = 0) throws -> CPUIDEntry {
            try #require(leaves.first { $0.function == function && $0.index == index })
        }
        #expect(try leaf(0x1).ebx == 2 << 24 | 4 << 16 | 0x0800)
        #expect(try leaf(0x8000_0008).ecx == 2 << 12 | 2)
        #expect(try leaf(0xB).edx == 2)
        let node = try leaf(0x8000_001E)
        #expect((node.eax, node.ebx, node.ecx) == (2, 2, 0))
        // The first level belongs to a core, the third to all.
        #expect(try leaf(0x8000_001D, 0).eax == 1 << 5 | 1)
        #expect(try leaf(0x8000_001D, 1).eax == 2 << 14 | 3 << 5 | 3)
        #expect(try leaf(0x8000_001D, 2).eax == 0)
        #expect(!leaves.contains { $0.function == 0x8000_0026 })
    }
}
