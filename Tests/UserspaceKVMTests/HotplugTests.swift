import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage
import TestSupport
import Testing
import UserspaceKVM

/// vCPUs that come, go and come back while others run guest code and send each other interrupts.
@Suite struct HotplugTests {
    /// Enables its x2APIC, then sends vector 0x45 to one vCPU after the other, ids 0 to the limit at 0x3FFC, and each time
    /// to all others as well. Counts its rounds at 0x4000 + 4 × id.
    private static let sender: [UInt8] = [
        0x66, 0xB9, 0x1B, 0x00, 0x00, 0x00,  // mov ecx, 1Bh
        0x0F, 0x32, 0x66, 0x0D, 0x00, 0x0C, 0x00, 0x00, 0x0F, 0x30,  // rdmsr ; or eax, 0C00h ; wrmsr
        0x66, 0xB9, 0x0F, 0x08, 0x00, 0x00, 0x66, 0xB8, 0xFF, 0x01, 0x00, 0x00,  // mov ecx, 80Fh ; mov eax, 1FFh
        0x66, 0x31, 0xD2, 0x0F, 0x30,  // xor edx, edx ; wrmsr
        0x66, 0xB9, 0x02, 0x08, 0x00, 0x00, 0x0F, 0x32, 0x66, 0x89, 0xC6,  // mov ecx, 802h ; rdmsr ; mov esi, eax
        0x66, 0x81, 0xE6, 0xFF, 0x00, 0x00, 0x00, 0x66, 0x89, 0xF7, 0xFB,  // and esi, 0FFh ; mov edi, esi ; sti
        0x66, 0x47, 0x66, 0x81, 0xE7, 0xFF, 0x3F, 0x00, 0x00,  // again: inc edi ; and edi, 3FFFh
        0x66, 0x3B, 0x3E, 0xFC, 0x3F, 0x72, 0x03, 0x66, 0x31, 0xFF,  // cmp edi, [3FFCh] ; jb send ; xor edi, edi
        0x66, 0xB9, 0x30, 0x08, 0x00, 0x00, 0x66, 0x89, 0xFA,  // send: mov ecx, 830h ; mov edx, edi
        0x66, 0xB8, 0x45, 0x00, 0x00, 0x00, 0x0F, 0x30,  // mov eax, 45h ; wrmsr
        0x66, 0xB8, 0x45, 0x00, 0x0C, 0x00, 0x0F, 0x30,  // mov eax, 0C0045h ; wrmsr
        0x67, 0x66, 0xFF, 0x04, 0xB5, 0x00, 0x40, 0x00, 0x00, 0xEB, 0xC9  // inc dword [4000h + esi * 4] ; jmp again
    ]
    /// Counts at 0x4400 + 4 × id, and ends the interrupt.
    private static let handler: [UInt8] = [
        0x66, 0x51, 0x66, 0x50, 0x66, 0x52, 0x67, 0x66, 0xFF, 0x04, 0xB5, 0x00, 0x44, 0x00, 0x00,
        0x66, 0xB9, 0x0B, 0x08, 0x00, 0x00, 0x66, 0x31, 0xC0, 0x66, 0x31, 0xD2, 0x0F, 0x30,
        0x66, 0x5A, 0x66, 0x58, 0x66, 0x59, 0xCF
    ]

    /// A machine with two vCPUs that send interrupts.
    private final class Fixture {
        let small: SmallMachine
        let leaves: [CPUIDEntry]

        init() throws {
            small = try SmallMachine(code: HotplugTests.sender, hasIRQChip: true)
            small.setHandler(vector: 0x45, code: HotplugTests.handler)
            leaves = try small.system.supportedCPUID()
            limit = 2
        }

        /// The first id that nothing is sent to.
        var limit: UInt32 = 0 {
            didSet { small.memory.storeBytes(of: limit, toByteOffset: 0x3FFC, as: UInt32.self) }
        }

