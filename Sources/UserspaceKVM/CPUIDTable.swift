import KVMInterface
import Translator

/// The CPUID leaves a client gave to a vCPU, in the order given.
struct CPUIDTable: Sendable {
    private(set) var entries: [CPUIDEntry] = []

    init(_ entries: [CPUIDEntry] = []) { self.entries = entries }

    /// What the instruction returns.
    ///
    /// A leaf above the maximum of its range answers, on Intel and Zhaoxin, as the highest basic leaf, on AMD and Hygon
    /// with zeros; so does a leaf in range that is not there.
    /// - Complexity: O(*n*); the instruction is rare.
    func answer(function: UInt32, index: UInt32) -> CPUIDResult {
        find(function, index) ?? find(substitute(for: function) ?? function, index) ?? CPUIDResult()
    }

    /// The leaf that answers in the place of `function`; nil if none does.
    func substitute(for function: UInt32) -> UInt32? {
        guard find(function) == nil, !isAMD, isAboveMaximum(function) else { return nil }
        return find(0)?.eax
    }

    /// The entry itself; nil if there is none.
    func find(_ function: UInt32, _ index: UInt32 = 0) -> CPUIDResult? {
        for entry in entries where entry.function == function {
            guard !entry.hasSignificantIndex || entry.index == index else { continue }
            return CPUIDResult(eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx)
        }
        return nil
    }

    /// The width of guest physical addresses.
    var physicalAddressBits: Int {
        guard let sizes = find(0x8000_0008), sizes.eax & 0xFF != 0 else { return 36 }
        return Int(sizes.eax & 0xFF)
    }

    /// Linear addresses have 48 or 57 bits, or the leaf does not say.
    var hasKnownLinearAddresses: Bool {
        guard let sizes = find(0x8000_0008) else { return true }
        return [0, 48, 57].contains(sizes.eax >> 8 & 0xFF)
    }

    private var isAMD: Bool {
        guard let vendor = find(0, 0)?.ebx else { return false }
        return vendor == 0x6874_7541 || vendor == 0x6F67_7948
    }

    private func isAboveMaximum(_ function: UInt32) -> Bool {
        let range =
            function & 0xFFFF_0000 == 0x8000_0000 || function & 0xFFFF_0000 == 0x4000_0000
            ? function & 0xFFFF_0000 : 0
        guard let limit = find(range, 0)?.eax else { return true }
        return function > limit
    }
}
