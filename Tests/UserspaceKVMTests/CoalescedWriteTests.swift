import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// Writes that wait in the machine's ring (`KVM_REGISTER_COALESCED_MMIO`).
@Suite struct CoalescedWriteTests {
    private static let pageOffset = 2

    /// mov cx,N ; again: mov al,cl ; out 0x60,al ; loop again ; mov ax,0x1234 ; out 0x61,ax ; out 0x10,al ; jmp $
    private func portWriter(count: UInt16) -> [UInt8] {
        [0xB9, UInt8(count & 0xFF), UInt8(count >> 8), 0x88, 0xC8, 0xE6, 0x60, 0xE2, 0xFA]
            + [0xB8, 0x34, 0x12, 0xE7, 0x61, 0xE6, 0x10, 0xEB, 0xFE]
    }

    /// Runs to the write to port 0x10 and returns the ports that left the core before.
    private func exits(_ vcpu: VCPU) throws -> [UInt16] {
        var ports: [UInt16] = []
        while ports.count < 1000 {
            guard case .io(let access) = try vcpu.run() else { break }
            if access.port == 0x10 { return ports }
            ports.append(access.port)
        }
        Issue.record("the guest did not end: \(vcpu.runArea.exit)")
        return ports
    }

    @Test func capabilities() throws {
        let machine = try SmallMachine().machine
        #expect(try machine.checkExtension(.coalescedMMIO) == Self.pageOffset)
        #expect(try machine.checkExtension(.coalescedPIO) == 1)
    }

    @Test func portsInOrder() throws {
        let small = try SmallMachine(code: portWriter(count: 3))
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 3, isPort: true)
        #expect(try exits(small.vcpu) == [])
        let expected = [3, 2, 1].map { CoalescedWrite(address: 0x60, byteCount: 1, isPort: true, value: $0) }
        #expect(
            small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset)
                == expected + [CoalescedWrite(address: 0x61, byteCount: 2, isPort: true, value: 0x1234)])
        #expect(small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset) == [])
    }

    /// A write that is only partly in the zone leaves the core.
    @Test func partsOfWrites() throws {
        let small = try SmallMachine(code: portWriter(count: 1))
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 2, isPort: true)
        #expect(try exits(small.vcpu) == [0x61])
    }

    /// A full ring lets writes out, each once; room that the client makes meanwhile does not repeat the one it performs.
    @Test func fullRing() throws {
        let small = try SmallMachine(code: portWriter(count: 200))
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 1, isPort: true)
        #expect(try exits(small.vcpu) == Array(repeating: 0x60, count: 200 - 169) + [0x61])
        let writes = small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset)
        #expect(writes.map(\.value) == (32...200).reversed().map { UInt64($0) })
    }

    @Test func memoryWritesAreMadeOnce() throws {
        // In 64-bit mode: mov ecx,400 ; again: mov [0x300000],ecx ; dec ecx ; jnz again ; out 0x10,al ; jmp $
        let small = try SmallMachine(
            code: [0xB9, 0x90, 0x01, 0, 0, 0x89, 0x0C, 0x25, 0, 0, 0x30, 0, 0xFF, 0xC9, 0x75, 0xF5]
                + [0xE6, 0x10, 0xEB, 0xFE])
        try small.enter64BitMode()
        try small.machine.addCoalescedZone(address: 0x2F_F000, byteCount: 0x2000)
        var values: [UInt64] = []
        func drain() {
            values += small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset).map(\.value)
        }
        while case .mmio(let access) = try small.vcpu.run() {
            // As clients do: what waits first.
            drain()
            values.append(access.value)
        }
        drain()
        #expect(values == (1...400).reversed().map { UInt64($0) })
    }

    @Test func removal() throws {
        let small = try SmallMachine(code: portWriter(count: 1))
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 16, isPort: true)
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 8)
        try small.machine.addCoalescedZone(address: 0x58, byteCount: 9, isPort: true)
        // Neither contains this.
        try small.machine.removeCoalescedZones(address: 0x58, byteCount: 16, isPort: true)
        // Only the first contains this.
        try small.machine.removeCoalescedZones(address: 0x60, byteCount: 2, isPort: true)
        #expect(try exits(small.vcpu) == [0x61])
        let writes = small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset)
        #expect(writes == [CoalescedWrite(address: 0x60, byteCount: 1, isPort: true, value: 1)])
    }

    /// One ring for all vCPUs of a machine, and another for each machine; a vCPU that is plugged in again leaves it alone.
    @Test func oneRingForAMachine() throws {
        let small = try SmallMachine(code: portWriter(count: 1))
        let other = try SmallMachine()
        let vcpu = try small.machine.createVCPU(id: 1)
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 16, isPort: true)
        #expect(try exits(small.vcpu) == [])
        #expect(other.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset) == [])
        try small.machine.parkVCPU(id: 1)
        let again = try small.machine.createVCPU(id: 1)
        withExtendedLifetime(vcpu) {
            #expect(again.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset).count == 2)
        }
        #expect(small.vcpu.runArea.takeCoalescedWrites(pageOffset: Self.pageOffset) == [])
    }

    /// The client's half of the ring may hold anything.
    @Test func hostileRing() throws {
        let small = try SmallMachine(code: portWriter(count: 2))
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 16, isPort: true)
        let ring = small.vcpu.runArea.bytes.baseAddress! + Self.pageOffset * 4096
        ring.storeBytes(of: .max, toByteOffset: 0, as: UInt32.self)
        ring.storeBytes(of: 170, toByteOffset: 4, as: UInt32.self)
        #expect(try exits(small.vcpu) == [0x60, 0x60, 0x61])
    }

    @Test func errors() throws {
        let small = try SmallMachine()
        for request in [KVMRequest.registerCoalescedZone, .unregisterCoalescedZone] {
            #expect(throws: Errno.badAddress) {
                try small.backend.ioctl(small.machine.descriptor, request.rawValue, 16)
            }
            var zone: [UInt32] = [0x1000, 0, 16, 2]
            #expect(throws: Errno.invalidArgument) {
                try zone.withUnsafeMutableBytes { bytes in
                    _ = try small.backend.ioctl(
                        small.machine.descriptor, request.rawValue, UInt(bitPattern: bytes.baseAddress))
                }
            }
        }
        for index in 0..<1000 {
            try small.machine.addCoalescedZone(address: 0x10_0000 + UInt64(index) * 16, byteCount: 8)
        }
        #expect(throws: Errno.noSpace) { try small.machine.addCoalescedZone(address: 0x1000, byteCount: 8) }
        try small.machine.addCoalescedZone(address: 0x60, byteCount: 8, isPort: true)
    }
}
