import KVMInterface

/// The leaves of CPUID a guest can be given: what the host has, without what the translator does not execute.
///
/// The level is x86-64-v3 with AES, SHA and the like. Speculation flaws are reported as absent, so that a guest's kernel
/// spends nothing on them: no guest instruction runs outside a process of the host, and the host defends that.
/// Topology is left to the client.
/// > Source: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
struct SupportedCPUID {
    private let host: HostProcessor
    private let tscKilohertz: UInt64

    init(host: HostProcessor, tscKilohertz: UInt64) {
        self.host = host
        self.tscKilohertz = tscKilohertz
    }

    var entries: [CPUIDEntry] {
        [basicRange, versionAndFeatures] + caches + [power] + structuredFeatures + extendedState + timing + hypervisor
            + [extendedRange, extendedFeatures] + (0x8000_0002...0x8000_0006).map { host.leaf($0) }
            + [advancedPower, addressSizes] + (host.isAMD ? [amdFeatures] : [])
    }

    /// Bits by number.
    private func bits(_ numbers: UInt32...) -> UInt32 { numbers.reduce(0) { $0 | 1 << $1 } }

    private var basicRange: CPUIDEntry {
        CPUIDEntry(function: 0, eax: 0x16, ebx: host.vendor.ebx, ecx: host.vendor.ecx, edx: host.vendor.edx)
    }

    private var versionAndFeatures: CPUIDEntry {
        let own = host.leaf(1)
        // SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
        let passedECX = bits(0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30)
        // x2APIC, hypervisor. The TSC deadline timer needs the core's local APIC, so a capability tells of it.
        let emulatedECX = bits(21, 31)
        // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2.
        let passedEDX = bits(0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26)
        return CPUIDEntry(
            function: 1, eax: own.eax, ebx: own.ebx & 0xFF00, ecx: own.ecx & passedECX | emulatedECX,
            edx: own.edx & passedEDX)
    }

    /// Leaves 2 and 4 (Intel), with the sharing fields as for one processor.
    private var caches: [CPUIDEntry] {
        guard !host.isAMD else { return [] }
        var entries = [host.leaf(2)]
        for index: UInt32 in 0..<8 {
            let own = host.leaf(4, index)
            entries.append(
                CPUIDEntry(
                    function: 4, index: index, eax: own.eax & 0x3FFF, ebx: own.ebx, ecx: own.ecx, edx: own.edx))
            if own.eax & 0x1F == 0 { break }
        }
        return entries
    }

    /// The APIC timer never stops.
    private var power: CPUIDEntry { CPUIDEntry(function: 6, eax: bits(2)) }

    private var structuredFeatures: [CPUIDEntry] {
        let own = host.leaf(7)
        // FSGSBASE, BMI1, AVX2, FDP only on exceptions, SMEP, BMI2, ERMS, INVPCID, no FCS/FDS, RDSEED, ADX, SMAP, SHA.
        let ebx = own.ebx & bits(0, 3, 5, 6, 7, 8, 9, 10, 13, 18, 19, 20, 29)
        // UMIP, GFNI, VAES, VPCLMULQDQ, RDPID.
        let ecx = own.ecx & bits(8, 9, 10, 22) | bits(2)
        // FSRM; for Intel also speculation control and the register that says there is nothing to control.
        let edx = own.edx & bits(4) | (host.isAMD ? 0 : bits(26, 29))
        // TSC_ADJUST, SMEP, SMAP and INVPCID are the translator's own.
        return [CPUIDEntry(function: 7, index: 0, ebx: ebx | bits(1, 7, 10, 20), ecx: ecx, edx: edx)]
    }

