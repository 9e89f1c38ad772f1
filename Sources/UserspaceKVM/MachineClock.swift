import CHost
import Host

/// A machine's clock: the time since it was created, counted by the host's time-stamp counter.
///
/// Guests read the same clock without leaving their code, from the structure that ``ParavirtualClock`` writes. Both use one
/// reference point and one ratio, so the time is the same on all vCPUs and never goes back.
/// > Source: Documentation/virt/kvm/x86/timekeeping.rst; Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW.
public final class MachineClock: Sendable {
    /// A moment: the host's time-stamp counter, and what the clock shows then.
    struct Reference: Sendable {
        var hostTSC: UInt64
        var nanoseconds: UInt64
    }

    let scale: TSCScale
    /// Replaced by `KVM_SET_CLOCK`.
    private let reference: Locked<Reference>

    init(tscKilohertz: UInt64) {
        scale = TSCScale(tscKilohertz: tscKilohertz)
        reference = Locked(Reference(hostTSC: martlet_rdtsc(), nanoseconds: 0))
    }

    var currentReference: Reference { reference.withLock { $0 } }

    /// What the clock shows at a moment not before the reference.
    func nanoseconds(atHostTSC tsc: UInt64) -> UInt64 {
        let reference = currentReference
        guard tsc > reference.hostTSC else { return reference.nanoseconds }
        return reference.nanoseconds &+ scale.nanoseconds(ticks: tsc &- reference.hostTSC)
    }

    func set(nanoseconds: UInt64) {
        reference.withLock { $0 = Reference(hostTSC: martlet_rdtsc(), nanoseconds: nanoseconds) }
    }
}

/// The ratio from time-stamp counts to nanoseconds in the form that guests compute with.
///
/// `nanoseconds = (ticks << shift) * multiplier >> 32`, where a negative shift shifts to the right.
struct TSCScale: Equatable, Sendable {
    let multiplier: UInt32
    let shift: Int8

    /// - Parameter tscKilohertz: not 0.
    init(tscKilohertz: UInt64) {
        var ticksPerSecond = tscKilohertz * 1000
        var shift: Int8 = 0
        while ticksPerSecond > 2_000_000_000 {
            ticksPerSecond >>= 1
            shift -= 1
        }
        while ticksPerSecond <= 1_000_000_000 {
            ticksPerSecond <<= 1
            shift += 1
        }
        self.shift = shift
        multiplier = UInt32(clamping: (1_000_000_000 << 32) / ticksPerSecond)
    }

    func nanoseconds(ticks: UInt64) -> UInt64 {
        let shifted = shift < 0 ? ticks >> UInt64(-shift) : ticks << UInt64(shift)
        let product = shifted.multipliedFullWidth(by: UInt64(multiplier))
        return product.high << 32 | product.low >> 32
    }
}
