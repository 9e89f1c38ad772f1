import Host
import KVMInterface
import Synchronization
import SystemPackage
import Testing
import UserspaceKVM

/// Several changes of memory slots in one request.
@Suite struct MemoryBatchTests {
    private func region(
        _ slot: UInt32, at address: UInt64, _ byteCount: Int, _ host: UnsafeRawPointer?, _ flags: MemoryRegionFlags = []
    ) -> UserMemoryRegion {
        UserMemoryRegion(
            slot: slot, flags: flags.rawValue, guest_phys_addr: address, memory_size: UInt64(byteCount),
            userspace_addr: UInt64(UInt(bitPattern: host)))
    }

    @Test func splitsASlotAndReturnsWhatWasWritten() throws {
        // mov [0x7000],al ; hlt ; mov [0x9000],al ; hlt
        let small = try SmallMachine(
            code: [0xA2, 0x00, 0x70, 0xF4, 0xA2, 0x00, 0x90, 0xF4], flags: .logDirtyPages)
        #expect(small.machine.memoryRegionBatchLimit >= 2)
        _ = try small.vcpu.run()
        let base = UnsafeRawPointer(small.memory.baseAddress!)
        let pageCount = SmallMachine.byteCount / 4096
        let bitmaps = try small.machine.setUserMemoryRegions(
            [
                region(0, at: 0, 0, nil), region(1, at: 0, 0x8000, base, .logDirtyPages),
                region(2, at: 0x8000, SmallMachine.byteCount - 0x8000, base + 0x8000, .logDirtyPages)
            ], dirtyPageCounts: [pageCount])
        #expect(bitmaps == [[1 << 7] + [UInt64](repeating: 0, count: pageCount / 64 - 1), [], []])
        _ = try small.vcpu.run()
        #expect(try small.machine.dirtyLog(slot: 1, pageCount: 8) == [0])
        #expect(try small.machine.dirtyLog(slot: 2, pageCount: pageCount - 8)[0] == 1 << 1)
    }

