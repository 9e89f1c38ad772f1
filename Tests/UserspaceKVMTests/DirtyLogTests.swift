import CHost
import KVMInterface
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
