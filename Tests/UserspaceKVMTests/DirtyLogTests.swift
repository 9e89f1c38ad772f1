import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

@Suite struct DirtyLogTests {
    /// Pages that a guest writes are reported once, also when it writes to one again after the log was taken.
    @Test func guestWritesAreLogged() throws {
        // mov [0x2000],al ; mov [0x7000],al ; hlt ; mov [0x2000],al ; hlt
        let small = try SmallMachine(
            code: [0xA2, 0x00, 0x20, 0xA2, 0x00, 0x70, 0xF4, 0xA2, 0x00, 0x20, 0xF4], flags: .logDirtyPages)
        let pageCount = SmallMachine.byteCount / 4096
        _ = try small.vcpu.run()
        #expect(try small.machine.dirtyLog(slot: 0, pageCount: pageCount)[0] == 1 << 2 | 1 << 7)
        #expect(try small.machine.dirtyLog(slot: 0, pageCount: pageCount).allSatisfy { $0 == 0 })
        _ = try small.vcpu.run()
        #expect(try small.machine.dirtyLog(slot: 0, pageCount: pageCount)[0] == 1 << 2)
    }

    @Test func writesToReadOnlyMemoryExit() throws {
        // mov al,[0x100] would be memory; mov es:[0x4010],al at 0x104000 is read-only memory.
        let small = try SmallMachine(code: [
            0xB8, 0xFF, 0xFF, 0x8E, 0xC0, 0x26, 0xA0, 0x10, 0x40, 0x26, 0xA2, 0x11, 0x40, 0xF4
        ])
        let rom = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { rom.deallocate() }
        rom.initializeMemory(as: UInt8.self, repeating: 0xC5)
        try small.machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 1, flags: MemoryRegionFlags.readOnly.rawValue, guest_phys_addr: 0x10_4000, memory_size: 4096,
                userspace_addr: UInt64(UInt(bitPattern: rom.baseAddress))))
        guard case .mmio(let access) = try small.vcpu.run() else {
            Issue.record("no MMIO exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(access.isWrite && access.address == 0x10_4001 && access.value == 0xC5)
        #expect(rom.allSatisfy { $0 == 0xC5 })
        try small.machine.setUserMemoryRegion(
            UserMemoryRegion(slot: 1, flags: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0))
    }
}

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
@Suite struct ManualDirtyLogTests {
    /// mov [0x2000],al ; mov [0x4_1000 by es],al ; hlt, again and again.
    private static let code: [UInt8] = [
        0xB8, 0x00, 0x40, 0x8E, 0xC0, 0xA2, 0x00, 0x20, 0x26, 0xA2, 0x00, 0x10, 0xF4, 0xEB, 0xF6
    ]
    private static let pageCount = SmallMachine.byteCount / 4096

    @Test func bitsStayUntilTheyAreCleared() throws {
        let small = try SmallMachine(code: Self.code, flags: .logDirtyPages)
        #expect(try small.machine.checkExtension(.manualDirtyLogProtect) == 3)
        try small.machine.enableCapability(.manualDirtyLogProtect, 1)
        _ = try small.vcpu.run()
        func log() throws -> [UInt64] { try small.machine.dirtyLog(slot: 0, pageCount: Self.pageCount) }
        #expect(try log() == [1 << 2, 1 << 1, 0, 0])
        #expect(try log() == [1 << 2, 1 << 1, 0, 0])
        try small.machine.clearDirtyLog(slot: 0, firstPage: 64, pageCount: 64, bits: [~0])
        #expect(try log() == [1 << 2, 0, 0, 0])
        _ = try small.vcpu.run()
        #expect(try log() == [1 << 2, 1 << 1, 0, 0])
        // Only the bits that are named.
        try small.machine.clearDirtyLog(slot: 0, firstPage: 0, pageCount: 128, bits: [~(1 << 2), 1 << 1])
        #expect(try log() == [1 << 2, 0, 0, 0])
        try small.machine.enableCapability(.manualDirtyLogProtect, 0)
        #expect(try log() == [1 << 2, 0, 0, 0])
        #expect(try log() == [0, 0, 0, 0])
    }

