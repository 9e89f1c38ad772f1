import Addressing
import GuestMemory
import Host
import MMU
import RCU
import X86

/// What a miss of the software TLB costs: the guest's tables and the slots, or the shadow pages.
enum MMUCases {
    static var groups: [Group] {
        [
            Group(title: "refill, 64 pages of one 2 MiB region", cases: cases(pages: 64, stride: 1 << 12)),
            Group(title: "refill, 1024 pages of 16 regions", cases: cases(pages: 1024, stride: 1 << 15)),
            Group(title: "refill, 256 pages of as many regions", cases: cases(pages: 256, stride: 1 << 21 | 1 << 12)),
            Group(title: "refill, 1024 pages of as many regions", cases: cases(pages: 1024, stride: 1 << 21 | 1 << 12)),
            Group(title: "device page", cases: cases(pages: 4, stride: 1 << 12, isDevice: true)),
            Group(title: "flush and refill, each of 16 pages of one region", cases: flushes(pages: 16))
        ]
    }

    private static let count = 20_000

    private static func cases(pages: UInt64, stride: UInt64, isDevice: Bool = false) -> [Case] {
        let guest = Guest(pages: pages, stride: stride, isDevice: isDevice)
        return [
            Case(name: "guest walk and slot", operations: count) { guest.walkAll(count) },
            Case(name: "shadow walk", operations: count) { guest.lookupAll(count) }
        ]
    }

    private static func flushes(pages: UInt64) -> [Case] {
        let guest = Guest(pages: pages, stride: 1 << 12, isDevice: false)
        let times = 200
        return [
            Case(name: "guest walk and slot", operations: times * Int(pages)) { guest.flushAndWalk(times, Int(pages)) },
            Case(name: "shadow walk", operations: times * Int(pages)) { guest.flushAndLookup(times, Int(pages)) }
        ]
    }

    /// One address space of a guest, with a processor that has walked all of it.
    private final class Guest {
        let ram: MemoryMapping
        let memory = GuestMemory()
        let walk: GuestWalk
        let walker: ShadowWalker
        let reader: RCUReader
        let context: PagingContext
        let addresses: [UInt64]
        var lastSlot = MemorySlotCache()
        let access = PageAccess(.read, isUser: true)
        private var nextTable: UInt64 = 2

        init(pages: UInt64, stride: UInt64, isDevice: Bool) {
            let frameCount: UInt64 = 8192
            guard let ram = try? MemoryMapping.anonymous(byteCount: Int(frameCount) << 12) else {
                fatalError("no memory for a guest")
            }
            let domain = RCUDomain()
            let region = UserMemoryRegion(
                slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: frameCount << 12,
                userspaceAddress: UInt64(UInt(bitPattern: ram.baseAddress)))
            guard (try? memory.setUserMemoryRegion(region) { _ in }) != nil else { fatalError("no memory for a slot") }
            self.ram = ram
            let mmu = ShadowMMU(memory: memory, domain: domain, pageLimit: 4096, isGuarded: { _ in false })
            walk = GuestWalk(memory: memory)
            walker = ShadowWalker(mmu, walk: walk)
            reader = RCUReader(domain)
            context = PagingContext(
                cr0: CR0.protection | CR0.paging | CR0.writeProtect, cr3: 0x1000,
                cr4: CR4.physicalAddressExtension | CR4.globalPages, efer: EFER.longModeEnable | EFER.longModeActive)
            addresses = (0..<pages).map { 0x7F00_0000_0000 + $0 * stride }
            reader.online()
            for (index, address) in addresses.enumerated() {
                map(address, isDevice ? 0xFEE00 + UInt64(index) : 4096 + UInt64(index))
            }
            // Often enough that the upper tables are tracked.
            for _ in 0..<20 {
                _ = flushAndLookup(1, addresses.count)
                mmu.finishTracking(mmu.beginTracking(walker.takeTrackingCandidates()))
            }
        }

        private func map(_ linear: UInt64, _ frame: UInt64) {
            var table: UInt64 = 1
            for level in [4, 3, 2] as [UInt64] {
                let place = ram.baseAddress + Int(table << 12 + (linear >> (3 + 9 * level) & 511) * 8)
                if place.load(as: UInt64.self) == 0 {
                    place.storeBytes(of: nextTable << 12 | 7, as: UInt64.self)
                    nextTable += 1
                }
                table = place.load(as: UInt64.self) >> 12
            }
            let place = ram.baseAddress + Int(table << 12 + (linear >> 12 & 511) * 8)
            place.storeBytes(of: frame << 12 | 7, as: UInt64.self)
        }

        /// What a vCPU does without shadow pages.
        @inline(__always)
        private func translate(_ linear: UInt64) -> UInt64 {
            memory.withReadSection {
                guard case .translated(let found) = walk.translate(linear, access, context) else { return 0 }
                let frame = GuestFrameNumber(found.physical >> 12)
                guard let slot = memory.lookup(frame, addressSpace: 0, cache: &lastSlot) else { return found.physical }
                return UInt64(UInt(bitPattern: slot.pointee.hostPointer(for: frame)))
            }
        }

        /// What it does with them.
        @inline(__always)
        private func lookup(_ linear: UInt64) -> UInt64 {
            switch walker.lookup(linear, access, context) {
            case .memory(let page): return UInt64(UInt(bitPattern: page.host))
            case .device(let physical): return physical
            case .none:
                let result = translate(linear)
                memory.withReadSection { walker.install(linear, access, context) }
                return result
            }
        }

        @inline(never) func walkAll(_ count: Int) -> UInt64 {
            var sum: UInt64 = 0
            var index = 0
            for _ in 0..<count {
                index = (index &* 5 &+ 1) & (addresses.count &- 1)
                sum &+= translate(addresses[index])
            }
            return sum
        }

        @inline(never) func lookupAll(_ count: Int) -> UInt64 {
            var sum: UInt64 = 0
            var index = 0
            for _ in 0..<count {
                index = (index &* 5 &+ 1) & (addresses.count &- 1)
                sum &+= lookup(addresses[index])
            }
            return sum
        }

        @inline(never) func flushAndWalk(_ times: Int, _ pages: Int) -> UInt64 {
            var sum: UInt64 = 0
            for _ in 0..<times {
                walk.flush()
                for index in 0..<pages { sum &+= translate(addresses[index]) }
            }
            return sum
        }

        @inline(never) func flushAndLookup(_ times: Int, _ pages: Int) -> UInt64 {
            var sum: UInt64 = 0
            for _ in 0..<times {
                walk.flush()
                walker.flushNonGlobal()
                for index in 0..<pages { sum &+= lookup(addresses[index]) }
            }
            return sum
        }
    }
}
