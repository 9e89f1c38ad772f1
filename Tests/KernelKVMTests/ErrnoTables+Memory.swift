import KVMInterface
import SystemPackage

// Requests and what KVM answers. In this order: some create what later ones find.

extension ErrnoTables {
    /// Of memory slots and their logs.
    static var memory: [ErrnoCase] {
        [
            ErrnoCase("region", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(0, 0, 0, 0x10000))
            },
            ErrnoCase("region overlaps", .fileExists) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 0x8000, 0x10000))
            },
            ErrnoCase("region at half a page", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 0x10800, 0x1000))
            },
            ErrnoCase("deletion of nothing", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(7, 0, 0, 0))
            },
            ErrnoCase("region changes size", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(0, 0, 0, 0x8000))
            },
            ErrnoCase("region changes host address", .invalidArgument) {
                $0.call(
                    $0.plain, .setUserMemoryRegion, words: $0.region(0, 0, 0, 0x10000, offset: 4096))
            },
            ErrnoCase("region with unknown flag", .invalidArgument) {
                $0.call(
                    $0.plain, .setUserMemoryRegion, words: $0.region(2, 1 << 7, 0x10_0000, 0x1000))
            },
            ErrnoCase("slot too large", .invalidArgument) {
                $0.call(
                    $0.plain, .setUserMemoryRegion, words: $0.region(32764, 0, 0x10_0000, 0x1000))
            },
            ErrnoCase("region in the kernel's half", .invalidArgument) {
                $0.call(
                    $0.plain, .setUserMemoryRegion,
                    words: $0.region(3, 0, 0x90_0000, 0x10000, address: 0xFFFF_8000_0000_0000))
            },
            ErrnoCase("region wraps", .invalidArgument) {
                $0.call(
                    $0.plain, .setUserMemoryRegion,
                    words: $0.region(3, 0, 0xFFFF_FFFF_FFFF_F000, 0x2000)
                )
            },
            ErrnoCase("region moves", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(0, 0, 0x20_0000, 0x10000))
            },
            ErrnoCase("dirty log that is not kept", .noSuchFileOrDirectory) {
                $0.call($0.plain, .getDirtyLog, words: [0, 0] + [0, 0])
            },
            ErrnoCase("dirty log of no slot", .noSuchFileOrDirectory) {
                $0.call($0.plain, .getDirtyLog, words: [9, 0] + [0, 0])
            },
            ErrnoCase("deletion", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(0, 0, 0x20_0000, 0))
            },
            ErrnoCase("region of half a page", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 0x10_0000, 0x1800))
            },
            ErrnoCase("region at half a host page", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 0x10_0000, 0x1000, offset: 0x800))
            },
            ErrnoCase("region in an address space that is not there", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(9 << 16 | 1, 0, 0x10_0000, 0x1000))
            },
            ErrnoCase("region of 2^31 pages", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 1 << 44, 1 << 43))
            },
            ErrnoCase("region beyond physical addresses", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(1, 0, 1 << 60, 0x1000))
            },
            ErrnoCase("region at the host's null page", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(20, 0, 0x4000_0000, 0x1000, address: 0))
            },
            ErrnoCase("region beside it", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 0, 0x4000_1000, 0x1000))
            },
            ErrnoCase("region moves onto another", .fileExists) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 0, 0x4000_0000, 0x1000))
            },
            ErrnoCase("region becomes read-only", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 2, 0x4000_1000, 0x1000))
            },
            ErrnoCase("region is logged", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 1, 0x4000_1000, 0x1000))
            },
            ErrnoCase("its log goes nowhere", .badAddress) {
                $0.call(
                    $0.plain, .getDirtyLog,
                    words: [21, 0, UInt32(truncatingIfNeeded: UInt(bitPattern: $0.end))]
                        + [UInt32(UInt(bitPattern: $0.end) >> 32)])
            },
            ErrnoCase("log of a slot that cannot be", .invalidArgument) {
                $0.call($0.plain, .getDirtyLog, words: [40000])
            },
            ErrnoCase("log of an address space that is not there", .invalidArgument) {
                $0.call($0.plain, .getDirtyLog, words: [9 << 16])
            },
            ErrnoCase("log is cleared from page 5 on", .invalidArgument) {
                $0.call($0.plain, .clearDirtyLog, words: [21, 1, 5, 0])
            },
            ErrnoCase("log is cleared beyond the slot", .invalidArgument) {
                $0.call($0.plain, .clearDirtyLog, words: [21, 64, 64, 0])
            },
            ErrnoCase("log of no slot is cleared", .noSuchFileOrDirectory) {
                $0.call($0.plain, .clearDirtyLog, words: [9, 1, 0, 0])
            },
            ErrnoCase("logs by hand with unknown flags", .invalidArgument) {
                $0.call($0.plain, .enableCapability, words: [168, 0, 1 << 9])
            },
            ErrnoCase("rings that are not there are reset", .invalidArgument) { $0.call($0.plain, .resetDirtyRings) },
            ErrnoCase("rings after a vCPU", .invalidArgument) {
                $0.call($0.plain, .enableCapability, words: [192, 0, 0x10000])
            },
            ErrnoCase("rings of no size", .invalidArgument) {
                $0.call($0.empty, .enableCapability, words: [192, 0, 0])
            },
            ErrnoCase("rings of 3 pages", .invalidArgument) {
                $0.call($0.empty, .enableCapability, words: [192, 0, 0x3000])
            },
            ErrnoCase("rings that are too large", .argListTooLong) {
                $0.call($0.empty, .enableCapability, words: [192, 0, 1 << 30])
            },
            ErrnoCase("deletion elsewhere", 0) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 0, 0x7000_0000, 0))
            },
            ErrnoCase("deletion twice", .invalidArgument) {
                $0.call($0.plain, .setUserMemoryRegion, words: $0.region(21, 0, 0x4000_1000, 0))
            }
        ]
    }
}
