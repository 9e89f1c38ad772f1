/// Guest programs in flat 32-bit code that use memory whose map changes under them.
///
///     0x0000_0000  low memory: code, stacks, a counter of rounds for each vCPU
///     0x0010_0000  counters: every page has one for each vCPU, which each round increments
///     0x0020_0000  code: every page has a routine that compares a constant of its page, and returns
///     0x0030_0000  a moving region: counters, as above, in the pages that are there wherever it is
///     0x0040_0000  a page that comes and goes
///     0x0050_0000  logged: each round increments a counter in the next page
enum HammerGuest {
    static let lowByteCount: UInt64 = 0x10000
    static let counters: UInt64 = 0x10_0000
    static let counterPageCount = 16
    static let code: UInt64 = 0x20_0000
    static let codePageCount = 8
    static let mover: UInt64 = 0x30_0000
    static let moverPageCount = 8
    static let visitor: UInt64 = 0x40_0000
    static let logged: UInt64 = 0x50_0000
    static let loggedPageCount = 256

    /// Where vCPU `id` begins.
    static func entry(_ id: Int) -> UInt64 { 0x1000 + UInt64(id) << 12 }
    static func stackEnd(_ id: Int) -> UInt64 { 0x9000 + UInt64(id) << 10 }
    /// The low-memory address of a vCPU's rounds.
    static func rounds(_ id: Int) -> Int { 0xF000 + id * 64 }
    /// The offset of a vCPU's counter in each page that has one.
    static func counterOffset(_ id: Int) -> Int { 0x100 + id * 64 }
    static let visitorOffset = 0x40

    private static func bytes(_ value: UInt64) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    /// inc dword [address]
    private static func increment(_ address: UInt64) -> [UInt8] { [0xFF, 0x05] + bytes(address) }

    /// What the routine of a code page compares with.
    static func constant(_ page: Int) -> UInt32 { 0xC0DE_0000 + UInt32(page) }
    static let routineOffset = 0x20
    static let constantOffset = 0x800

    /// mov eax,[constant of the page] ; cmp eax,constant ; je +1 ; hlt ; ret
    static func routine(_ page: Int) -> [UInt8] {
        let address = code + UInt64(page * 4096 + constantOffset)
        return [0xA1] + bytes(address) + [0x3D] + bytes(UInt64(constant(page))) + [0x74, 0x01, 0xF4, 0xC3]
    }

    /// The program of vCPU `id`.
    static func program(_ id: Int) -> [UInt8] {
        let offset = UInt64(counterOffset(id))
        // mov esi,logged
        let start = [0xBE] + bytes(logged)
        var round: [UInt8] = []
        for page in 0..<counterPageCount { round += increment(counters + UInt64(page) << 12 + offset) }
        // The first page is not there when the region lies one page further on.
        for page in 1..<moverPageCount { round += increment(mover + UInt64(page) << 12 + offset) }
        for page in 0..<codePageCount {
            // mov eax,routine ; call eax
            round += [0xB8] + bytes(code + UInt64(page << 12 + routineOffset)) + [0xFF, 0xD0]
        }
        round += increment(visitor + UInt64(visitorOffset + id * 8))
        // inc dword [esi+offset] ; add esi,4096 ; cmp esi,end ; jne +5 ; mov esi,logged
        round += [0xFF, 0x86] + bytes(offset) + [0x81, 0xC6] + bytes(4096)
        round += [0x81, 0xFE] + bytes(logged + UInt64(loggedPageCount) << 12) + [0x75, 0x05, 0xBE] + bytes(logged)
        round += increment(UInt64(rounds(id)))
        // jmp round
        return start + round + [0xE9] + bytes(UInt64(bitPattern: Int64(-(round.count + 5))))
    }
}
