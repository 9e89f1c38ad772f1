import Addressing
import GuestMemory
import SystemPackage

/// Memory slots by themselves, without a machine.
enum SlotLookups {
    /// The rival: bases in order, found by halving.
    private struct SortedArray {
        let bases: UnsafeMutablePointer<UInt64>
        let count: Int

        func find(_ frame: UInt64) -> Int? {
            var low = 0
            var high = count
            while low < high {
                let middle = (low + high) / 2
                if bases[middle] <= frame { low = middle + 1 } else { high = middle }
            }
            return low > 0 && frame < bases[low - 1] + 16 ? low - 1 : nil
        }
    }

    /// Slots of 16 pages with holes of 16.
    static func group(_ count: Int) -> Group {
        let memory = GuestMemory()
        let array = SortedArray(bases: .allocate(capacity: count), count: count)
        for index in 0..<count {
            array.bases[index] = UInt64(index) * 32
            set(memory, UInt32(index), frame: UInt64(index) * 32, pages: 16)
        }
        let operations = 20_000
        // Not in order, and no two neighbours in the same slot.
        let frames = UnsafeMutablePointer<UInt64>.allocate(capacity: operations)
        var state: UInt64 = 1
        for index in 0..<operations {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            frames[index] = (state >> 33) % UInt64(count) * 32 + (state >> 20) % 16
        }
        func sum(_ body: (UInt64) -> UInt64) -> UInt64 {
            var sum: UInt64 = 0
            // Each depends on the one before.
            for index in 0..<operations { sum &+= body(frames[index] &+ (sum & 0)) }
            return sum
        }
        return Group(
            title: "slot by frame, \(count) slots",
            cases: [
                Case(name: "random", operations: operations) {
                    memory.withReadSection {
                        sum { UInt64(memory.lookup(GuestFrameNumber($0), addressSpace: 0)?.pointee.id ?? 0) }
                    }
                },
                Case(name: "random, sorted array", operations: operations) { sum { UInt64(array.find($0) ?? 0) } },
                Case(name: "the slot used last", operations: operations) {
                    var cache = MemorySlotCache()
                    return memory.withReadSection {
                        var sum: UInt64 = 0
                        for index in 0..<operations {
                            let frame = GuestFrameNumber(UInt64(index) & 15)
                            sum &+= UInt64(memory.lookup(frame, addressSpace: 0, cache: &cache)?.pointee.pageCount ?? 0)
                        }
                        return sum
                    }
                }
            ])
    }

    private static func set(_ memory: GuestMemory, _ slot: UInt32, frame: UInt64, pages: UInt64) {
        let region = UserMemoryRegion(
            slot: slot, flags: 0, guestPhysicalAddress: frame << 12, memorySize: pages << 12,
            userspaceAddress: 1 << 40 + frame << 12)
        do throws(Errno) { try memory.setUserMemoryRegion(region) { _ in } } catch {
            fatalError("slot \(slot): \(error)")
        }
    }

    /// Slots 1… of 16 pages, and room for slot 0.
    struct Slots {
        private let memory = GuestMemory()

        init(_ count: Int) {
            for index in 1...count { SlotLookups.set(memory, UInt32(index), frame: UInt64(index) * 32, pages: 16) }
        }

        func createAndDelete() {
            SlotLookups.set(memory, 0, frame: 8, pages: 16)
            SlotLookups.set(memory, 0, frame: 8, pages: 0)
        }
    }
}
