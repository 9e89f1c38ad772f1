import CHost
import Glibc
import Host
import KVMInterface
import Testing
import UserspaceKVM

@Suite struct GuestClockTests {
    /// `pvclock_vcpu_time_info` as a guest reads it.
    private struct TimeInfo {
        let version: UInt32
        let timestamp: UInt64
        let time: UInt64
        let multiplier: UInt32
        let shift: Int8
        let flags: UInt8

        init(_ memory: UnsafeMutableRawBufferPointer, at address: Int) {
            version = memory.load(fromByteOffset: address, as: UInt32.self)
            timestamp = memory.load(fromByteOffset: address + 8, as: UInt64.self)
            time = memory.load(fromByteOffset: address + 16, as: UInt64.self)
            multiplier = memory.load(fromByteOffset: address + 24, as: UInt32.self)
            shift = memory.load(fromByteOffset: address + 28, as: Int8.self)
            flags = memory.load(fromByteOffset: address + 29, as: UInt8.self)
        }

        /// The guest's time when its counter shows `tsc`.
        func nanoseconds(tsc: UInt64) -> UInt64 {
            let ticks = tsc &- timestamp
            let shifted = shift < 0 ? ticks >> UInt64(-shift) : ticks << UInt64(shift)
            let product = shifted.multipliedFullWidth(by: UInt64(multiplier))
            return time + (product.high << 32 | product.low >> 32)
        }
    }

    @Test func guestReadsTheMachinesClock() throws {
        // hlt
        let small = try SmallMachine(code: [0xF4])
        try small.vcpu.setMSRs([MSREntry(0x4B56_4D01, 0x5001)])
        _ = try small.vcpu.run()
        let info = TimeInfo(small.memory, at: 0x5000)
        #expect(info.version != 0 && info.version & 1 == 0)
        #expect(info.flags == 1)
        // Both ways of reading the clock, in turn, never go back.
        var last: UInt64 = 0
        for _ in 0..<100 {
            let byGuest = info.nanoseconds(tsc: try small.vcpu.msrs([0x10])[0].data)
            let byClient = try small.machine.clock().clock
            #expect(last <= byGuest && byGuest <= byClient)
            last = byClient
        }
    }

    @Test func setClockReachesTheGuest() throws {
        // hlt ; hlt
        let small = try SmallMachine(code: [0xF4, 0xF4])
        try small.vcpu.setMSRs([MSREntry(0x4B56_4D01, 0x5001)])
        _ = try small.vcpu.run()
        let first = TimeInfo(small.memory, at: 0x5000)
        try small.machine.setClock(nanoseconds: 1 << 55)
        _ = try small.vcpu.run()
        let second = TimeInfo(small.memory, at: 0x5000)
        #expect(second.version > first.version && second.version & 1 == 0)
        #expect(second.nanoseconds(tsc: try small.vcpu.msrs([0x10])[0].data) >= 1 << 55)
    }

    @Test func pauseIsTold() throws {
        let small = try SmallMachine(code: [0xF4, 0xF4, 0xF4])
        try small.vcpu.setMSRs([MSREntry(0x4B56_4D01, 0x5001)])
        _ = try small.vcpu.run()
        try small.vcpu.markPaused()
        _ = try small.vcpu.run()
        #expect(TimeInfo(small.memory, at: 0x5000).flags == 3)
    }

    @Test func wallClock() throws {
        // mov ecx,0x4B564D00 ; mov eax,0x6000 ; xor edx,edx ; wrmsr ; hlt
        let small = try SmallMachine(code: [
            0x66, 0xB9, 0x00, 0x4D, 0x56, 0x4B, 0x66, 0xB8, 0x00, 0x60, 0, 0, 0x66, 0x31, 0xD2, 0x0F, 0x30, 0xF4
        ])
        guard case .hlt = try small.vcpu.run() else {
            Issue.record("no halt: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(small.memory.load(fromByteOffset: 0x6000, as: UInt32.self) == 2)
        let seconds = Int(small.memory.load(fromByteOffset: 0x6004, as: UInt32.self))
        #expect(seconds <= time(nil) && seconds > time(nil) - 3600)
    }
}
