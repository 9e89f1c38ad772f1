import CHost
import Glibc
import Host
import KVMInterface

/// What this machine's processor is and can do.
struct HostProcessor: Sendable {
    let maximumBasicLeaf: UInt32
    let maximumExtendedLeaf: UInt32
    /// EBX, ECX, EDX of leaf 0.
    let vendor: (ebx: UInt32, ecx: UInt32, edx: UInt32)
    /// Translated code needs BMI2 and AVX2, and an operating system that keeps the vector registers. Looked up once: where the
    /// host is virtual itself, CPUID is slow.
    let canTranslate: Bool

    init() {
        let basic = martlet_cpuid(0, 0)
        maximumBasicLeaf = basic.eax
        vendor = (basic.ebx, basic.ecx, basic.edx)
        maximumExtendedLeaf = martlet_cpuid(0x8000_0000, 0).eax
        let features = basic.eax >= 7 ? martlet_cpuid(7, 0).ebx : 0
        let hasAVX2 = features & 1 << 5 != 0
        let hasBMI = features & 1 << 3 != 0 && features & 1 << 8 != 0
        let hasOSXSAVE = martlet_cpuid(1, 0).ecx & 1 << 27 != 0
        canTranslate = hasAVX2 && hasBMI && hasOSXSAVE && martlet_xgetbv(0) & 7 == 7
    }

    /// "AuthenticAMD" or "HygonGenuine", which share their leaves.
    var isAMD: Bool { vendor.ebx == 0x6874_7541 || vendor.ebx == 0x6F67_7948 }

    /// The host's answer; zeros for a leaf it does not have.
    func leaf(_ function: UInt32, _ index: UInt32 = 0) -> CPUIDEntry {
        let limit = function >= 0x8000_0000 ? maximumExtendedLeaf : maximumBasicLeaf
        guard function <= limit else { return CPUIDEntry(function: function) }
        let answer = martlet_cpuid(function, index)
        return CPUIDEntry(function: function, eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx)
    }
}

/// The frequency of the host's time-stamp counter.
enum TSCFrequency {
    /// In kHz; measured once.
    static let kilohertz: UInt64 = reported ?? measured()

    /// As a hypervisor or the processor tells it.
    private static var reported: UInt64? {
        let host = HostProcessor()
        if host.leaf(1).ecx & 1 << 31 != 0, martlet_cpuid(0x4000_0000, 0).eax >= 0x4000_0010 {
            let timing = martlet_cpuid(0x4000_0010, 0)
            // Hypervisors that end their leaves earlier answer with those of another leaf; accept what is plausible.
            if (100_000...10_000_000).contains(timing.eax) { return UInt64(timing.eax) }
        }
        let ratio = host.leaf(0x15)
        guard ratio.eax != 0, ratio.ebx != 0, ratio.ecx != 0 else { return nil }
        return UInt64(ratio.ecx) * UInt64(ratio.ebx) / UInt64(ratio.eax) / 1000
    }

    /// Against the monotonic clock, over 10 ms.
    private static func measured() -> UInt64 {
        let start = sample()
        usleep(10_000)
        let end = sample()
        return (end.tsc &- start.tsc) * 1_000_000 / max(1, end.nanoseconds - start.nanoseconds)
    }

    /// A time-stamp and the time it was taken: the tightest of several tries.
    static func sample() -> (tsc: UInt64, nanoseconds: UInt64) {
        var best = (width: UInt64.max, tsc: UInt64(0), nanoseconds: UInt64(0))
        for _ in 0..<8 {
            let before = martlet_rdtsc()
            let nanoseconds = MonotonicClock.nanoseconds()
            let after = martlet_rdtsc()
            if after &- before < best.width { best = (after &- before, before &+ (after &- before) / 2, nanoseconds) }
        }
        return (best.tsc, best.nanoseconds)
    }
}
