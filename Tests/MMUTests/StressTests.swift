import Glibc
import GuestMemory
import Host
import MMU
import RCU
import Synchronization
import TestSupport
import Testing
import X86

/// Processors that edit their tables, flush and walk, while slots come and go; every hit is compared with what the
/// architecture allows.
@Suite struct StressTests {
    @Test(arguments: [1, 3, 1_000_000]) func everyHitIsAllowed(_ trackingThreshold: Int) throws {
        let seed = runSeed("shadow pages, tracked after \(trackingThreshold)")
        let world = try World(trackingThreshold: trackingThreshold, seed: seed)
        let isOver = Flag()
        let threads = try (0..<World.processorCount).map { number in
            try HostThread(name: "processor") {
                let processor = StressProcessor(world, number, seed: seed &+ UInt64(number))
                while !isOver.isSet && !world.hasFailed.isSet { processor.step() }
                processor.leave()
            }
        }
        let mover = try HostThread(name: "mover") {
            var mover = Mover(world, seed: seed &+ 100)
            while !isOver.isSet && !world.hasFailed.isSet { mover.step() }
        }
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
        while MonotonicClock.nanoseconds() < deadline && !world.hasFailed.isSet { world.pause() }
        isOver.set()
        mover.join()
        threads.forEach { $0.join() }
        #expect(world.failure == nil)
        #expect(world.machine.mmu.brokenInvariant() == nil)
        #expect(world.hits.value > 0 && world.writeHits.value > 0)
        world.machine.domain.barrier()
        #expect(world.machine.mmu.statistics.garbagePageCount == 0)
        let statistics = world.machine.mmu.statistics
        print(
            "shadow: \(world.hits.value) hits (\(world.writeHits.value) writes, \(world.deviceHits.value) devices) in",
            "\(world.accesses.value) accesses, \(world.edits.value) edits, \(statistics.syncCount) comparisons,",
            "\(statistics.caughtStoreCount) caught stores, \(statistics.floodCount) floods,",
            "\(statistics.zappedPageCount) pages zapped, \(world.slotChanges.value) slot changes")
    }
}

/// What a table's entry held, and when.
private struct History {
    /// In the order of their numbers.
    private(set) var values: [(number: Int, value: UInt64)] = [(0, 0)]

    mutating func append(_ number: Int, _ value: UInt64) { values.append((number, value)) }

    /// The value that store number `floor` left, and all later ones.
    func values(since floor: Int) -> some Sequence<UInt64> {
        let first = values.lastIndex { $0.number <= floor }!
        return values[first...].lazy.map(\.value)
    }

    /// Drops what no floor reaches any more.
    mutating func forget(before floor: Int) {
        if values.count > 64, let first = values.lastIndex(where: { $0.number <= floor }) {
            values.removeFirst(first)
        }
    }
}

