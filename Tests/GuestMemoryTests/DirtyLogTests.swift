import Addressing
import GuestMemory
import Host
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite struct DirtyLogTests {
    let memory = GuestMemory()

    private func mark(_ frames: UInt64...) {
        for frame in frames {
            memory.lookup(GuestFrameNumber(frame), addressSpace: 0)?.pointee.markDirty(frame: GuestFrameNumber(frame))
        }
    }

    @Test func readingClears() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 130, flags: 1))
        mark(100, 163, 164, 229)
        var flushed = 0
        #expect(try memory.getDirtyLog(slot: 1) { _ in flushed += 1 } == [1 | 1 << 63, 1, 1 << 1])
        #expect(flushed == 1)
        #expect(try memory.getDirtyLog(slot: 1) { _ in flushed += 1 } == [0, 0, 0])
        #expect(flushed == 1)
    }

    @Test func keepingLeavesTheBitsForClear() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 130, flags: 1))
        mark(100, 101, 170, 229)
        var flushed = 0
        let bits = try memory.getDirtyLog(slot: 1, keeping: true) { _ in flushed += 1 }
        #expect(bits == [3, 1 << 6, 2])
        #expect(flushed == 0)
        try memory.clearDirtyLog(slot: 1, firstPage: 0, pageCount: 64, bits: [1]) { _ in flushed += 1 }
        #expect(flushed == 1)
        try memory.clearDirtyLog(slot: 1, firstPage: 64, pageCount: 66, bits: [0, 2]) { _ in flushed += 1 }
        #expect(flushed == 2)
        // Nothing of this is set.
        try memory.clearDirtyLog(slot: 1, firstPage: 64, pageCount: 64, bits: [1]) { _ in flushed += 1 }
        #expect(flushed == 2)
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [2, 1 << 6, 0])
    }

    @Test func errors() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 130, flags: 1))
        try memory.set(UserMemoryRegion(2, frame: 300, pages: 10))
        func get(_ slot: UInt32) -> Errno? {
            do throws(Errno) { _ = try memory.getDirtyLog(slot: slot) { _ in } } catch { return error }
            return nil
        }
        #expect(get(1) == nil)
        #expect(get(2) == .noSuchFileOrDirectory)
        #expect(get(3) == .noSuchFileOrDirectory)
        #expect(get(0x1_0001) == .noSuchFileOrDirectory)
        #expect(get(0x2_0001) == .invalidArgument)
        #expect(get(32764) == .invalidArgument)
        func clear(_ first: UInt64, _ count: UInt64, _ bits: [UInt64] = [0, 0, 0]) -> Errno? {
            do throws(Errno) {
                try memory.clearDirtyLog(slot: 1, firstPage: first, pageCount: count, bits: bits) { _ in }
            } catch { return error }
            return nil
        }
        #expect(clear(0, 130) == nil)
        #expect(clear(128, 2) == nil)
        #expect(clear(0, 64) == nil)
        #expect(clear(1, 64) == .invalidArgument)
        #expect(clear(0, 65) == .invalidArgument)
        #expect(clear(64, 67) == .invalidArgument)
        #expect(clear(192, 0) == .invalidArgument)
        #expect(clear(0, .max & ~63) == .invalidArgument)
        #expect(clear(0, 130, [0, 0]) == .invalidArgument)
    }

    @Test func theLogFollowsTheSlot() throws {
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10))
        mark(101)
        try memory.set(UserMemoryRegion(1, frame: 100, pages: 10, flags: 1))
        mark(102)
        try memory.set(UserMemoryRegion(1, frame: 200, pages: 10, flags: 1))
        mark(203)
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [1 << 2 | 1 << 3])
        mark(204)
        try memory.set(UserMemoryRegion(1, frame: 200, pages: 10))
        try memory.set(UserMemoryRegion(1, frame: 200, pages: 10, flags: 1))
        #expect(try memory.getDirtyLog(slot: 1) { _ in } == [0])
    }

    /// Pages are marked while the log is read: each mark is seen once or more, never lost.
    @Test func noMarkIsLost() throws {
        let pages = 4096
        let seed = runSeed("dirty log")
        final class Guest: Sendable {
            /// What the guest would have written: a count for each guest.
            let written: [Counter]
            let running = Counter()
            init(_ count: Int) { written = (0..<count).map { _ in Counter() } }
        }
        let guest = Guest(pages)
        let memory = GuestMemory()
        try memory.set(UserMemoryRegion(1, frame: 0, pages: UInt64(pages), flags: 1))
        guest.running.add(3)
        let threads = try (0..<3).map { number in
            try HostThread(name: "guest") {
                var random = SeededGenerator(seed: seed &+ UInt64(number))
                for _ in 0..<100_000 {
                    let frame = GuestFrameNumber(random.next() % UInt64(pages))
                    memory.withReadSection {
                        // Write first, then mark.
                        guest.written[Int(frame.value)].add(1)
                        memory.lookup(frame, addressSpace: 0)?.pointee.markDirty(frame: frame)
                    }
                }
                guest.running.add(-1)
            }
        }
        // The copy a migration would make: pages are copied after their bit was taken.
        var copied = [Int](repeating: 0, count: pages)
        var isLast = false
        repeat {
            isLast = guest.running.value == 0
            for (index, word) in try memory.getDirtyLog(slot: 1, flush: { _ in memory.domain.synchronize() })
                .enumerated()
            {
                for bit in 0..<64 where word & 1 << bit != 0 {
                    copied[index * 64 + bit] = guest.written[index * 64 + bit].value
                }
            }
        } while !isLast
        threads.forEach { $0.join() }
        let written = guest.written.map { $0.value }
        #expect(copied == written)
    }
}
