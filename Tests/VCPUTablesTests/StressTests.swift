import Glibc
import Host
import RCU
import Synchronization
import SystemPackage
import TestSupport
import Testing
import VCPUTableDesigns
import VCPUTables

/// Tables that grow, and lose and regain elements, while threads read them.
@Suite(.serialized) struct VCPUTableStressTests {
    private struct Shared: @unchecked Sendable {
        // SAFETY: `VCPUTable` is Sendable.
        let table: any VCPUTable<Element>
        let failures = Box()
    }

    private final class Box: Sendable {
        let failures = Atomic<Int>(0)
        let rounds = Atomic<Int>(0)
        let isDone = Atomic<Bool>(false)
        /// How many elements have been published.
        let published = Atomic<Int>(0)
        func fail() { failures.wrappingAdd(1, ordering: .relaxed) }
    }

    @Test(arguments: Design.allCases) func readersDuringGrowth(design: Design) throws {
        let seed = runSeed("vCPU table \(design)")
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(0.4) * 1e9)
        var random = SeededGenerator(seed: seed)
        alarm(UInt32(stressSeconds(0.4)) + 60)
        defer { alarm(0) }
        let before = Element.alive.load(ordering: .relaxed)
        let memory = TableMemory()
        var tables = 0
        var rounds = 0
        repeat {
            let shared = Shared(table: try design.makeTable(memory: memory))
            let threads = try (0..<3).map { number in
                let seed = random.next()
                return try HostThread(name: "reader-\(number)") {
                    // One reads as a vCPU, one as another thread, one as vCPUs that come and go.
                    switch number {
                    case 0: Self.read(shared.table.anyReader(), shared, seed, rounds: .max)
                    case 1: Self.read(shared.table, shared, seed, rounds: .max)
                    default:
                        while !shared.failures.isDone.load(ordering: .relaxed) {
                            Self.read(shared.table.anyReader(), shared, seed, rounds: 20)
                        }
                    }
                }
            }
            try write(shared, &random)
            shared.failures.isDone.store(true, ordering: .relaxed)
            threads.forEach { $0.join() }
            #expect(shared.failures.failures.load(ordering: .relaxed) == 0)
            rounds += shared.failures.rounds.load(ordering: .relaxed)
            tables += 1
        } while MonotonicClock.nanoseconds() < deadline
        #expect(Element.alive.load(ordering: .relaxed) == before)
        ThreadRCU.domain.barrier()
        #expect(memory.liveCount == 0)
        print("vCPU table \(design): \(tables) tables, \(rounds) rounds of readers")
    }

    /// Adds elements, in order but with gaps in their ids, and parks and brings back some of those with odd indices.
    private func write(_ shared: Shared, _ random: inout SeededGenerator) throws {
        let table = shared.table
        let count = Int.random(in: 1...600, using: &random)
        var parked: [UInt32] = []
        var ids: [UInt32] = []
        for index in 0..<count {
            // At most half of the elements are where their id says.
            let id = UInt32(index < count / 2 ? index : 2 * index)
            if random.next() % 16 == 0 {
                #expect(throws: Errno.ioError) {
                    try table.append(id: id) { _ throws(Errno) -> Element in throw .ioError }
                }
            }
            _ = try table.add(id)
            ids.append(id)
            // ORDERING: release pairs with the acquire of readers: what they find from now on must include the element.
            shared.failures.published.store(index + 1, ordering: .releasing)
            if random.next() % 4 == 0 {
                let candidate = Int.random(in: 0...index, using: &random)
                let id = ids[candidate]
                if candidate % 2 == 1, !parked.contains(id) {
                    try table.park(id: id)
                    parked.append(id)
                }
            }
            if random.next() % 4 == 0, let id = parked.popLast() { _ = try table.unpark(id: id) { _ in } }
            if random.next() % 32 == 0 { sched_yield() }
        }
    }

    private static func read(
        _ reader: any VCPUTableReader<Element>, _ shared: Shared, _ seed: UInt64, rounds: Int
    ) {
        readRounds(reader, shared, seed, rounds)
    }

    private static func readRounds(
        _ reader: some VCPUTableReader<Element>, _ shared: Shared, _ seed: UInt64, _ rounds: Int
    ) {
        let box = shared.failures
        var random = SeededGenerator(seed: seed)
        var last = 0
        var round = 0
        while round < rounds, !box.isDone.load(ordering: .relaxed) {
            round += 1
            // ORDERING: acquire pairs with the release in `write`.
            let published = box.published.load(ordering: .acquiring)
            let count = reader.count
            if count < last || count < published { box.fail() }
            last = count
            var next = 0
            reader.forEachIndexed { index, element in
                // Only odd ones may be missing.
                if index != next { if index != next + 1 || next % 2 == 0 { box.fail() } }
                if element.index != index || !element.isComplete { box.fail() }
                next = index + 1
                if random.next() % 64 == 0, reader.count < count { box.fail() }
                return true
            }
            if next < published - 1 { box.fail() }
            guard published > 0 else { continue }
            let index = Int.random(in: 0..<published, using: &random)
            let found: UInt32? = reader.withElement(at: index) {
                if $0.index != index || !$0.isComplete { box.fail() }
                return $0.id
            }
            if found == nil, index % 2 == 0 { box.fail() }
            if let found {
                let place: Int? = reader.withElement(id: found) { $0.index }
                // It may have been parked in between.
                if place != index, place != nil || index % 2 == 0 { box.fail() }
            }
            if reader.withElement(id: 16383, { _ in }) != nil { box.fail() }
        }
        box.rounds.wrappingAdd(round, ordering: .relaxed)
    }
}