/// What all threads of the test share.
private final class World: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `histories` and `storeCount` are under `lock`, the rest is atomic or constant.

    static let processorCount = 4
    static let contextCount = 3
    /// Frames of tables: roots, then for each level from 3 to 1 a few that contexts share.
    static let roots: [UInt64] = [1, 2, 3]
    static let tables: [[UInt64]] = [[], [20, 21, 22, 23, 24, 25], [10, 11, 12, 13], [5, 6, 7]]
    /// Frames of the slot that never changes, of the one that does, and what no slot has.
    static let steadyFrames: Range<UInt64> = 64..<1024
    static let movingFrames: Range<UInt64> = 2048..<2048 + 512
    static let deviceFrames: Range<UInt64> = 8192..<8200
    static let guardedFrames: Range<UInt64> = 64..<72
    /// Linear addresses differ in these.
    static let indexes: [[UInt64]] = [[], [0, 1, 2, 511], [0, 1, 300], [0, 5], [0, 256]]

    let machine: TestMachine
    let lock = FutexLock()
    private var histories: [UInt64: History] = [:]
    private var storeCount = 0
    /// The number of the last store that is in memory.
    let stored = Atomic<Int>(0)
    /// The lowest store that a processor may still have cached.
    let floors: [Atomic64]

    // The slot that moves: one incarnation after the other, each with host memory of its own.
    let movingMemory: MemoryMapping
    static let incarnationLimit = 1024
    let created = Atomic64()
    let deleted = Atomic64()
    /// Deletions that have begun.
    let deleting = Atomic64()
    /// Odd while frame `guardedFrames[i]` is guarded and everybody knows.
    let guards: [Atomic64]

    // Requests to the processors.
    private let wanted = Atomic<Int>(0)
    let seen: [Atomic64]

    let hasFailed = Flag()
    private var firstFailure: String?
    let accesses = Counter()
    let hits = Counter()
    let writeHits = Counter()
    let deviceHits = Counter()
    let edits = Counter()
    let slotChanges = Counter()

    final class Atomic64: Sendable {
        let value = Atomic<Int>(0)
        func load() -> Int { value.load(ordering: .sequentiallyConsistent) }
        func store(_ new: Int) { value.store(new, ordering: .sequentiallyConsistent) }
    }

    init(trackingThreshold: Int, seed: UInt64) throws {
        // Few pages, so that they are recycled as well; the generation wraps in device entries.
        machine = try TestMachine(
            frameCount: 1024, pageLimit: trackingThreshold == 1 ? 48 : 512, trackingThreshold: trackingThreshold,
            initialGeneration: (1 << 13) - 100)
        movingMemory = try .anonymous(byteCount: Self.incarnationLimit * Self.movingFrames.count << 12)
        floors = (0..<Self.processorCount).map { _ in Atomic64() }
        guards = Self.guardedFrames.map { _ in Atomic64() }
        seen = (0..<Self.processorCount).map { _ in Atomic64() }
        var random = SeededGenerator(seed: seed)
        for level in [4, 3, 2, 1] {
            for frame in level == 4 ? Self.roots : Self.tables[level] {
                for index in Self.indexes[level] {
                    store(randomEntry(level, &random), at: frame << 12 + index * 8)
                }
            }
        }
    }

    func pause() { MonotonicClock.sleep() }

    func fail(_ message: String) {
        lock.withLock { if firstFailure == nil { firstFailure = message } }
        hasFailed.set()
    }

    var failure: String? { lock.withLock { firstFailure } }

    // MARK: Tables

    /// A linear address that the tables may map.
    func randomLinear(_ random: inout SeededGenerator) -> UInt64 {
        var linear: UInt64 = random.next() % 512 << 12
        for level in 1...4 where level > 1 || !random.oneIn(8) {
            let index = Self.indexes[level].randomElement(using: &random)!
            let shift = UInt64(3 + 9 * level)
            linear = linear & ~(511 << shift) | index << shift
        }
        return linear >> 47 & 1 != 0 ? linear | 0xFFFF_0000_0000_0000 : linear
    }

    func randomEntry(_ level: Int, _ random: inout SeededGenerator) -> UInt64 {
        if random.oneIn(8) { return 0 }
        var entry = Bit.present | Bit.writable | Bit.user
        if random.oneIn(4) { entry ^= [Bit.writable, Bit.user, Bit.noExecute].randomElement(using: &random)! }
        if level > 1 && !(level == 2 && random.oneIn(4)) {
            return entry | Self.tables[level - 1].randomElement(using: &random)! << 12
        }
        if random.oneIn(4) { entry |= Bit.global }
        if random.oneIn(3) { entry |= Bit.status }
        if level == 2 { return entry | Bit.large | [0, 512, 2048].randomElement(using: &random)! << 12 }
        let range =
            random.oneIn(3)
            ? Self.movingFrames
            : random.oneIn(8)
                ? Self.deviceFrames
                : random.oneIn(2) ? Self.guardedFrames : Self.steadyFrames
        return entry | range.randomElement(using: &random)! << 12
    }

    /// A guest's store to a table.
    func store(_ value: UInt64, at address: UInt64) {
        lock.withLock {
            storeCount += 1
            let number = storeCount
            histories[address, default: History()].append(number, value)
            let floor = floors.map { $0.load() }.min()!
            histories[address]!.forget(before: floor)
            let body = {
                self.machine.word(address).pointee.store(value, ordering: .sequentiallyConsistent)
                self.stored.store(number, ordering: .sequentiallyConsistent)
            }
            let frame = address >> 12
            if machine.mmu.isTracked(frame) {
                machine.mmu.guestStore(frame: frame, offset: Int(address & 0xFFF), byteCount: 8, body)
            } else {
                body()
            }
        }
        edits.add(1)
    }

    /// Whether the tables may have translated `linear` to `frame` for an access, each level at any moment since its floor.
    func allows(_ linear: UInt64, _ access: PageAccess, frame: UInt64, _ context: PagingContext, _ floors: Floors)
        -> Bool
    {
        lock.withLock {
            isReachable(
                linear, access, frame, context, floors, table: context.root >> 12, level: 4, rights: Rights())
        }
    }

    /// What the tables held on the way to `linear` by the latest stores, for messages.
    func describe(_ linear: UInt64, _ context: PagingContext, _ floors: Floors) -> String {
        lock.withLock {
            var table = context.root >> 12
            var text = "\(floors), now \(storeCount)"
            for level in [4, 3, 2, 1] {
                let address = table << 12 + (linear >> UInt64(3 + 9 * level) & 511) * 8
                let values = histories[address]?.values.suffix(6).map {
                    "\($0.number): \(String($0.value, radix: 16))"
                }
                text += "; level \(level), table \(table): \(values ?? [])"
                let value = histories[address]?.values.last?.value ?? 0
                if value & Bit.present == 0 || value & Bit.large != 0 { break }
                table = (value & 0xF_FFFF_FFFF_F000) >> 12
            }
            return text
        }
    }

    private func isReachable(
        _ linear: UInt64, _ access: PageAccess, _ frame: UInt64, _ context: PagingContext, _ floors: Floors,
        table: UInt64, level: Int, rights: Rights
    ) -> Bool {
        let shift = UInt64(3 + 9 * level)
        guard let history = histories[table << 12 + (linear >> shift & 511) * 8] else { return false }
        for value in history.values(since: floors.lowest) where value & Bit.present != 0 {
            var rights = rights
            rights.restrict(by: value)
            if level == 1 || value & Bit.large != 0 {
                let floor = value & Bit.global != 0 ? floors.global : floors.local
                let mapped = (value & 0xF_FFFF_FFFF_F000) >> 12 + (level == 2 ? linear >> 12 & 511 : 0)
                if mapped == frame, rights.allow(access), history.values(since: floor).contains(value) { return true }
            } else if history.values(since: floors.upper).contains(value),
                isReachable(
                    linear, access, frame, context, floors, table: (value & 0xF_FFFF_FFFF_F000) >> 12,
                    level: level - 1, rights: rights)
            {
                return true
            }
        }
        return false
    }

    // MARK: Requests

    /// Returns when every processor has been outside since; `number` is the caller's, if it is one.
    func request(from number: Int? = nil) {
        let ticket = wanted.add(1, ordering: .sequentiallyConsistent).newValue
        if let number { seen[number].store(ticket) }
        for other in seen where other.load() < ticket {
            while other.load() < ticket {
                if let number { acknowledge(number) }
                MonotonicClock.yield()
            }
        }
    }

    func acknowledge(_ number: Int) {
        let ticket = wanted.load(ordering: .sequentiallyConsistent)
        if seen[number].load() < ticket { seen[number].store(ticket) }
    }
}

