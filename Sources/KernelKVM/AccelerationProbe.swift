import CHost
import Host
import KVMInterface
import SystemPackage

/// Finds out what a KVM is good for, by running a tiny guest on it.
///
/// There are kernels whose KVM opens and answers every question well, but interprets what guests do in kernel mode at a few
/// million instructions a second, or not at all: only a guest can tell. The measure is this processor's own speed in the same
/// loop, so that it also holds in a virtual machine and on a slow one.
///
/// > Concurrency: any thread; the guest runs on a thread of its own.
public final class AccelerationProbe: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `state` is guarded by `lock`.

    /// How fast the guest's loop runs, in millions of instructions a second.
    public struct Speed: Equatable, Sendable {
        public var kernelMode: Double
        /// nil if only kernel mode was tried.
        public var userMode: Double?
        /// The same loop outside a guest.
        public var native: Double

        public init(kernelMode: Double, userMode: Double?, native: Double) {
            self.kernelMode = kernelMode
            self.userMode = userMode
            self.native = native
        }

        /// Whether guests run on the processor, and not in an interpreter.
        public var isNative: Bool { min(kernelMode, userMode ?? kernelMode) >= native * AccelerationProbe.nativeShare }
    }

    public enum Verdict: Equatable, Sendable {
        /// Guests run correctly, fast or not.
        case works(Speed)
        /// Why no guest can run, as the end of a sentence that begins with the device's name.
        case unusable(String)
    }

    /// What a machine here cannot do without.
    private static let required: [(capability: KVMCapability, name: String)] = [
        (.userMemory, "KVM_CAP_USER_MEMORY"), (.destroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
        (.setTSSAddress, "KVM_CAP_SET_TSS_ADDR"), (.setIdentityMapAddress, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
        (.extendedCPUID, "KVM_CAP_EXT_CPUID"), (.irqChip, "KVM_CAP_IRQCHIP"), (.irqRouting, "KVM_CAP_IRQ_ROUTING"),
        (.pit2, "KVM_CAP_PIT2"), (.mpState, "KVM_CAP_MP_STATE"), (.tscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
        (.immediateExit, "KVM_CAP_IMMEDIATE_EXIT")
    ]

    /// The part of the processor's own speed that counts as running on it.
    private static let nativeShare = 0.25
    /// The rounds of the loop: few first, so that an interpreter is found out soon.
    private static let rounds: [UInt32] = [250, 5_000, 100_000]
    /// A way into a guest and out of it takes less; what takes longer was interpreted, or this thread was not running.
    private static let patienceNanoseconds: UInt64 = 300_000
    private static let attempts = 3

    private let system: KVMSystem
    private let isThorough: Bool
    private let lock = FutexLock()
    private var state = State()
    /// One of ``Stage``'s numbers; slept on by who waits for the verdict.
    private let stage = FutexWord()

    private enum Stage {
        static let making: UInt32 = 0
        static let running: UInt32 = 1
        static let ended: UInt32 = 2
    }

    private struct State {
        var verdict: Verdict?
        var vcpu: VCPU?
        var isGivenUp = false
    }

    private init(_ system: KVMSystem, isThorough: Bool) {
        self.system = system
        self.isThorough = isThorough
    }

    /// Tries `system`.
    ///
    /// - Parameters:
    ///   - isThorough: looks for faults also where kernel mode has already turned out to be slow.
    ///   - timeLimitNanoseconds: how long the guest may take; what is not done by then does not work. To make it, the
    ///     kernel gets ten times as long: the first machine after the host's start may take a while. Nothing makes this
    ///     call take longer than both.
    public static func run(
        on system: KVMSystem, isThorough: Bool = true, timeLimitNanoseconds: UInt64 = 100_000_000
    ) -> Verdict {
        let missing = required.filter { ((try? system.checkExtension($0.capability)) ?? 0) <= 0 }.map(\.name)
        guard missing.isEmpty else { return .unusable("lacks \(missing.joined(separator: ", "))") }
        return AccelerationProbe(system, isThorough: isThorough).waitForVerdict(timeLimitNanoseconds)
    }

    private func waitForVerdict(_ timeLimitNanoseconds: UInt64) -> Verdict {
        let start = MonotonicClock.nanoseconds()
        do {
            // Detached: the end of the machine takes time that nobody has to wait for, and a thread that the kernel does
            // not give back is left behind.
            _ = try HostThread(name: "KVM probe") { self.work() }
        } catch {
            return .unusable("cannot be tried: the host has no thread for that (\(error))")
        }
        wait(while: Stage.making, deadlineNanoseconds: start + 10 * timeLimitNanoseconds)
        wait(while: Stage.running, deadlineNanoseconds: MonotonicClock.nanoseconds() + timeLimitNanoseconds)
        let (verdict, vcpu) = lock.withLock {
            state.isGivenUp = true
            return (state.verdict, state.vcpu)
        }
        if let verdict { return verdict }
        guard let vcpu else { return .unusable("did not make a machine within \(timeLimitNanoseconds / 100_000) ms") }
        vcpu.requestExit()
        return .unusable("did not run a guest of a few instructions within \(timeLimitNanoseconds / 1_000_000) ms")
    }

    private func wait(while value: UInt32, deadlineNanoseconds: UInt64) {
        // ORDERING: acquire pairs with the release in `enter`.
        while stage.atomic.pointee.load(ordering: .acquiring) == value {
            if stage.wait(while: value, deadlineNanoseconds: deadlineNanoseconds) == .timedOut { return }
        }
    }

    private func enter(_ value: UInt32) {
        // ORDERING: release pairs with the acquire in `wait`.
        stage.atomic.pointee.store(value, ordering: .releasing)
        stage.wake()
    }

    // MARK: The guest's thread

    private func work() {
        let guest: ProbeGuest
        do {
            guest = try ProbeGuest(system)
        } catch {
            end(.unusable("refuses to make a machine (\(error))"))
            return
        }
        let isGivenUp = lock.withLock {
            state.vcpu = guest.vcpu
            return state.isGivenUp
        }
        if isGivenUp { return }
        enter(Stage.running)
        do {
            end(.works(try measure(guest)))
        } catch {
            end(.unusable(error.reason))
        }
        // The vCPU ends with the guest, which is before the guest's memory does.
        lock.withLock { state.vcpu = nil }
    }

    private func end(_ verdict: Verdict) {
        lock.withLock { state.verdict = verdict }
        enter(Stage.ended)
    }

    private func measure(_ guest: ProbeGuest) throws(ProbeGuest.Failure) -> Speed {
        let native = nativeSpeed()
        // The first way into a guest finds nothing in place.
        _ = try guest.loop(1)
        var speed = Speed(kernelMode: try self.speed(of: guest, native), userMode: nil, native: native)
        if !speed.isNative, !isThorough { return speed }
        try guest.goToUserMode()
        _ = try guest.loop(1)
        speed.userMode = try self.speed(of: guest, native)
        try guest.returnToKernelMode()
        return speed
    }

    private func nativeSpeed() -> Double {
        let count = Self.rounds[Self.rounds.count - 1]
        var best = UInt64.max
        for _ in 0..<Self.attempts {
            let start = MonotonicClock.nanoseconds()
            let value = martlet_count_loop(count)
            best = min(best, MonotonicClock.nanoseconds() - start)
            precondition(value != 0 || count == 0, "the loop was left out")
        }
        return Self.speed(count, best)
    }

    /// The guest's speed in the mode that it is in. Of some attempts the best counts: others may have been interrupted.
    private func speed(of guest: ProbeGuest, _ native: Double) throws(ProbeGuest.Failure) -> Double {
        var speed = 0.0
        for count in Self.rounds {
            var best = UInt64.max
            for _ in 0..<Self.attempts {
                best = min(best, try guest.loop(count))
                speed = Self.speed(count, best)
                if speed >= native * Self.nativeShare { break }
                if best < Self.patienceNanoseconds, count != Self.rounds.last { break }
            }
            if best >= Self.patienceNanoseconds, speed < native * Self.nativeShare { return speed }
        }
        return speed
    }

    /// Millions of instructions a second: four a round.
    private static func speed(_ count: UInt32, _ nanoseconds: UInt64) -> Double {
        Double(count) * 4 * 1000 / Double(max(nanoseconds, 1))
    }
}
