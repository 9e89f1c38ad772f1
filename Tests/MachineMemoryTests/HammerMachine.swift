import AddressSpace
import Addressing
import Glibc
import Host
import KVMInterface
import Machine
import Synchronization
import SystemPackage
import TestSupport
import UserspaceKVM

/// A machine whose vCPUs run ``HammerGuest``.
final class HammerMachine: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: what is not constant belongs to the main thread, or is made to be shared.

    static let vcpuCount = 3

    let topology = MemoryTopology()
    let root: MemoryRegion
    let space: AddressSpace
    let lock = MachineLock()
    let blocker: AccelBlocker
    let slots: SlotListener
    private let system: KVMSystem
    private let machine: VirtualMachine
    private let vcpus: [(vcpu: VCPU, gate: AccelGate)]

    let low = Pages(Int(HammerGuest.lowByteCount) / 4096)
    /// Four pages more than the guests use, for a region that grows.
    let counters = Pages(HammerGuest.counterPageCount + 4)
    let code = Pages(HammerGuest.codePageCount)
    let mover = Pages(HammerGuest.moverPageCount + 1)
    let logged = Pages(HammerGuest.loggedPageCount)
    let counterRegion: MemoryRegion
    let codeRegion: MemoryRegion
    let moverRegion: MemoryRegion
    let loggedRegion: MemoryRegion

    private let isOver = Flag()
    /// The first thing that should not have happened.
    private let fault = Mutex<String?>(nil)
    /// Accesses to the page that comes and goes while it was not there.
    let visits = Counter()

    init(_ backend: any KVMBackend) throws {
        root = topology.makeContainer("root", byteCount: 1 << 64)
        space = AddressSpace("space", root: root)
        blocker = try AccelBlocker(lock: lock)
        system = try KVMSystem(backend: backend)
        machine = try system.createVM()
        slots = SlotListener(machine, blocker: blocker)
        counterRegion = topology.makeRAM(
            "counters", host: counters.host(), byteCount: UInt64(counters.byteCount), owner: counters)
        codeRegion = topology.makeRAM("code", host: code.host(), byteCount: UInt64(code.byteCount), owner: code)
        moverRegion = topology.makeRAM("mover", host: mover.host(), byteCount: UInt64(mover.byteCount), owner: mover)
        loggedRegion = topology.makeRAM(
            "logged", host: logged.host(), byteCount: UInt64(logged.byteCount), owner: logged)
        let lowRegion = topology.makeRAM("low", host: low.host(), byteCount: UInt64(low.byteCount), owner: low)

        for page in 0..<HammerGuest.codePageCount {
            let base = code.base + page * 4096
            base.storeBytes(
                of: HammerGuest.constant(page), toByteOffset: HammerGuest.constantOffset, as: UInt32.self)
            Self.store(HammerGuest.routine(page), to: base + HammerGuest.routineOffset)
        }
        var vcpus: [(vcpu: VCPU, gate: AccelGate)] = []
        for id in 0..<Self.vcpuCount {
            Self.store(HammerGuest.program(id), to: low.base + Int(HammerGuest.entry(id)))
            let vcpu = try machine.createVCPU(id: UInt32(id))
            try vcpu.setCPUID(try system.supportedCPUID())
            try Self.start(vcpu, id)
            vcpus.append((vcpu, lock.withLock { [blocker] in blocker.makeGate { vcpu.requestExit() } }))
        }
        self.vcpus = vcpus
        try lock.withLock { [topology, root, counterRegion, codeRegion, moverRegion, loggedRegion, space, slots] in
            try topology.transaction { () throws(Errno) in
                try root.add(lowRegion, at: 0)
                try counterRegion.resize(to: UInt128(HammerGuest.counterPageCount) << 12)
                try root.add(counterRegion, at: HammerGuest.counters)
                try root.add(codeRegion, at: HammerGuest.code)
                try moverRegion.resize(to: UInt128(HammerGuest.moverPageCount) << 12)
                try root.add(moverRegion, at: HammerGuest.mover)
                try loggedRegion.setDirtyLogging(true)
                try root.add(loggedRegion, at: HammerGuest.logged)
            }
            try space.add(slots)
        }
    }

    private static func store(_ bytes: [UInt8], to target: UnsafeMutableRawPointer) {
        bytes.withUnsafeBytes { target.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    }

    /// Flat 32-bit protected mode without paging.
    private static func start(_ vcpu: VCPU, _ id: Int) throws {
        var special = try vcpu.specialRegisters()
        func flat(_ type: UInt8) -> SegmentState {
            var segment = SegmentState()
            segment.limit = 0xFFFF_FFFF
            segment.selector = type == 11 ? 8 : 16
            (segment.type, segment.present, segment.s, segment.db, segment.g) = (type, 1, 1, 1, 1)
            return segment
        }
        special.cs = flat(11)
        (special.ds, special.es, special.ss) = (flat(3), flat(3), flat(3))
        special.cr0 = 0x11
        try vcpu.setSpecialRegisters(special)
        var registers = GeneralRegisters()
        registers.rip = HammerGuest.entry(id)
        registers.rsp = HammerGuest.stackEnd(id)
        registers.rflags = 2
        try vcpu.setRegisters(registers)
    }

    // MARK: Running

    /// Runs the guests while `body` runs, and somebody without the machine lock fetches written pages.
    /// - Returns: what went wrong.
    func run(while body: () throws -> Void) throws -> String? {
        var threads = try vcpus.indices.map { index in
            try HostThread(name: "vcpu", stackSize: 4 << 20) { self.work(index) }
        }
        threads.append(try HostThread(name: "fetcher") { self.fetchWrittenPages() })
        let result = Result { try body() }
        isOver.set()
        for (vcpu, _) in vcpus { vcpu.requestExit() }
        threads.forEach { $0.join() }
        try result.get()
        return fault.withLock { $0 }
    }

    var hasFault: Bool { fault.withLock { $0 != nil } }

    private func fail(_ message: String) {
        fault.withLock { if $0 == nil { $0 = message } }
        isOver.set()
    }

    private func work(_ index: Int) {
        let (vcpu, gate) = vcpus[index]
        while !isOver.isSet {
            do throws(Errno) {
                let exit = try gate.withRequest { () throws(Errno) in try vcpu.run() }
                handle(exit, of: vcpu)
            } catch {
                fail("vCPU \(index): KVM_RUN threw \(error)")
            }
        }
    }

    private func fetchWrittenPages() {
        while !isOver.isSet {
            do throws(Errno) { try slots.synchronizeDirtyPages() } catch { fail("written pages: \(error)") }
            usleep(2000)
        }
    }

    private func handle(_ exit: VCPUExit, of vcpu: VCPU) {
        switch exit {
        case .interrupted: vcpu.immediateExit = false
        case .mmio(let access)
        where access.address >= HammerGuest.visitor && access.address < HammerGuest.visitor + 4096:
            visits.add(1)
            if visits.value % 256 == 0 { changeMap() }
            space.transfer(at: access.address, isWrite: access.isWrite, data: access.data)
        case .mmio(let access):
            fail("vCPU \(vcpu.id): \(access.isWrite ? "write" : "read") of 0x\(String(access.address, radix: 16)) left")
        default:
            fail("vCPU \(vcpu.id): \(exit)")
        }
    }

    /// A device that changes the memory map, on a vCPU's thread.
    private func changeMap() {
        lock.withLock {
            do throws(Errno) { try codeRegion.setReadOnly(!codeRegion.isReadOnly) } catch { fail("a change: \(error)") }
        }
    }

    // MARK: What the guests did

    /// How many rounds a vCPU has completed.
    func rounds(_ id: Int) -> UInt32 { low.base.load(fromByteOffset: HammerGuest.rounds(id), as: UInt32.self) }

    private func counter(_ id: Int, _ pages: Pages, _ page: Int) -> UInt32 {
        pages.base.load(fromByteOffset: page * 4096 + HammerGuest.counterOffset(id), as: UInt32.self)
    }

    /// Compares all counters with the rounds, of which the last one may be incomplete. The guests do not run.
    /// - Returns: a counter that is wrong.
    func lostWrite() -> String? {
        for id in 0..<Self.vcpuCount {
            let expected = rounds(id)...rounds(id) + 1
            for page in 0..<HammerGuest.counterPageCount where !expected.contains(counter(id, counters, page)) {
                return "vCPU \(id): page \(page) counts \(counter(id, counters, page)), not \(expected)"
            }
            // Which page of the moving region was incremented depends on where it was.
            let moved = (0...HammerGuest.moverPageCount).reduce(0) { $0 + UInt64(counter(id, mover, $1)) }
            let moves = UInt64(HammerGuest.moverPageCount - 1)
            guard (UInt64(rounds(id)) * moves...(UInt64(rounds(id)) + 1) * moves).contains(moved) else {
                return "vCPU \(id): the moving region counts \(moved) in \(rounds(id)) rounds"
            }
            let sum = (0..<HammerGuest.loggedPageCount).reduce(0) { $0 + counter(id, logged, $1) }
            if !expected.contains(sum) { return "vCPU \(id): the logged region counts \(sum), not \(expected)" }
        }
        return nil
    }
}
