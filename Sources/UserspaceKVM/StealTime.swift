import CHost
import Glibc

/// What the guest learns about time that its vCPU was ready to run and did not (MSR_KVM_STEAL_TIME).
///
/// > Source: Documentation/virt/kvm/x86/msr.rst; the structure is `kvm_steal_time`.
struct StealTime: Sendable {
    /// The register: guest physical address of the structure, bit 0 enables.
    private(set) var register: UInt64 = 0
    /// What the thread had waited when it was last recorded, in nanoseconds.
    private var seenDelay: UInt64 = 0
    /// The host's counter at which is looked next.
    private var nextLook: UInt64 = 0
    /// How often the thread had left its processor when it was last recorded: only then has it waited.
    private var seenSwitchCount = -1

    /// `RUSAGE_THREAD`.
    private static let thisThread: __rusage_who_t = 1

    var isEnabled: Bool { register & 1 != 0 }
    /// Where the structure lies; 64 bytes.
    var address: UInt64 { register & ~0x3F }

    /// Whether the host counts how long threads wait.
    static let isAvailable = threadDelay() != nil

    /// - Returns: false for reserved bits.
    mutating func setRegister(_ value: UInt64) -> Bool {
        guard value & 0x3E == 0, Self.isAvailable else { return false }
        register = value
        nextLook = 0
        seenSwitchCount = -1
        return true
    }

    /// The thread has waited for this many nanoseconds since the last call; nil if it has not, or was called a moment ago.
    /// > Concurrency: the owner's thread.
    mutating func takeDelay(tscKilohertz: UInt64) -> UInt64? {
        let now = martlet_rdtsc()
        guard now >= nextLook else { return nil }
        // 100 µs: system calls are dear.
        nextLook = now &+ tscKilohertz / 10
        var usage = rusage()
        guard getrusage(Self.thisThread, &usage) == 0 else { return nil }
        let switchCount = usage.ru_nvcsw + usage.ru_nivcsw
        guard switchCount != seenSwitchCount, let delay = Self.threadDelay() else { return nil }
        seenSwitchCount = switchCount
        // Another thread has waited less.
        let change = delay >= seenDelay ? delay - seenDelay : 0
        seenDelay = delay
        return change
    }

    /// Nanoseconds that this thread waited for a processor: the second number of its scheduler statistics.
    private static func threadDelay() -> UInt64? {
        let file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        return withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
            let count = read(file, buffer.baseAddress, buffer.count)
            guard count > 0 else { return nil }
            let numbers = buffer[..<count].split(whereSeparator: { $0 == 0x20 || $0 == 0x0A })
            guard numbers.count >= 2 else { return nil }
            return UInt64(String(decoding: numbers[1], as: UTF8.self))
        }
    }
}

extension UserspaceVCPU {
    /// Adds to the guest's structure what its thread has waited.
    ///
    /// While it changes, its version is odd.
    /// > Concurrency: the owner, inside.
    func recordStealTime() {
        let address = stealTime.address
        guard let delay = stealTime.takeDelay(tscKilohertz: vm.tscKilohertz),
            let stolen = readGuest(UInt64.self, at: address),
            var version = readGuest(UInt32.self, at: address &+ 8)
        else { return }
        // What the guest left there may be odd already.
        version = version &+ (version & 1) &+ 1
        writeGuest([0], at: address &+ 16)
        writeGuest(version, at: address &+ 8)
        writeGuest(stolen &+ delay, at: address)
        writeGuest(version &+ 1, at: address &+ 8)
    }

    private func writeGuest<T: FixedWidthInteger>(_ value: T, at address: UInt64) {
        withUnsafeBytes(of: value.littleEndian) { _ = writeGuest(Array($0), at: address) }
    }
}