/// Rights accumulated on the way down.
private struct Rights {
    private var isWritable = true
    private var isUser = true
    private var isExecutable = true

    mutating func restrict(by entry: UInt64) {
        if entry & Bit.writable == 0 { isWritable = false }
        if entry & Bit.user == 0 { isUser = false }
        if entry & Bit.noExecute != 0 { isExecutable = false }
    }

    /// With WP, without SMEP and SMAP.
    func allow(_ access: PageAccess) -> Bool {
        (isUser || !access.isUser)
            && (access.kind == .execute ? isExecutable : access.kind == .read || isWritable)
    }
}

/// From which store on a processor may use what tables held.
private struct Floors {
    var upper: Int
    var local: Int
    var global: Int
    var lowest: Int { min(upper, local, global) }
}

private final class StressProcessor {
    let world: World
    let number: Int
    let cpu: TestProcessor
    var random: SeededGenerator
    // Floors of flushes, by context, and by page for those of single pages.
    var all = 0
    var global = 0
    var contexts: [Int: Int] = [:]
    var uppers: [Int: Int] = [:]
    var pages: [UInt64: [Int: Int]] = [:]
    var globalPages: [UInt64: Int] = [:]

    init(_ world: World, _ number: Int, seed: UInt64) {
        self.world = world
        self.number = number
        random = SeededGenerator(seed: seed)
        cpu = TestProcessor(
            world.machine, .long(root: World.roots[0] << 12, cr4: CR4.processContextIdentifiers))
    }

    var context: Int { Int(cpu.context.cr3 & 0xFFF) }

    func leave() {
        cpu.reader.offline()
        world.seen[number].store(.max)
        cpu.reader.online()
    }

