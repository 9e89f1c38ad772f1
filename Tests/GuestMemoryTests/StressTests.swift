import Addressing
import GuestMemory
import Host
import RCU
import SystemPackage
import TestSupport
import Testing

/// The slots as a plain list, with KVM's rules written down a second time.
private struct Model {
    var slots: [UInt32: UserMemoryRegion] = [:]

    func owner(of frame: UInt64, addressSpace: Int) -> UserMemoryRegion? {
        slots.values.first {
            $0.slot >> 16 == addressSpace && $0.guestPhysicalAddress >> 12 <= frame
                && frame < ($0.guestPhysicalAddress + $0.memorySize) >> 12
        }
    }

    /// The outcome of a request whose numbers are in range.
    func outcome(of region: UserMemoryRegion) -> Errno? {
        let old = slots[region.slot]
        if region.memorySize == 0 { return old == nil ? .invalidArgument : nil }
        if let old {
            if old.memorySize != region.memorySize || old.userspaceAddress != region.userspaceAddress
                || (old.flags ^ region.flags) & 2 != 0
            {
                return .invalidArgument
            }
        }
        for other in slots.values where other.slot != region.slot && other.slot >> 16 == region.slot >> 16 {
            if other.guestPhysicalAddress < region.guestPhysicalAddress + region.memorySize
                && region.guestPhysicalAddress < other.guestPhysicalAddress + other.memorySize
            {
                return .fileExists
            }
        }
        return nil
    }

    mutating func apply(_ region: UserMemoryRegion) {
        slots[region.slot] = region.memorySize == 0 ? nil : region
    }
}

@Suite struct StressTests {
    private static let frameCount: UInt64 = 4096
    /// A slot that changes its flags only: readers must find it always.
    private static let permanent = UserMemoryRegion(32763, frame: frameCount, pages: 64)

    /// Seeded changes against the model, while readers look frames up.
    @Test func randomChangesMatchTheModel() throws {
        let seed = runSeed("slots")
        var random = SeededGenerator(seed: seed)
        let domain = RCUDomain()
        let memory = GuestMemory(domain: domain, initialGeneration: (1 << 63) - 1000)
        try memory.set(Self.permanent)
        var model = Model()
        model.apply(Self.permanent)

        let isOver = Flag()
        let wrong = Counter()
        let lookups = Counter()
        let readers = try (0..<3).map { number in
            try HostThread(name: "reader") {
                Self.read(memory, domain, seed: seed &+ UInt64(number) &+ 1, until: isOver, wrong, lookups)
            }
        }
        defer {
            isOver.set()
            readers.forEach { $0.join() }
        }

        let writer = RCUReader(domain)
        var successes = 0
        for step in 0..<3000 {
            let region = Self.change(model, &random)
            let expected = model.outcome(of: region)
            let isRefused = random.oneIn(10)
            let isNoChange = model.slots[region.slot] == region
            var thrown: Errno?
            do throws(Errno) {
                try memory.setUserMemoryRegion(
                    region,
                    prepare: { (_) throws(Errno) in if isRefused { throw .resourceTemporarilyUnavailable } },
                    flush: { change in
                        // An INVALID slot is published for deletions and moves: nobody finds it.
                        if case .flagsOnly = change { return }
                        let frame = change.old!.baseFrame
                        if memory.lookup(frame, addressSpace: Int(change.old!.addressSpace)) != nil { wrong.add(1) }
                        domain.synchronize()
                    })
            } catch { thrown = error }
            if expected == nil && isRefused && !isNoChange {
                #expect(thrown == .resourceTemporarilyUnavailable, "step \(step): \(region)")
            } else {
                #expect(thrown == expected, "step \(step): \(region)")
                if expected == nil {
                    model.apply(region)
                    successes += 1
                }
            }
            let broken = memory.brokenInvariant()
            #expect(broken == nil, "step \(step): \(region)")
            writer.online()
            for _ in 0..<20 {
                let frame = random.next() % (Self.frameCount + 80)
                let space = Int(random.next() % 2)
                let expected = model.owner(of: frame, addressSpace: space)
                writer.withReadSection {
                    let slot = memory.lookup(GuestFrameNumber(frame), addressSpace: space)
                    let found = slot.map { slot in
                        UserMemoryRegion(
                            slot: UInt32(slot.pointee.addressSpace) << 16 | UInt32(slot.pointee.id),
                            flags: slot.pointee.flags.rawValue,
                            guestPhysicalAddress: slot.pointee.baseFrame.address.value,
                            memorySize: slot.pointee.pageCount << 12,
                            userspaceAddress: UInt64(slot.pointee.hostAddress))
                    }
                    #expect(found == expected, "step \(step): frame \(frame) of address space \(space)")
                }
            }
            writer.offline()
            if broken != nil || thrown != nil && thrown != expected && !isRefused { break }
        }
        #expect(wrong.value == 0)
        #expect(lookups.value > 0)
        #expect(successes > 300)
        print("slots: \(successes) changes, \(lookups.value) look-ups")
    }