    /// x87, SSE and AVX state in the standard format.
    private var extendedState: [CPUIDEntry] {
        let byteCount: UInt32 = 576 + 256
        return [
            CPUIDEntry(function: 0xD, index: 0, eax: 7, ebx: byteCount, ecx: byteCount),
            // XSAVEOPT, XGETBV with ECX = 1.
            CPUIDEntry(function: 0xD, index: 1, eax: host.leaf(0xD, 1).eax & bits(0, 2)),
            CPUIDEntry(function: 0xD, index: 2, eax: 256, ebx: 576)
        ]
    }

    /// The crystal is the APIC's clock of 1 GHz.
    private var timing: [CPUIDEntry] {
        let megahertz = UInt32(clamping: tscKilohertz / 1000)
        return [
            CPUIDEntry(
                function: 0x15, eax: 1_000_000, ebx: UInt32(clamping: tscKilohertz), ecx: 1_000_000_000),
            CPUIDEntry(function: 0x16, eax: megahertz, ebx: megahertz, ecx: 100)
        ]
    }

    private var hypervisor: [CPUIDEntry] {
        [
            // "KVMKVMKVM\0\0\0"
            CPUIDEntry(
                function: 0x4000_0000, eax: 0x4000_0001, ebx: 0x4B4D_564B, ecx: 0x564B_4D56, edx: 0x0000_004D),
            CPUIDEntry(function: 0x4000_0001, eax: ParavirtualFeature.all)
        ]
    }

    private var extendedRange: CPUIDEntry {
        CPUIDEntry(
            function: 0x8000_0000, eax: host.isAMD ? 0x8000_0021 : 0x8000_0008, ebx: host.vendor.ebx,
            ecx: host.vendor.ecx, edx: host.vendor.edx)
    }

    private var extendedFeatures: CPUIDEntry {
        let own = host.leaf(0x8000_0001)
        // LAHF in 64-bit mode, LZCNT, misaligned SSE, PREFETCHW.
        let ecx = own.ecx & bits(0, 5, 7, 8)
        // The bits AMD repeats from leaf 1, SYSCALL, NX, MMX extensions, 1 GiB pages, RDTSCP, long mode.
        let repeated = host.isAMD ? bits(0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24) : 0
        let edx = own.edx & (repeated | bits(11, 20, 22, 27, 29)) | bits(11, 20, 26, 29)
        return CPUIDEntry(function: 0x8000_0001, ecx: ecx, edx: edx)
    }

    /// The time-stamp counter runs at one rate in all states.
    private var advancedPower: CPUIDEntry { CPUIDEntry(function: 0x8000_0007, edx: bits(8)) }

    private var addressSizes: CPUIDEntry {
        // Guest addresses are never the host processor's.
        let physical: UInt32 = 48
        // AMD: error pointers are always saved (as the host does), no bypass of stores, no branch type confusion.
        let ebx = host.isAMD ? host.leaf(0x8000_0008).ebx & bits(2) | bits(26, 29) : 0
        return CPUIDEntry(function: 0x8000_0008, eax: 48 << 8 | physical, ebx: ebx)
    }

    /// No nested data breakpoints, LFENCE serialises, automatic IBRS (which replaces retpolines), not vulnerable to SRSO
    /// and TSA.
    private var amdFeatures: CPUIDEntry {
        CPUIDEntry(function: 0x8000_0021, eax: bits(0, 2, 8, 29), ecx: bits(1, 2))
    }
}

/// Bits of leaf 0x4000_0001.
enum ParavirtualFeature {
    static let clockSource: UInt32 = 1 << 0
    static let noIODelay: UInt32 = 1 << 1
    static let clockSource2: UInt32 = 1 << 3
    static let stealTime: UInt32 = 1 << 5
    static let unhalt: UInt32 = 1 << 7
    static let sendIPI: UInt32 = 1 << 11
    static let pollControl: UInt32 = 1 << 12
    static let yield: UInt32 = 1 << 13
    static let clockSourceStable: UInt32 = 1 << 24

    static let all =
        clockSource | noIODelay | clockSource2 | (StealTime.isAvailable ? stealTime : 0) | unhalt | sendIPI
        | pollControl | clockSourceStable
}
