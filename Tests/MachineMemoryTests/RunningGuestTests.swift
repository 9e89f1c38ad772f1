import AddressSpace
import Addressing
import Glibc
import Host
import KVMInterface
import Machine
import SystemPackage
import TestSupport
import Testing
import UserspaceKVM

/// vCPUs hammer memory while its regions are split, joined, resized, moved, made read-only and back, logged and unlogged.
/// Nothing may leave guest code but accesses to the page that really comes and goes; no write and no written page may be lost;
/// and memory is unmapped as soon as it has left the address space, so that a stale translation crashes.
@Suite(.serialized) struct RunningGuestTests {
    @Test(arguments: [true, false]) func nothingIsNoticed(hasBatch: Bool) throws {
        try withWatchdog {
            let name = hasBatch ? "running guests, batches" : "running guests, no batches"
            let machine = try HammerMachine(hasBatch ? UserspaceKVM() : MaskedBackend())
            var mapper = Mapper(machine, seed: runSeed(name))
            let fault = try machine.run {
                for id in 0..<HammerMachine.vcpuCount {
                    while machine.rounds(id) == 0 && !machine.hasFault { usleep(100) }
                }
                let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(2) * 1e9)
                while MonotonicClock.nanoseconds() < deadline, !machine.hasFault, mapper.failure == nil {
                    try mapper.step()
                }
            }
            #expect(fault == nil)
            #expect(mapper.failure == nil)
            #expect(machine.lostWrite() == nil)
            let median = mapper.commitNanoseconds.sorted()[mapper.stepCount / 2] / 1000
            let rounds = (0..<HammerMachine.vcpuCount).map { machine.rounds($0) }
            print(
                "\(name): \(mapper.stepCount) transactions, median \(median) µs, \(mapper.checkCount) looks at the log, "
                    + "rounds \(rounds), \(machine.visits.value) exits")
            #expect(mapper.stepCount > 10 && mapper.checkCount > 0)
        }
    }
}

/// Changes a machine's memory map at random, and follows the written pages of its logged region.
private struct Mapper {
    let machine: HammerMachine
    var random: SeededGenerator
    private(set) var stepCount = 0
    private(set) var checkCount = 0
    private(set) var commitNanoseconds: [UInt64] = []
    private(set) var failure: String?
    /// Regions over parts of others, with the same bytes: they split what the guests see without changing it.
    private var overlays: [MemoryRegion] = []
    /// Overlays of the logged region, also those that have left, and where in it they begin.
    private var loggedOverlays: [(region: MemoryRegion, page: Int)] = []
    private var visitor: (region: MemoryRegion, pages: Pages)?
    /// The logged region as it follows from its pages that were reported as written.
    private let shadow = Pages(HammerGuest.loggedPageCount)

    init(_ machine: HammerMachine, seed: UInt64) {
        self.machine = machine
        random = SeededGenerator(seed: seed)
    }

    private mutating func number(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }

    mutating func step() throws {
        stepCount += 1
        var gone: [Pages] = []
        try machine.lock.withLock {
            let count = number(3) + 1
            machine.topology.begin()
            for _ in 0..<count { if let pages = try change() { gone.append(pages) } }
            let start = MonotonicClock.nanoseconds()
            try machine.topology.commit()
            commitNanoseconds.append(MonotonicClock.nanoseconds() - start)
            // Whoever still has a translation of it crashes.
            gone.forEach { $0.unmap() }
            if random.oneIn(4) { try compareWrittenPages() }
        }
        // Without a batch the guests run between two transactions only.
        usleep(UInt32(number(400)))
    }

    /// - Returns: memory that is not seen any more once the transaction is committed.
    private mutating func change() throws(Errno) -> Pages? {
        switch number(9) {
        case 0: try addOverlay(machine.counters, HammerGuest.counters, HammerGuest.counterPageCount, isLogged: false)
        case 1: try addOverlay(machine.logged, HammerGuest.logged, HammerGuest.loggedPageCount, isLogged: true)
        case 2:
            guard !overlays.isEmpty else { return nil }
            try machine.root.remove(overlays.remove(at: number(overlays.count)))
        case 3: try machine.counterRegion.resize(to: UInt128(HammerGuest.counterPageCount + number(5)) << 12)
        case 4: try machine.moverRegion.move(to: HammerGuest.mover + UInt64(number(2)) << 12)
        case 5: try machine.codeRegion.setReadOnly(!machine.codeRegion.isReadOnly)
        case 6: try machine.counterRegion.setDirtyLogging(!machine.counterRegion.logsDirtyPages)
        case 7: try addOverlay(machine.code, HammerGuest.code, HammerGuest.codePageCount, isLogged: false)
        default: return try changeVisitor()
        }
        return nil
    }

    /// Puts a region of the same bytes over some pages of another.
    private mutating func addOverlay(
        _ pages: Pages, _ address: UInt64, _ pageCount: Int, isLogged: Bool
    ) throws(Errno) {
        guard overlays.count < 6 else { return }
        let first = number(pageCount)
        let count = number(min(8, pageCount - first)) + 1
        let region = machine.topology.makeRAM(
            "overlay", host: pages.host(page: first), byteCount: UInt64(count) << 12)
        if address == HammerGuest.code { try region.setReadOnly(random.oneIn(2)) }
        if isLogged {
            try region.setDirtyLogging(true)
            loggedOverlays.append((region, first))
        }
        try machine.root.add(region, at: address + UInt64(first) << 12, priority: Int32(number(3) + 1))
        overlays.append(region)
    }

    private mutating func changeVisitor() throws(Errno) -> Pages? {
        if let visitor {
            try machine.root.remove(visitor.region)
            self.visitor = nil
            return visitor.pages
        }
        let pages = Pages(1)
        let region = machine.topology.makeRAM("visitor", host: pages.host(), byteCount: 4096)
        try machine.root.add(region, at: HammerGuest.visitor)
        visitor = (region, pages)
        return nil
    }

    /// With all vCPUs outside: the pages that were reported as written are all that differ from the last look.
    private mutating func compareWrittenPages() throws(Errno) {
        checkCount += 1
        machine.blocker.inhibit()
        defer { machine.blocker.permit() }
        try machine.slots.synchronizeDirtyPages()
        copy(machine.loggedRegion.takeDirtyPages(), from: 0)
        for (region, page) in loggedOverlays { copy(region.takeDirtyPages(), from: page) }
        loggedOverlays.removeAll { overlay in !overlays.contains { $0 === overlay.region } }
        for page in 0..<HammerGuest.loggedPageCount where failure == nil {
            if memcmp(shadow.base + page * 4096, machine.logged.base + page * 4096, 4096) != 0 {
                failure = "transaction \(stepCount): page \(page) was written and is not in the log"
            }
        }
    }

    private func copy(_ bitmap: [UInt64], from firstPage: Int) {
        for (index, word) in bitmap.enumerated() {
            for bit in 0..<64 where word >> UInt64(bit) & 1 != 0 {
                let offset = (firstPage + index * 64 + bit) * 4096
                memcpy(shadow.base + offset, machine.logged.base + offset, 4096)
            }
        }
    }
}