        func count(at base: Int, _ id: UInt32) -> Int {
            Int(small.memory.load(fromByteOffset: base + Int(id) * 4, as: UInt32.self))
        }

        func sent(by id: UInt32) -> Int { count(at: 0x4000, id) }
        func taken(by id: UInt32) -> Int { count(at: 0x4400, id) }

        /// A vCPU that would run the sender.
        func plugIn(_ id: UInt32) throws -> VCPU {
            let vcpu = try small.machine.createVCPU(id: id)
            try vcpu.setCPUID(leaves)
            try SmallMachine.startInRealMode(vcpu)
            var registers = try vcpu.registers()
            registers.rsp = UInt64(0x8000 + 0x400 * (id & 7))
            try vcpu.setRegisters(registers)
            try vcpu.setMPState(.runnable)
            return vcpu
        }

        /// A vCPU that takes interrupts and does not run.
        func addTarget(_ id: UInt32) throws {
            let vcpu = try small.machine.createVCPU(id: id)
            try enableAPIC(vcpu)
        }

        func enableAPIC(_ vcpu: VCPU) throws {
            var page = try vcpu.localAPIC()
            withUnsafeMutableBytes(of: &page) { $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self) }
            try vcpu.setLocalAPIC(page)
        }

        /// Whether an NMI by message reaches the vCPU; ids below 255.
        func isReached(_ id: UInt32) throws -> Bool {
            try small.machine.signalMSI(address: 0xFEE0_0000 | UInt64(id) << 12, data: 0x400)
        }
    }

    /// A thread that runs a vCPU until it is asked to end.
    private final class Runner {
        let vcpu: VCPU
        private let thread: HostThread

        init(_ vcpu: VCPU) throws {
            self.vcpu = vcpu
            thread = try HostThread(name: "vCPU") {
                while true {
                    guard let exit = try? vcpu.run() else { return }
                    if case .interrupted = exit { return }
                }
            }
        }

        func stop() {
            vcpu.requestExit()
            thread.join()
        }
    }

    @Test func aParkedVCPUIsOutOfReach() throws {
        let fixture = try Fixture()
        let machine = fixture.small.machine
        #expect(try machine.checkExtension(.vcpuParking) == 1)
        let vcpu = try fixture.plugIn(5)
        try fixture.enableAPIC(vcpu)
        #expect(try fixture.isReached(5))
        try machine.parkVCPU(id: 5)
        #expect(try !fixture.isReached(5))
        #expect(throws: Errno.noSuchAddressOrDevice) { try vcpu.run() }
        #expect(throws: Errno.noSuchFileOrDirectory) { try machine.parkVCPU(id: 5) }
        #expect(throws: Errno.noSuchFileOrDirectory) { try machine.parkVCPU(id: 6) }
        #expect(throws: Errno.fileExists) { try machine.createVCPU(id: 0) }

        // It comes back as new: nothing of the registers, the interrupt or the mode is left.
        let again = try machine.createVCPU(id: 5)
        #expect(try again.registers().rip == 0xFFF0)
        let state = try again.mpState()
        #expect(state == .uninitialized)
        let page = try again.localAPIC()
        #expect(
            withUnsafeBytes(of: page) { bytes in
                (0..<8).allSatisfy { bytes.load(fromByteOffset: 0x200 + $0 * 16, as: UInt32.self) == 0 }
            })
        #expect(throws: Errno.fileExists) { try machine.createVCPU(id: 5) }
        try fixture.enableAPIC(again)
        #expect(try fixture.isReached(5))
    }

    @Test func aRunningVCPUIsNotParked() throws {
        let fixture = try Fixture()
        let runner = try Runner(try fixture.plugIn(1))
        while fixture.sent(by: 1) == 0 { sched_yield() }
        #expect(throws: Errno.resourceBusy) { try fixture.small.machine.parkVCPU(id: 1) }
        runner.stop()
        try fixture.small.machine.parkVCPU(id: 1)
    }

    /// The table grows, and vCPUs are unplugged and plugged in, under a storm of interrupts between vCPUs that run.
    @Test func aStormOfInterruptsWhileTheTableChanges() throws {
        let seed = runSeed("hotplug")
        var random = SeededGenerator(seed: seed)
        let fixture = try Fixture()
        let machine = fixture.small.machine
        let seconds = stressSeconds(0.6)
        let maximum = seconds > 5 ? 4096 : 250
        let constant = try Runner(fixture.small.vcpu)
        var visitor: Runner? = try Runner(try fixture.plugIn(1))
        var next: UInt32 = 2
        var parked: Set<UInt32> = []
        var changes = 0
        let start = MonotonicClock.nanoseconds()
        let deadline = start + UInt64(seconds * 1e9)
        // Where many threads compete for the processors, a vCPU may get none for long.
        let patience = deadline + 60_000_000_000
        var haveAllRun: Bool {
            fixture.sent(by: 0) > 0 && fixture.sent(by: 1) > 0 && fixture.taken(by: 0) > 0
        }
        while MonotonicClock.nanoseconds() < deadline || !haveAllRun && MonotonicClock.nanoseconds() < patience {
            changes += 1
            switch random.next() % 8 {
            case 0...2 where next < maximum:
                try fixture.addTarget(next)
                next += 1
                fixture.limit = next
            case 3...4 where next > 2:
                let id = 2 + UInt32(random.next() % UInt64(next - 2))
                if parked.insert(id).inserted {
                    try machine.parkVCPU(id: id)
                } else {
                    try fixture.addTarget(id)
                    parked.remove(id)
                }
            // In xAPIC mode an id is its lowest 8 bits.
            case 5 where next > 2 && next <= 255:
                let id = 2 + UInt32(random.next() % UInt64(next - 2))
                #expect(try fixture.isReached(id) == !parked.contains(id), "vCPU \(id), seed \(seed)")
            case 6:
                if let running = visitor {
                    running.stop()
                    try machine.parkVCPU(id: 1)
                    visitor = nil
                } else {
                    visitor = try Runner(try fixture.plugIn(1))
                }
            default:
                // The count is looked at first.
                let expected = next < Limits.vcpuCount ? Errno.fileExists : .invalidArgument
                #expect(throws: expected) { try machine.createVCPU(id: 0) }
            }
        }
        let milliseconds = Double(MonotonicClock.nanoseconds() - start) / 1e6
        visitor?.stop()
        constant.stop()
        for id in 2..<next where next <= 255 { #expect(try fixture.isReached(id) == !parked.contains(id)) }
        let sent = fixture.sent(by: 0) + fixture.sent(by: 1)
        #expect(haveAllRun)
        print(
            "hotplug: \(next) vCPUs, \(changes) changes; a millisecond \(Int(Double(sent) / milliseconds)) interrupts to one vCPU "
                + "and as many to all; \(fixture.taken(by: 0) + fixture.taken(by: 1)) taken by those that run")
    }

    /// Each mapping that a new vCPU needs fails in turn: an error, nothing is published, and the next attempt succeeds.
    @Test func creationFailsAtEachMapping() throws {
        let backend = UserspaceKVM()
        let system = try KVMSystem(backend: backend)
        let machine = try system.createVM()
        try machine.createIRQChip()
        try machine.enableCapability(.dirtyLogRing, 4096)
        var step = 0
        while true {
            var error: Errno?
            MemoryMapping.failing(after: step) {
                do throws(Errno) { _ = try machine.createVCPU(id: 3) } catch let caught { error = caught }
            }
            guard let error else { break }
            #expect(error == .noMemory)
            #expect(try !machine.signalMSI(address: 0xFEE0_3000, data: 0x46))
            step += 1
        }
        #expect(step >= 3)
        #expect(throws: Errno.fileExists) { try machine.createVCPU(id: 3) }
        _ = try machine.createVCPU(id: 4)
    }
}
