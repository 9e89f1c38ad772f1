import Interrupts
import Synchronization
import TestSupport

/// A local APIC with a host that records what it is told.
final class TestVCPU: LocalAPICHost, @unchecked Sendable {
    private(set) var apic: LocalAPIC!
    weak var machine: TestMachine?
    let kicks = Atomic<Int>(0)
    /// System management interrupts.
    let managementInterrupts = Atomic<Int>(0)
    private(set) var sent: [InterruptMessage] = []
    private(set) var ended: [UInt8] = []
    private(set) var armed: [UInt64?] = []
    var time = GuestTime(nanoseconds: 1_000_000, tsc: 5_000_000)

    init(id: UInt32 = 0, isBootstrapProcessor: Bool = true, machine: TestMachine? = nil) {
        self.machine = machine
        apic = LocalAPIC(id: id, isBootstrapProcessor: isBootstrapProcessor, host: self)
    }

    func kick() { kicks.wrappingAdd(1, ordering: .relaxed) }

    func postSystemManagementInterrupt() { managementInterrupts.wrappingAdd(1, ordering: .relaxed) }

    func send(_ message: InterruptMessage) {
        sent.append(message)
        machine?.router.deliver(message, from: apic)
    }

    func broadcastEndOfInterrupt(vector: UInt8) {
        ended.append(vector)
        machine?.router.endOfInterrupt(vector: vector)
    }

    func armTimer(deadlineNanoseconds: UInt64?) { armed.append(deadlineNanoseconds) }

    func write(_ offset: UInt32, _ value: UInt32) {
        apic.writePage(offset: offset, byteCount: 4, value: UInt64(value), now: time)
    }

    func read(_ offset: UInt32) -> UInt32 {
        UInt32(truncatingIfNeeded: apic.readPage(offset: offset, byteCount: 4, now: time))
    }

    /// What a kernel does first: bit 8 of the spurious vector register.
    func enable() { write(APICRegister.spurious, 0x1FF) }

    func enterX2APIC() -> Bool { apic.setBase(apic.base | APICBase.x2APIC, isFromClient: false) }

    func advance(nanoseconds: UInt64) { time.nanoseconds += nanoseconds }

    /// Offset of a local vector table entry.
    static func vectorOffset(_ source: LocalInterrupt) -> UInt32 {
        APICRegister.localVectorTable + UInt32(source.rawValue) * 16
    }
}

/// Some vCPUs on one bus.
final class TestMachine: LocalAPICDirectory, @unchecked Sendable {
    private(set) var vcpus: [TestVCPU] = []
    private(set) var router: InterruptRouter!

    init(vcpuCount: Int, model: InterruptRouter.Model = .full, enabled: Bool = true) {
        router = InterruptRouter(directory: self, model: model)
        for index in 0..<vcpuCount {
            let vcpu = TestVCPU(id: UInt32(index), isBootstrapProcessor: index == 0, machine: self)
            vcpus.append(vcpu)
            if enabled { vcpu.enable() }
        }
    }

    func withLocalAPIC(id: UInt32, _ body: (LocalAPIC) -> Void) {
        for vcpu in vcpus where vcpu.apic.initialID == id { body(vcpu.apic) }
    }

    func forEachLocalAPIC(_ body: (LocalAPIC) -> Bool) {
        for vcpu in vcpus where !body(vcpu.apic) { return }
    }

    /// Which vCPUs have `vector` as their highest pending one.
    func receivers(of vector: UInt8) -> [Int] {
        vcpus.indices.filter { vcpus[$0].apic.highestPendingVector == vector }
    }

    /// Programs one redirection entry.
    func redirect(pin: Int, _ entry: UInt64) {
        let ioapic = router.ioapic!
        for half in 0..<2 {
            ioapic.write(offset: 0, byteCount: 4, value: UInt64(0x10 + 2 * pin + half))
            ioapic.write(offset: 0x10, byteCount: 4, value: entry >> UInt64(32 * half) & 0xFFFF_FFFF)
        }
    }

    func redirection(pin: Int) -> UInt64 {
        let ioapic = router.ioapic!
        var entry: UInt64 = 0
        for half in 0..<2 {
            ioapic.write(offset: 0, byteCount: 4, value: UInt64(0x10 + 2 * pin + half))
            entry |= ioapic.read(offset: 0x10, byteCount: 4) << UInt64(32 * half)
        }
        return entry
    }
}

/// Records calls of a `@Sendable` callback.
final class Recorder<Value: Sendable>: Sendable {
    private let storage = Mutex<[Value]>([])

    var values: [Value] { storage.withLock { $0 } }
    func append(_ value: Value) { storage.withLock { $0.append(value) } }
}

extension SeededGenerator {
    /// A number whose magnitude is random too, and often a limit.
    mutating func value() -> UInt64 {
        switch next() % 6 {
        case 0: 0
        case 1: .max
        case 2: next() & 0xFFFF_FFFF
        case 3: next() & 0xFF
        case 4: 1 << (next() & 63)
        default: next()
        }
    }
}