    func step() {
        world.acknowledge(number)
        cpu.reader.quiescentState()
        if cpu.walker.hasTrackingCandidates {
            let tickets = world.machine.mmu.beginTracking(cpu.walker.takeTrackingCandidates())
            cpu.reader.whileOffline { world.request(from: number) }
            world.machine.mmu.finishTracking(tickets)
        }
        switch random.next() % 32 {
        case 0..<22: access(world.randomLinear(&random))
        case 22..<26: edit()
        case 26..<29: invalidate(world.randomLinear(&random))
        case 29: editAndInvalidate()
        case 30: switchContext()
        default: flush()
        }
        if random.oneIn(64) { forgetFloors() }
    }

    // MARK: Accesses

    private func floors(_ linear: UInt64) -> Floors {
        let page = linear >> 12
        let local = max(all, contexts[context] ?? 0, pages[page]?[context] ?? 0)
        return Floors(
            upper: max(all, contexts[context] ?? 0, uppers[context] ?? 0), local: local,
            global: max(global, globalPages[page] ?? 0, 0))
    }

    private func access(_ linear: UInt64) {
        let access = PageAccess.all.filter { !$0.overridesAccessPrevention }.randomElement(using: &random)!
        let deleted = world.deleted.load()
        let created = world.created.load()
        let guards = world.guards.map { $0.load() }
        let result = cpu.lookup(linear, access)
        world.accesses.add(1)
        switch result {
        case .memory(let page):
            world.hits.add(1)
            if access.kind == .write { world.writeHits.add(1) }
            let frame: UInt64
            let offset = page.host - world.machine.ram.baseAddress
            if offset >= 0 && offset < 1024 << 12 {
                frame = UInt64(offset) >> 12
            } else {
                let page = (page.host - world.movingMemory.baseAddress) >> 12
                frame = World.movingFrames.lowerBound + UInt64(page % World.movingFrames.count)
                let incarnation = page / World.movingFrames.count + 1
                // One more may be on its way in.
                let possible = deleted + 1...max(deleted, world.created.load()) + 1
                if !possible.contains(where: { ($0 - 1) % World.incarnationLimit + 1 == incarnation }) {
                    world.fail("a hit in incarnation \(incarnation) of a slot; \(deleted) were deleted")
                }
            }
            if !world.allows(linear, access, frame: frame, cpu.context, floors(linear)) {
                world.fail(
                    "\(access) at \(String(linear, radix: 16)) finds frame \(frame), which is stale or forbidden: "
                        + world.describe(linear, cpu.context, floors(linear)))
            }
            if access.kind == .write, World.guardedFrames.contains(frame) {
                let index = Int(frame - World.guardedFrames.lowerBound)
                if guards[index] % 2 == 1 && world.guards[index].load() == guards[index] {
                    world.fail("a write to guarded frame \(frame) hits")
                }
            }
        case .device(let physical):
            world.deviceHits.add(1)
            let frame = physical >> 12
            if !world.allows(linear, access, frame: frame, cpu.context, floors(linear)) {
                world.fail(
                    "\(access) at \(String(linear, radix: 16)) finds device \(frame), which is stale or forbidden: "
                        + world.describe(linear, cpu.context, floors(linear)))
            }
            if World.movingFrames.contains(frame), created > deleted, world.deleting.load() == deleted {
                // The slot was there all the time, from before the walk.
                world.fail("a device is found in a slot")
            }
        case .none:
            _ = cpu.fill(linear, access)
        }
    }

    // MARK: Edits

    private func edit() {
        let level = Int(random.next() % 8)
        let table: UInt64
        switch level {
        case 0: table = World.roots.randomElement(using: &random)!
        case 1, 2: table = World.tables[level == 1 ? 3 : 2].randomElement(using: &random)!
        default: table = World.tables[1].randomElement(using: &random)!
        }
        let tableLevel = level == 0 ? 4 : level == 1 ? 3 : level == 2 ? 2 : 1
        let index = World.indexes[tableLevel].randomElement(using: &random)!
        world.store(world.randomEntry(tableLevel, &random), at: table << 12 + index * 8)
    }

