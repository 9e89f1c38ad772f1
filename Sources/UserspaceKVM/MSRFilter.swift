import CHost
import SystemPackage

/// Which model-specific registers guests may read and write (`KVM_X86_SET_MSR_FILTER`).
///
/// > Source: Documentation/virt/kvm/api.rst, section 4.97.
struct MSRFilter: Sendable {
    private struct Registers: Sendable {
        var flags: UInt32
        var base: UInt32
        var count: UInt32
        /// One bit for each register: it may be accessed.
        var bitmap: [UInt64]
    }

    private var ranges: [Registers] = []
    private let allowsOthers: Bool

    /// Copies the filter at `argument`, and the bitmaps that it points to.
    ///
    /// - Throws: `EINVAL` for unknown flags, a range without an access or with too many registers, and if everything is
    ///   denied without a range; `EFAULT`.
    init(at argument: UInt) throws(Errno) {
        var request = kvm_msr_filter()
        try ClientMemory.copyIn(&request, from: argument)
        guard request.flags & ~UInt32(KVM_MSR_FILTER_DEFAULT_DENY) == 0 else { throw .invalidArgument }
        allowsOthers = request.flags & UInt32(KVM_MSR_FILTER_DEFAULT_DENY) == 0
        let given = withUnsafeBytes(of: request.ranges) { bytes in
            bytes.bindMemory(to: kvm_msr_filter_range.self).filter { $0.nmsrs != 0 }
        }
        guard allowsOthers || !given.isEmpty else { throw .invalidArgument }
        for range in given { ranges.append(try Self.decode(range)) }
    }

    private static func decode(_ range: kvm_msr_filter_range) throws(Errno) -> Registers {
        let known = UInt32(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)
        guard range.flags & ~known == 0, range.flags != 0 else { throw .invalidArgument }
        let wordCount = (Int(range.nmsrs) + 63) / 64
        guard wordCount * 8 <= Int(KVM_MSR_FILTER_MAX_BITMAP_SIZE) else { throw .invalidArgument }
        let bitmap = try ClientMemory.copyIn(
            count: wordCount, of: UInt64(0), from: UInt(bitPattern: range.bitmap))
        return Registers(flags: range.flags, base: range.base, count: range.nmsrs, bitmap: bitmap)
    }

    /// The first range that has the register, for this kind of access, decides.
    func allows(_ index: UInt32, isWrite: Bool) -> Bool {
        let access = UInt32(isWrite ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ)
        for range in ranges where range.flags & access != 0 && index >= range.base {
            let place = index - range.base
            if place < range.count { return range.bitmap[Int(place) / 64] >> UInt64(place % 64) & 1 != 0 }
        }
        return allowsOthers
    }
}