    @Test func badRangesAreRefused() throws {
        let small = try SmallMachine(code: Self.code, flags: .logDirtyPages)
        for (first, count) in [(1, 64), (0, 65), (256, 64), (192, 128)] {
            #expect(throws: Errno.invalidArgument, "\(first) + \(count)") {
                try small.machine.clearDirtyLog(slot: 0, firstPage: first, pageCount: count, bits: [0, 0])
            }
        }
        #expect(throws: Errno.noSuchFileOrDirectory) {
            try small.machine.clearDirtyLog(slot: 5, firstPage: 0, pageCount: 64, bits: [0])
        }
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.manualDirtyLogProtect, 2) }
        #expect(throws: Errno.invalidArgument) { try small.machine.enableCapability(.manualDirtyLogProtect, 5) }
    }

    /// With `KVM_DIRTY_LOG_INITIALLY_SET` every page counts as written at first.
    @Test func logsThatStartSet() throws {
        let small = try SmallMachine(code: Self.code)
        try small.machine.enableCapability(.manualDirtyLogProtect, 3)
        try small.machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 0, flags: MemoryRegionFlags.logDirtyPages.rawValue, guest_phys_addr: 0,
                memory_size: UInt64(SmallMachine.byteCount),
                userspace_addr: UInt64(UInt(bitPattern: small.memory.baseAddress))))
        #expect(try small.machine.dirtyLog(slot: 0, pageCount: Self.pageCount) == [~0, ~0, ~0, ~0])
        try small.machine.clearDirtyLog(
            slot: 0, firstPage: 0, pageCount: Self.pageCount, bits: [~0, ~0, ~0, ~0])
        _ = try small.vcpu.run()
        #expect(try small.machine.dirtyLog(slot: 0, pageCount: Self.pageCount) == [1 << 2, 1 << 1, 0, 0])
    }
}

/// `KVM_CAP_DIRTY_LOG_RING`.
@Suite struct DirtyRingTests {
    private static let ringByteCount = 4096

    /// A machine whose vCPU has a ring.
    private final class Fixture {
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: SmallMachine.byteCount, alignment: 4096)
        let machine: VirtualMachine
        let vcpu: VCPU
        let ring: DirtyRingArea

        init(code: [UInt8]) throws {
            memory.initializeMemory(as: UInt8.self, repeating: 0)
            for (index, byte) in code.enumerated() { memory[SmallMachine.codeAddress + index] = byte }
            let system = try KVMSystem(backend: UserspaceKVM())
            machine = try system.createVM()
            try machine.enableCapability(.dirtyLogRing, UInt64(DirtyRingTests.ringByteCount))
            vcpu = try machine.createVCPU(id: 0)
            ring = try vcpu.dirtyRing(byteCount: DirtyRingTests.ringByteCount)
            try machine.setUserMemoryRegion(
                UserMemoryRegion(
                    slot: 7, flags: MemoryRegionFlags.logDirtyPages.rawValue, guest_phys_addr: 0,
                    memory_size: UInt64(memory.count), userspace_addr: UInt64(UInt(bitPattern: memory.baseAddress))))
            try vcpu.setCPUID(try system.supportedCPUID())
            try SmallMachine.startInRealMode(vcpu)
        }

        deinit { memory.deallocate() }

        /// Runs to HLT, answers input with 0x5A, and harvests and resets whenever the ring is full.
        ///
        /// - Parameter whenFull: called before that.
        /// - Returns: the pages in the order of the ring, and how often it was full.
        func runToHalt(whenFull: () throws -> Void = {}) throws -> (pages: [UInt64], fullCount: Int) {
            var pages: [UInt64] = []
            var fullCount = 0
            while true {
                switch try vcpu.run() {
                case .io(let access): access.value = 0x5A
                case .unknown(UInt32(KVM_EXIT_DIRTY_RING_FULL)):
                    fullCount += 1
                    try whenFull()
                    pages += harvest()
                    try machine.resetDirtyRings()
                case .hlt: return (pages + harvest(), fullCount)
                case let exit:
                    Issue.record("\(exit)")
                    return (pages, fullCount)
                }
            }
        }

