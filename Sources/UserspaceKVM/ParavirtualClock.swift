import CHost
import GuestMemory
import Host

/// KVM's clock registers of one vCPU: where the guest wants its time structures, and what is in them.
///
/// > Source: Documentation/virt/kvm/x86/msr.rst; the structures are `pvclock_vcpu_time_info` and `pvclock_wall_clock`.
struct ParavirtualClock: Sendable {
    /// MSR_KVM_SYSTEM_TIME_NEW: guest physical address, bit 0 enables.
    private(set) var systemTime: UInt64 = 0
    private(set) var wallClock: UInt64 = 0
    /// The guest is to be told that it was paused.
    var wasPaused = false
    private var version: UInt32 = 0

    var isEnabled: Bool { systemTime & 1 != 0 }

    mutating func setSystemTime(_ value: UInt64) { systemTime = value }

    mutating func setWallClock(_ value: UInt64) { wallClock = value }

    /// The 32 bytes of `pvclock_vcpu_time_info`, with an even (finished) version.
    ///
    /// - Parameter tscOffset: what the guest's counter is ahead of the host's.
    mutating func timeInfo(clock: MachineClock, tscOffset: UInt64) -> [UInt8] {
        let reference = clock.currentReference
        version &+= 2
        var bytes: [UInt8] = []
        append(version, to: &bytes)
        append(UInt32(0), to: &bytes)
        append(reference.hostTSC &+ tscOffset, to: &bytes)
        append(reference.nanoseconds, to: &bytes)
        append(clock.scale.multiplier, to: &bytes)
        append(clock.scale.shift, to: &bytes)
        // Bit 0: the time is the same on all vCPUs. Bit 1: the guest was paused.
        append(UInt8(1 | (wasPaused ? 2 : 0)), to: &bytes)
        append(UInt16(0), to: &bytes)
        wasPaused = false
        return bytes
    }

    /// The 12 bytes of `pvclock_wall_clock`: the time of day at which the machine's clock showed 0.
    static func wallClockInfo(clock: MachineClock, version: UInt32) -> [UInt8] {
        let sinceStart = clock.nanoseconds(atHostTSC: martlet_rdtsc())
        let boot = WallClock.nanoseconds() &- sinceStart
        var bytes: [UInt8] = []
        append(version, to: &bytes)
        append(UInt32(truncatingIfNeeded: boot / 1_000_000_000), to: &bytes)
        append(UInt32(truncatingIfNeeded: boot % 1_000_000_000), to: &bytes)
        return bytes
    }
}

private func append<T: FixedWidthInteger>(_ value: T, to bytes: inout [UInt8]) {
    withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
}
