/// The guest memory that every case starts from: tables that make most of the processor's own business work.
///
///     0        real-mode interrupt vectors
///     F00      handlers: HLT at F00, IRET at F10 and, with 64-bit operands, at F20
///     1000     descriptor table; 2000, 4000: interrupt tables of 8- and 16-byte gates; 3000, 3400: task states
///     6000     local descriptor table
///     7000 ─ 9000  the ends of the stacks
///     10000    code
///     20000 ─ 60000  data
///     60000    page tables: four levels from 60000, PAE at 65000, 32-bit at 66000
enum GuestImage {
    static let byteCount = 0x8_0000
    static let code = 0x1_0000
    static let data = 0x2_0000..<0x6_0000
    static let pageTables: UInt64 = 0x6_0000
    static let paeTables: UInt64 = 0x6_5000
    static let tables32: UInt64 = 0x6_6000
    /// A page of guest physical memory that may only be read.
    static let readOnlyPage: UInt64 = 0x20_0000

    static let bytes: [UInt8] = build()

    private static func build() -> [UInt8] {
        var image = [UInt8](repeating: 0, count: byteCount)
        image.withUnsafeMutableBytes { image in
            func put<T: FixedWidthInteger>(_ values: [T], at address: Int) {
                for (index, value) in values.enumerated() {
                    image.storeBytes(of: value, toByteOffset: address + index * MemoryLayout<T>.size, as: T.self)
                }
            }
            var generator = SeededGenerator(seed: 1)
            for address in stride(from: data.lowerBound, to: data.upperBound, by: 8) {
                put([generator.next()], at: address)
            }
            put([0xF4, 0xEB, 0xFD] as [UInt8], at: 0xF00)
            put([0xCF] as [UInt8], at: 0xF10)
            put([0x48, 0xCF] as [UInt8], at: 0xF20)
            putDescriptors(put)
            putGates(put)
            putPageTables(put)
        }
        return image
    }

    private static func segment(
        base: UInt64 = 0, limit: UInt64 = 0xFFFFF, access: UInt64, flags: UInt64 = 0
    ) -> UInt64 {
        limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52
            | (base >> 24 & 0xFF) << 56
    }

    private static func gate(_ selector: UInt64, _ offset: UInt64, access: UInt64, extra: UInt64 = 0) -> UInt64 {
        offset & 0xFFFF | selector << 16 | extra << 32 | access << 40 | (offset >> 16 & 0xFFFF) << 48
    }

    static let descriptorCount = 20

    private static func putDescriptors(_ put: ([UInt64], Int) -> Void) {
        let descriptors: [UInt64] = [
            0,
            segment(access: 0x9A, flags: 0xA),  // 08 64-bit code, ring 0
            segment(access: 0x92, flags: 0xC),  // 10 data, ring 0
            segment(access: 0xFA, flags: 0xC),  // 18 32-bit code, ring 3
            segment(access: 0xF2, flags: 0xC),  // 20 data, ring 3
            segment(access: 0xFA, flags: 0xA),  // 28 64-bit code, ring 3
            segment(base: 0x3000, limit: 0x68, access: 0x8B), 0,  // 30 task state
            segment(access: 0x9A, flags: 0xC),  // 40 32-bit code, ring 0
            segment(base: 0x3400, limit: 0x68, access: 0x89),  // 48 another task state
            gate(0x40, 0xF00, access: 0xEC, extra: 2),  // 50 call gate with two parameters, ring 3
            gate(0x48, 0, access: 0xE5),  // 58 task gate, ring 3
            segment(limit: 0xFFFF, access: 0x9A),  // 60 16-bit code, ring 0
            segment(limit: 0xFFFF, access: 0x92),  // 68 16-bit data, ring 0
            segment(base: 0x6000, limit: 0x1F, access: 0x82), 0,  // 70 local descriptor table
            gate(0x08, 0xF00, access: 0xEC), 0,  // 80 64-bit call gate, ring 3
            segment(access: 0x9E, flags: 0xC),  // 90 conforming 32-bit code, ring 0
            segment(limit: 0xFFFF, access: 0xFA)  // 98 16-bit code, ring 3
        ]
        precondition(descriptors.count == descriptorCount, "the table's limit is wrong")
        put(descriptors, 0x1000)
        put([0, segment(access: 0xFA, flags: 0xC), segment(access: 0xF6, flags: 4), 0], 0x6000)
        // Stacks of the inner levels, in both formats of the task state; its first 4 bytes differ in use only.
        put([0x7000 << 32, 0x10, 0x7800, 0, 0x7000, 0x7000, 0x7000, 0x7000, 0x7000], 0x3000)
        put([0x7000 << 32, 0x10, 0, 0, 0xF00 << 32, 0x202, 0, 0x9000 << 32, 0x8000, 0x10 << 32, 0x4_0000_0010], 0x3400)
    }

    /// Exceptions end in HLT, other vectors return.
    private static func putGates(_ put: ([UInt64], Int) -> Void) {
        for vector in 0..<256 {
            let returns = vector >= 32
            let short = returns ? gate(0x40, 0xF10, access: 0xEE) : gate(0x40, 0xF00, access: 0x8E)
            put([vector == 9 ? gate(0x48, 0, access: 0xE5) : short], 0x2000 + vector * 8)
            let stack = UInt64(vector & 1)
            let long = returns ? gate(8, 0xF20, access: 0xEE) : gate(8, 0xF00, access: 0x8E, extra: stack)
            put([long, 0], 0x4000 + vector * 16)
        }
        // Two vectors of real mode at a time.
        for pair in 0..<128 {
            let vector: UInt64 = pair < 16 ? 0xF00 : 0xF10
            put([vector | vector << 32], pair * 8)
        }
    }

    /// The first 2 MiB mapped to themselves, except for the data: some of its pages are as pages can be.
    private static func putPageTables(_ put: ([UInt64], Int) -> Void) {
        let long = Int(pageTables)
        put([0x6_1007], long)
        // The same from FFFF_8000_0000_0000 on.
        put([0x6_1007], long + 256 * 8)
        put([0x6_2007, 0x6_2007], 0x6_1000)
        put([0x6_3007, 0x20_0087, 0x40_0087, 0x6_3005], 0x6_2000)
        put([0x6_2001, 0, 0, 0x6_2001], Int(paeTables))
        for page in 0..<512 as Range<UInt64> { put([entry(page)], 0x6_3000 + Int(page) * 8) }
        put([0x6_7007 | 0x40_0087 << 32], Int(tables32))
        for page in stride(from: 0, to: 512, by: 2) as StrideTo<UInt64> {
            put([entry(page) & 0xFFFF_FFFF | entry(page + 1) << 32], 0x6_7000 + Int(page) * 4)
        }
    }

    private static func entry(_ page: UInt64) -> UInt64 {
        guard data.contains(Int(page) << 12) else { return page << 12 | 7 }
        switch page & 15 {
        case 8: return page << 12 | 3
        case 9: return page << 12 | 5
        case 10: return page << 12 | 1
        case 11: return 1 << 63 | page << 12 | 7
        case 12: return page << 12
        case 13: return 0x18_0007
        case 14: return readOnlyPage | 7
        case 15: return (page - 15) << 12 | 0x107
        default: return page << 12 | 7
        }
    }
}