    /// A request that is often possible.
    private static func change(_ model: Model, _ random: inout SeededGenerator) -> UserMemoryRegion {
        if random.oneIn(8) {
            var region = model.slots[permanent.slot]!
            region.flags ^= 1
            return region
        }
        let slot = UInt32(random.next() % 24) * 3 | UInt32(random.next() % 2) << 16
        let frame = random.next() % frameCount
        if var region = model.slots[slot], !random.oneIn(10) {
            switch random.next() % 4 {
            case 0: region.memorySize = 0
            case 1:
                let last = frameCount - region.memorySize >> 12
                // Often so near that it overlaps its own old place.
                let near = region.guestPhysicalAddress >> 12 + random.next() % 8
                region.guestPhysicalAddress = min(random.oneIn(2) ? near : frame, last) << 12
            case 2: region.flags ^= 1
            default:
                region.flags ^= UInt32(random.next() % 4)
                if random.oneIn(4) { region.memorySize += 4096 }
            }
            return region
        }
        let pages = min(1 + random.next() % 200, frameCount - frame)
        return UserMemoryRegion(slot, frame: frame, pages: pages, flags: UInt32(random.next() % 4))
    }

    private static func read(
        _ memory: GuestMemory, _ domain: RCUDomain, seed: UInt64, until isOver: Flag, _ wrong: Counter,
        _ lookups: Counter
    ) {
        var random = SeededGenerator(seed: seed)
        var cache = MemorySlotCache()
        let reader = RCUReader(domain)
        reader.online()
        while !isOver.isSet {
            for _ in 0..<Int(1 + random.next() % 50) {
                let value = random.oneIn(4) ? frameCount + random.next() % 64 : random.next() % frameCount
                let frame = GuestFrameNumber(value)
                let space = value < frameCount ? Int(random.next() % 2) : 0
                let isCached = random.oneIn(2)
                reader.withReadSection {
                    let slot =
                        isCached
                        ? memory.lookup(frame, addressSpace: space, cache: &cache)
                        : memory.lookup(frame, addressSpace: space)
                    if let slot {
                        let number = UInt64(slot.pointee.addressSpace) << 16 | UInt64(slot.pointee.id)
                        let isWhole =
                            slot.pointee.contains(frame) && Int(slot.pointee.addressSpace) == space
                            && UInt64(slot.pointee.hostAddress) == (number + 1) << 24
                        if !isWhole || slot.pointee.flags.contains(.invalid) { wrong.add(1) }
                        slot.pointee.markDirty(frame: frame)
                    } else if value >= frameCount {
                        wrong.add(1)
                    }
                }
            }
            lookups.add(1)
            if random.oneIn(8) {
                reader.whileOffline {}
            } else {
                reader.quiescentState()
            }
        }
        reader.offline()
    }
}
