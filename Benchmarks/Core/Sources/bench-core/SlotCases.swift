import Glibc
import Host
import KVMInterface

/// Memory slots: looking them up, and changing them.
enum SlotCases {
    static var groups: [Group] {
        [10, 512, 32764].map { SlotLookups.group($0) } + [changesOfNobody]
    }

    static var tables: [SampleTable] {
        [
            changes("vCPUs and writer have a core each", guests: 1), changes("more threads than cores", guests: 4),
            stalls
        ]
    }

    // MARK: Changes

    private static var changesOfNobody: Group {
        Group(
            title: "creation and deletion of a slot, no vCPU runs",
            cases: [1, 512, 32000].flatMap { count in
                let slots = SlotLookups.Slots(count)
                let machine = BenchMachine(guests: 0, .compute)
                machine.fill(to: count)
                return [
                    Case(name: "\(count) present", operations: 200) {
                        for _ in 0..<200 { slots.createAndDelete() }
                        return UInt64(count)
                    },
                    Case(name: "\(count) present, as requests", operations: 200) {
                        for _ in 0..<200 { createAndDelete(machine) }
                        return UInt64(count)
                    }
                ]
            })
    }

    private static func createAndDelete(_ machine: BenchMachine) {
        let slot: UInt32 = 32763
        do {
            try machine.set(slot, at: 0xC_0000, byteCount: 0x1000)
            try machine.set(slot, at: 0xC_0000, byteCount: 0)
        } catch { fatalError("slot: \(error)") }
    }

    private static func changes(_ title: String, guests: Int) -> SampleTable {
        var rows: [SampleTable.Row] = []
        func add(_ name: String, _ machine: BenchMachine, _ body: () throws -> Void) {
            rows.append(
                SampleTable.Row(
                    name: name,
                    samples: SampleTable.measure(machine.waitForProgress) {
                        do { try body() } catch { fatalError("\(name): \(error)") }
                    }))
            machine.checkProgress()
        }
        for count in [2, 512, 32000] {
            let machine = BenchMachine(guests: guests, .compute)
            machine.fill(to: count)
            add("create + delete, untouched, \(count) slots", machine) { createAndDelete(machine) }
            machine.stop()
        }
        for count in [2, 512, 32000] {
            let machine = BenchMachine(guests: guests, .touch)
            machine.fill(to: count)
            let (target, size) = (BenchMachine.targetAddress, BenchMachine.targetByteCount)
            add("delete + create, touched, \(count) slots", machine) {
                try machine.set(1, at: target, byteCount: 0)
                try machine.set(1, at: target, byteCount: size)
            }
            var isThere = true
            add("move, touched, \(count) slots", machine) {
                isThere.toggle()
                // The host address stays what it is.
                var region = machine.region(1, at: target, byteCount: size)
                if !isThere { region.guest_phys_addr += 1 << 20 }
                try machine.machine.setUserMemoryRegion(region)
            }
            var flags: UInt32 = 0
            add("flags, touched, \(count) slots", machine) {
                flags ^= MemoryRegionFlags.logDirtyPages.rawValue
                try machine.set(1, at: target, byteCount: size, flags: flags)
            }
            let pages = (0..<64).map { index in
                machine.region(UInt32(32600 + index), at: 0x9_0000 + UInt64(index) << 12, byteCount: 4096)
            }
            let holes = pages.map { page in
                var hole = page
                hole.memory_size = 0
                return hole
            }
            isThere = false
            add("batch of 64, \(count) slots", machine) {
                isThere.toggle()
                try machine.machine.setUserMemoryRegions(isThere ? pages : holes)
            }
            machine.stop()
        }
        return SampleTable(title: "\(title): \(guests) guest(s), µs", unit: 1000, rows: rows)
    }

    // MARK: Stalls

    /// What the guest notices: the longest time between two accesses of it.
    private static var stalls: SampleTable {
        let machine = BenchMachine(guests: 1, .watch)
        defer { machine.stop() }
        let (target, size) = (BenchMachine.targetAddress, BenchMachine.targetByteCount)
        let whole = [machine.region(1, at: target, byteCount: size)]
        let halves = [
            machine.region(2, at: target, byteCount: size / 2),
            machine.region(3, at: target + UInt64(size / 2), byteCount: size / 2)
        ]
        func deletion(_ regions: [UserMemoryRegion]) -> [UserMemoryRegion] {
            regions.map { region in
                var region = region
                region.memory_size = 0
                return region
            }
        }
        var isWhole = true
        // Until the guest and this thread have found a processor each.
        _ = machine.gaps {}
        return SampleTable(
            title: "longest gap in a guest, µs", unit: machine.cyclesPerMicrosecond,
            rows: [
                SampleTable.Row(name: "nothing happens", samples: machine.gaps {}),
                SampleTable.Row(
                    name: "a region is split or joined, batch",
                    samples: machine.gaps {
                        let (old, new) = isWhole ? (whole, halves) : (halves, whole)
                        isWhole.toggle()
                        do { try machine.machine.setUserMemoryRegions(deletion(old) + new) } catch {
                            fatalError("split: \(error)")
                        }
                    }),
                SampleTable.Row(
                    name: "the same without the batch, guests kept out of KVM_RUN",
                    samples: machine.gaps {
                        let (old, new) = isWhole ? (whole, halves) : (halves, whole)
                        isWhole.toggle()
                        do {
                            try machine.withGuestsOut {
                                for region in deletion(old) + new { try machine.machine.setUserMemoryRegion(region) }
                            }
                        } catch { fatalError("split: \(error)") }
                    })
            ])
    }
}

extension BenchMachine {
    /// For each of many calls of `body`, the longest gap around it, in TSC cycles.
    func gaps(_ body: () -> Void) -> [Double] {
        (0..<400).map { _ in
            memory.storeBytes(of: 0, toByteOffset: Self.gapAddress, as: UInt32.self)
            usleep(50)
            body()
            usleep(50)
            return Double(memory.load(fromByteOffset: Self.gapAddress, as: UInt32.self))
        }
    }
}