        func harvest() -> [UInt64] {
            var pages: [UInt64] = []
            ring.harvest { slot, page in if slot == 7 { pages.append(page) } }
            return pages
        }
    }

    @Test func pagesAreReportedOnceUntilTheReset() throws {
        // mov [0x7000],al ; mov [0x2000],al ; hlt ; jmp back
        let fixture = try Fixture(code: [0xA2, 0x00, 0x70, 0xA2, 0x00, 0x20, 0xF4, 0xEB, 0xF7])
        _ = try fixture.vcpu.run()
        #expect(fixture.harvest() == [7, 2])
        _ = try fixture.vcpu.run()
        #expect(fixture.harvest().isEmpty)
        #expect(try fixture.machine.resetDirtyRings() == 2)
        #expect(try fixture.machine.resetDirtyRings() == 0)
        _ = try fixture.vcpu.run()
        #expect(fixture.harvest() == [7, 2])
        #expect(throws: Errno.noSuchAddressOrDevice) { try fixture.machine.dirtyLog(slot: 7, pageCount: 256) }
    }

    /// What system management mode writes is reported under the slots of its own address space.
    @Test func bothAddressSpaces() throws {
        // mov [0x2000],al ; hlt ; jmp back. Handler: mov [0x5000],al ; rsm
        let fixture = try Fixture(code: [0xA2, 0x00, 0x20, 0xF4, 0xEB, 0xFA])
        for (index, byte) in ([0xA2, 0x00, 0x50, 0x0F, 0xAA] as [UInt8]).enumerated() {
            fixture.memory[0x3_8000 + index] = byte
        }
        try fixture.machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 1 << 16 | 3, flags: MemoryRegionFlags.logDirtyPages.rawValue, guest_phys_addr: 0,
                memory_size: UInt64(fixture.memory.count),
                userspace_addr: UInt64(UInt(bitPattern: fixture.memory.baseAddress))))
        for _ in 0..<2 {
            try fixture.vcpu.systemManagementInterrupt()
            _ = try fixture.vcpu.run()
            var pages: [[UInt64]] = []
            fixture.ring.harvest { slot, page in pages.append([UInt64(slot), page]) }
            #expect(pages == [[0x1_0003, 0x3F], [0x1_0003, 5], [7, 2]])
            #expect(try fixture.machine.resetDirtyRings() == 3)
        }
    }

    /// Also where each entry begins with the completion of an access that the client has answered, which writes a page.
    @Test func aFullRingStopsAGuestThatTakesInput() throws {
        // A byte to every page from 0x1_0000 to 0xF_F000: mov ax,1000h ; next: mov es,ax ; xor di,di ; insb ; add ax,100h ;
        // jnc next ; hlt
        let fixture = try Fixture(code: [
            0xB8, 0x00, 0x10, 0x8E, 0xC0, 0x31, 0xFF, 0x6C, 0x05, 0x00, 0x01, 0x73, 0xF6, 0xF4
        ])
        let (pages, fullCount) = try fixture.runToHalt()
        #expect(fullCount == 1)
        #expect(pages.sorted() == Array(0x10...0xFF))
        #expect((0x10...0xFF).allSatisfy { fixture.memory[$0 << 12] == 0x5A })
    }

    /// A guest that writes more pages than the ring has room for leaves until the client has taken them.
    @Test func aFullRingStopsTheGuest() throws {
        // Every page from 0x1_0000 to 0xF_F000: mov ax,1000h ; next: mov es,ax ; mov es:[0],al ; add ax,100h ; jnc next ;
        // hlt
        let fixture = try Fixture(code: [
            0xB8, 0x00, 0x10, 0x8E, 0xC0, 0x26, 0xA2, 0x00, 0x00, 0x05, 0x00, 0x01, 0x73, 0xF5, 0xF4
        ])
        let (pages, fullCount) = try fixture.runToHalt {
            // Nobody took anything: it does not go on.
            guard case .unknown(UInt32(KVM_EXIT_DIRTY_RING_FULL)) = try fixture.vcpu.run() else {
                Issue.record("the guest went on with a full ring")
                return
            }
        }
        #expect(fullCount >= 1)
        #expect(pages == Array(0x10..<0x100))
    }

    /// The client may write nonsense into the ring.
    @Test func nonsenseInTheRingIsHarmless() throws {
        let fixture = try Fixture(code: [0xA2, 0x00, 0x70, 0xA2, 0x00, 0x20, 0xF4, 0xEB, 0xF7])
        _ = try fixture.vcpu.run()
        let backend = fixture.vcpu.backend
        let bytes = try backend.mapDirtyRing(fixture.vcpu.descriptor, byteCount: Self.ringByteCount)
        defer { backend.unmapRunArea(bytes) }
        for index in 0..<256 {
            bytes.storeBytes(of: 2, toByteOffset: index * 16, as: UInt32.self)
            bytes.storeBytes(
                of: UInt32(index * 0x1357_9BDF & 0xFFFF_FFFF), toByteOffset: index * 16 + 4, as: UInt32.self)
            bytes.storeBytes(of: ~UInt64(index), toByteOffset: index * 16 + 8, as: UInt64.self)
        }
        #expect(try fixture.machine.resetDirtyRings() == 2)
        _ = try fixture.vcpu.run()
        #expect(try fixture.machine.resetDirtyRings() == 0)
    }

    @Test func badSizesAreRefused() throws {
        let system = try KVMSystem(backend: UserspaceKVM())
        let machine = try system.createVM()
        for (size, expected) in [
            (0, Errno.invalidArgument), (2048, .invalidArgument), (5000, .invalidArgument), (1 << 21, .argListTooLong)
        ] {
            #expect(throws: expected, "\(size)") { try machine.enableCapability(.dirtyLogRing, UInt64(size)) }
        }
        #expect(throws: Errno.invalidArgument) { try machine.resetDirtyRings() }
        try machine.enableCapability(.dirtyLogRing, 8192)
        #expect(throws: Errno.invalidArgument) { try machine.enableCapability(.dirtyLogRing, 8192) }
        let vcpu = try machine.createVCPU(id: 0)
        #expect(throws: Errno.invalidArgument) { try vcpu.dirtyRing(byteCount: 4096) }
        #expect(throws: Errno.operationNotSupportedByDevice) {
            try machine.backend.mapDirtyRing(machine.descriptor, byteCount: 8192)
        }
        let other = try system.createVM()
        _ = try other.createVCPU(id: 0)
        #expect(throws: Errno.invalidArgument) { try other.enableCapability(.dirtyLogRing, 8192) }
    }
}
