import KVMInterface

/// How a guest's processors are arranged: cores of one package, one thread each.
package struct ProcessorTopology {
    /// How many there can be.
    let count: Int

    package init(count: Int) { self.count = count }

    /// The number of bits of an APIC identifier that count cores.
    private var coreBits: UInt32 { count == 1 ? 0 : UInt32(Int.bitWidth - (count - 1).leadingZeroBitCount) }

    /// `supported` completed for the processor with APIC identifier `id`.
    ///
    /// > Source: Intel SDM volume 2, CPUID leaves 1, 4 and 0BH; AMD APM volume 3, functions 8000_0008h, 8000_001Dh and
    /// > 8000_001Eh.
    package func leaves(_ supported: [CPUIDEntry], for id: UInt32) -> [CPUIDEntry] {
        let isMany = count > 1
        var leaves = supported.filter { ![0xB, 0x1F, 0x8000_0026].contains($0.function) }
        for index in leaves.indices {
            switch leaves[index].function {
            case 0x1:
                leaves[index].ebx = leaves[index].ebx & 0xFFFF | id << 24 | UInt32(min(1 << coreBits, 255)) << 16
                if isMany { leaves[index].edx |= 1 << 28 }  // more than one logical processor in the package
            case 0x4 where leaves[index].eax & 0x1F != 0:
                // Identifiers for cores in the package; the last level of cache is shared by all.
                let level = leaves[index].eax >> 5 & 7
                leaves[index].eax = leaves[index].eax & 0x3FFF | ((1 << coreBits) - 1) << 26
                if level >= 3 { leaves[index].eax |= ((1 << coreBits) - 1) << 14 }
            case 0x8000_001D where leaves[index].eax & 0x1F != 0:
                let level = leaves[index].eax >> 5 & 7
                leaves[index].eax = leaves[index].eax & 0x3FFF | (level >= 3 ? UInt32(count - 1) << 14 : 0)
            case 0x8000_001E:
                // One thread a core, one node.
                leaves[index].eax = id
                leaves[index].ebx = id & 0xFF
                leaves[index].ecx = 0
            case 0x8000_0001 where isMany:
                leaves[index].ecx |= 1 << 1  // the package has cores
            case 0x8000_0008:
                leaves[index].ecx = leaves[index].ecx & ~0xF0FF | UInt32(min(count - 1, 255)) | coreBits << 12
            default: break
            }
        }
        // Threads, then cores, then the end of the list; EDX is the x2APIC identifier in all.
        leaves.append(CPUIDEntry(function: 0xB, index: 0, eax: 0, ebx: 1, ecx: 0x100, edx: id))
        leaves.append(CPUIDEntry(function: 0xB, index: 1, eax: coreBits, ebx: UInt32(count), ecx: 0x201, edx: id))
        leaves.append(CPUIDEntry(function: 0xB, index: 2, ecx: 2, edx: id))
        return leaves
    }
}