    /// Each is refused, and then nothing has changed.
    @Test(arguments: [
        ("flags", Errno.invalidArgument), ("two address spaces", .invalidArgument), ("overlap", .fileExists),
        ("unknown slot", .invalidArgument), ("too many", .argListTooLong), ("no room", .argListTooLong),
        ("bitmap at an unmapped page", .badAddress), ("elements at an unmapped page", .badAddress)
    ])
    func badRequestsChangeNothing(_ name: String, _ expected: Errno) throws {
        // mov [0x7000],al ; hlt
        let small = try SmallMachine(code: [0xA2, 0x00, 0x70, 0xF4], flags: .logDirtyPages)
        _ = try small.vcpu.run()
        let base = UnsafeRawPointer(small.memory.baseAddress!)
        var header = MemoryBatch(count: 2)
        var elements = [
            MemoryBatch.Element(region(0, at: 0, 0, nil)),
            MemoryBatch.Element(region(1, at: 0, SmallMachine.byteCount, base, .logDirtyPages))
        ]
        switch name {
        case "flags": header.flags = 1
        case "two address spaces": elements[1].region.slot |= 1 << 16
        case "overlap": elements.reverse()
        case "unknown slot": elements[0].region.slot = 7
        case "too many": header.count = UInt32(small.machine.memoryRegionBatchLimit) + 1
        case "no room":
            elements[0].dirtyBitmap = UInt64(UInt(bitPattern: base))
            elements[0].dirtyBitmapByteCount = UInt64(SmallMachine.byteCount / 4096 / 8 - 8)
        case "bitmap at an unmapped page":
            elements[0].dirtyBitmap = 0x10000
            elements[0].dirtyBitmapByteCount = 1 << 20
        default: break
        }
        let byteCount = MemoryLayout<MemoryBatch>.size + 2 * MemoryLayout<MemoryBatch.Element>.stride
        #expect(byteCount == 8 + 2 * 48)
        let argument = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 8)
        defer { argument.deallocate() }
        argument.storeBytes(of: header, as: MemoryBatch.self)
        elements.withUnsafeBytes { UnsafeMutableRawBufferPointer(rebasing: argument[8...]).copyMemory(from: $0) }
        let address = name == "elements at an unmapped page" ? 0x10000 : UInt(bitPattern: argument.baseAddress)
        #expect(throws: expected) {
            try small.backend.ioctl(
                small.machine.descriptor, KVMRequest.setUserMemoryRegions.rawValue, address)
        }
        #expect(
            try small.machine.dirtyLog(slot: 0, pageCount: SmallMachine.byteCount / 4096)[0] == 1 << 7, "\(name)")
        #expect(throws: Errno.noSuchFileOrDirectory) { try small.machine.dirtyLog(slot: 1, pageCount: 1) }
    }

    @Test func nothingToDoIsDone() throws {
        let small = try SmallMachine()
        #expect(try small.machine.setUserMemoryRegions([]) == [])
        // The same slot again.
        let base = UnsafeRawPointer(small.memory.baseAddress!)
        #expect(try small.machine.setUserMemoryRegions([region(0, at: 0, SmallMachine.byteCount, base)]) == [[]])
    }

    /// Running vCPUs are asked to forget what changed, and nothing else.
    @Test func aSplitDisturbsNobody() throws {
        let small = try SmallMachine()
        let base = UnsafeRawPointer(small.memory.baseAddress!)
        func flushes() throws -> UInt64 {
            try #require(small.machine.inspect()?.statistics["remote_tlb_flush_requests"])
        }
        let size = SmallMachine.byteCount
        let halves = [region(1, at: 0, size / 2, base), region(2, at: UInt64(size / 2), size / 2, base + size / 2)]
        try small.machine.setUserMemoryRegions([region(0, at: 0, 0, nil)] + halves)
        #expect(try flushes() == 0)
        // Joined, with other memory in the second half.
        try small.machine.setUserMemoryRegions(
            [region(2, at: 0, 0, nil), region(3, at: UInt64(size / 2), size / 2, base)])
        #expect(try flushes() == 1)
        // With a hole.
        try small.machine.setUserMemoryRegions([region(1, at: 0, 0, nil), region(4, at: 0x1000, 0x1000, base + 0x1000)])
        #expect(try flushes() == 2)
        // Read-only from now on, and logged.
        try small.machine.setUserMemoryRegions(
            [region(4, at: 0, 0, nil), region(5, at: 0x1000, 0x1000, base + 0x1000, .readOnly)])
        #expect(try flushes() == 3)
        try small.machine.setUserMemoryRegions(
            [region(5, at: 0, 0, nil), region(6, at: 0x1000, 0x1000, base + 0x1000, .logDirtyPages)])
        #expect(try flushes() == 4)
        try small.machine.setUserMemoryRegions(
            [region(6, at: 0, 0, nil), region(7, at: 0x1000, 0x1000, base + 0x1000, .logDirtyPages)])
        #expect(try flushes() == 5)
    }

    /// Code is known by its guest physical address: what was translated from a slot does not run in the next.
    @Test(arguments: [true, false]) func codeOfAReplacedSlotIsForgotten(isBatch: Bool) throws {
        // mov al,1 ; hlt ; jmp back
        let small = try SmallMachine(code: [0xB0, 1, 0xF4, 0xEB, 0xFB])
        let other = UnsafeMutableRawBufferPointer.allocate(byteCount: 0x4000, alignment: 4096)
        defer { other.deallocate() }
        other.copyMemory(from: UnsafeRawBufferPointer(rebasing: small.memory[..<0x4000]))
        other[SmallMachine.codeAddress + 1] = 2
        for round in 0..<4 {
            _ = try small.vcpu.run()
            #expect(try small.vcpu.registers().rax & 0xFF == (round % 2 == 0 ? 1 : 2))
            let host = round % 2 == 0 ? other.baseAddress : small.memory.baseAddress
            let slot = UInt32(round)
            let changes = [region(slot, at: 0, 0, nil), region(slot + 1, at: 0, 0x4000, host)]
            if isBatch {
                try small.machine.setUserMemoryRegions(changes)
            } else {
                for change in changes { try small.machine.setUserMemoryRegion(change) }
            }
        }
    }

    /// A vCPU that writes while its memory is split and joined sees no device and loses no page.
    @Test func aRunningGuestNoticesNothing() throws {
        // again: inc byte [0x7000] ; inc byte [0x9000] ; inc byte [0xB000] ; jmp again
        let small = try SmallMachine(
            code: [0xFE, 0x06, 0x00, 0x70, 0xFE, 0x06, 0x00, 0x90, 0xFE, 0x06, 0x00, 0xB0, 0xEB, 0xF2],
            flags: .logDirtyPages)
        let machine = small.machine
        let base = UnsafeRawPointer(small.memory.baseAddress!)
        let end = 0x2_0000
        var parts: [(slot: UInt32, range: Range<Int>)] = [(0, 0..<SmallMachine.byteCount)]
        var dirtyPageCount = 0
        var rounds = 0
        func change() throws {
            let cut = 0x8000 + (rounds % 5) * 0x1000
            let next: [(slot: UInt32, range: Range<Int>)] =
                parts.count == 1
                ? [(1, 0..<cut), (2, cut..<end), (3, end..<SmallMachine.byteCount)]
                : [(0, 0..<SmallMachine.byteCount)]
            let changes =
                parts.map { region($0.slot, at: 0, 0, nil) }
                + next.map { slot, range in
                    region(slot, at: UInt64(range.lowerBound), range.count, base + range.lowerBound, .logDirtyPages)
                }
            let bitmaps = try machine.setUserMemoryRegions(
                changes, dirtyPageCounts: parts.map { $0.range.count / 4096 })
            for bitmap in bitmaps { dirtyPageCount += bitmap.reduce(0) { $0 + $1.nonzeroBitCount } }
            parts = next
            rounds += 1
        }
        let exit = Mutex<VCPUExit?>(nil)
        let vcpu = small.vcpu
        try withThreads(
            1, { _ in exit.withLock { $0 = try? vcpu.run() } },
            meanwhile: {
                defer { vcpu.requestExit() }
                let deadline = MonotonicClock.nanoseconds() + 300_000_000
                while MonotonicClock.nanoseconds() < deadline { try change() }
            })
        guard case .interrupted = exit.withLock({ $0 }) else {
            Issue.record("the guest left with \(String(describing: exit.withLock { $0 }))")
            return
        }
        #expect(rounds > 10 && dirtyPageCount > 0)
        print("a running guest: \(rounds) batches, \(dirtyPageCount) dirty pages")
    }
}