    private func editAndInvalidate() {
        let linear = world.randomLinear(&random)
        let context = cpu.context
        // As this processor's own tables are now.
        var table = context.root
        for level in [4, 3, 2, 1] {
            let address = table + (linear >> UInt64(3 + 9 * level) & 511) * 8
            let entry = world.machine.load(address)
            if level == 1 || entry & Bit.large != 0 && level == 2 {
                guard World.indexes[level].contains(linear >> UInt64(3 + 9 * level) & 511) else { return }
                world.store(world.randomEntry(level, &random), at: address)
                break
            }
            guard entry & Bit.present != 0 else { return }
            table = entry & 0xF_FFFF_FFFF_F000
        }
        invalidate(linear)
        access(linear)
    }

    // MARK: Flushes

    private var now: Int { world.stored.load(ordering: .sequentiallyConsistent) }

    private func invalidate(_ linear: UInt64) {
        let floor = now
        cpu.invalidate(linear)
        pages[linear >> 12, default: [:]][context] = floor
        globalPages[linear >> 12] = floor
        uppers[context] = floor
    }

    private func switchContext() {
        let next = UInt64(random.next() % UInt64(World.contextCount))
        // Mostly a context keeps its tables.
        let root = World.roots[Int(random.oneIn(8) ? random.next() % 3 : next)]
        let preserving = !random.oneIn(3)
        let floor = now
        cpu.loadCR3(root << 12 | next, preserving: preserving)
        if !preserving { contexts[Int(next)] = floor }
    }

    private func flush() {
        let floor = now
        cpu.walk.flush()
        switch random.next() % 4 {
        case 0:
            cpu.walker.flushAll()
            all = floor
            global = floor
        case 1:
            cpu.walker.flushNonGlobal()
            all = floor
        case 2:
            let pcid = UInt16(random.next() % UInt64(World.contextCount))
            cpu.walker.flush(pcid: pcid)
            contexts[Int(pcid)] = floor
        default:
            let linear = world.randomLinear(&random)
            let pcid = UInt16(random.next() % UInt64(World.contextCount))
            cpu.walker.flush(page: linear, pcid: pcid, cpu.context)
            pages[linear >> 12, default: [:]][Int(pcid)] = floor
            uppers[Int(pcid)] = floor
        }
    }

    /// Flushes all, so that the world may forget what was before.
    private func forgetFloors() {
        let floor = now
        cpu.walk.flush()
        cpu.walker.flushAll()
        all = floor
        global = floor
        pages = [:]
        globalPages = [:]
        world.floors[number].store(floor)
    }
}

/// Creates and deletes a slot, and guards frames.
private struct Mover {
    let world: World
    var random: SeededGenerator
    private var isThere = false

    init(_ world: World, seed: UInt64) {
        self.world = world
        random = SeededGenerator(seed: seed)
    }

    mutating func step() {
        switch random.next() % 8 {
        case 0..<3: changeSlot()
        case 3..<6: changeGuard()
        case 6: world.machine.mmu.zap(frames: World.steadyFrames) { world.request() }
        default: if random.oneIn(4) { world.machine.mmu.zapAll { world.request() } }
        }
        for _ in 0..<20 { MonotonicClock.yield() }
    }

    private mutating func changeSlot() {
        let frames = World.movingFrames
        let next = world.created.load() + (isThere ? 0 : 1)
        let place = (next - 1) % World.incarnationLimit * frames.count << 12
        let region = UserMemoryRegion(
            slot: 1, flags: 0, guestPhysicalAddress: frames.lowerBound << 12,
            memorySize: isThere ? 0 : UInt64(frames.count) << 12,
            userspaceAddress: UInt64(UInt(bitPattern: world.movingMemory.baseAddress + place)))
        if isThere { world.deleting.store(next) }
        do {
            try world.machine.memory.setUserMemoryRegion(region) { _ in
                world.machine.mmu.zap(frames: frames) { world.request() }
            }
        } catch { world.fail("a slot cannot be changed: \(error)") }
        isThere.toggle()
        if isThere { world.created.store(next) } else { world.deleted.store(next) }
        world.slotChanges.add(1)
    }

    private mutating func changeGuard() {
        let index = Int(random.next() % UInt64(World.guardedFrames.count))
        let frame = World.guardedFrames.lowerBound + UInt64(index)
        let count = world.guards[index].load()
        if count % 2 == 1 {
            world.guards[index].store(count + 1)
            world.machine.setGuarded(frame, false)
        } else {
            world.machine.setGuarded(frame, true)
            world.request()
            world.guards[index].store(count + 1)
        }
    }
}

extension MonotonicClock {
    fileprivate static func sleep() { _ = usleep(1000) }
    fileprivate static func yield() { _ = sched_yield() }
}
