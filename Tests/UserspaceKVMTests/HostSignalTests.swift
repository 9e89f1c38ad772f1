import CHost
import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage
import Testing
import UserspaceKVM

/// What signals of the host and requests of other threads do to a vCPU that runs.
@Suite(.serialized) struct HostSignalTests {
    /// How often the handler has run.
    private static let handled = Atomic<Int>(0)

    private static var handledCount: Int { handled.load(ordering: .relaxed) }

    /// Runs `body` on this thread with a handler for `signal`, which is blocked or not.
    private func withHandler(of signal: CInt, isBlocked: Bool = false, _ body: () throws -> Void) rethrows {
        Glibc.signal(signal) { _ in HostSignalTests.handled.wrappingAdd(1, ordering: .relaxed) }
        var (set, old) = (sigset_t(), sigset_t())
        sigemptyset(&set)
        sigaddset(&set, signal)
        // Threads of the test runner block all signals.
        pthread_sigmask(isBlocked ? SIG_BLOCK : SIG_UNBLOCK, &set, &old)
        defer { pthread_sigmask(SIG_SETMASK, &old, nil) }
        try body()
    }

    /// A machine whose guest tells that it runs, and then does `code`.
    private func machine(_ code: [UInt8]) throws -> SmallMachine {
        // mov byte [0x2000],1
        try SmallMachine(code: [0xC6, 0x06, 0x00, 0x20, 0x01] + code, hasIRQChip: true)
    }

    /// Runs the vCPU while another thread sends `signal` to this one, again and again from when the guest runs.
    private func run(_ small: SmallMachine, sending signal: CInt) throws -> VCPUExit {
        let (vcpu, thread) = (small.vcpu, Int(pthread_self()))
        let sign = UInt(bitPattern: small.memory.baseAddress! + 0x2000)
        let hasEnded = Atomic<Bool>(false)
        var exit: VCPUExit?
        try withThreads(1) { _ in
            // SAFETY: the memory is the machine's, which outlives the threads.
            let isRunning = UnsafeMutablePointer<Atomic<UInt8>>(bitPattern: sign).unsafelyUnwrapped
            while isRunning.pointee.load(ordering: .acquiring) == 0 {}
            while !hasEnded.load(ordering: .acquiring) {
                pthread_kill(pthread_t(thread), signal)
                usleep(1000)
            }
        } meanwhile: {
            defer { hasEnded.store(true, ordering: .releasing) }
            exit = try vcpu.run()
        }
        return try #require(exit)
    }

    /// The thread sanitizer keeps signals back until the next system call.
    private static let getsSignals = getenv("TSAN_OPTIONS") == nil
    private static let missing: Comment =
        "needs signals that arrive in guest code, which the thread sanitizer keeps back"

    /// Neither a signal mask nor `immediate_exit`: the handler alone.
    @Test(
        .enabled(if: getsSignals, missing),
        arguments: [
            // jmp $ ; and hlt, which the core waits in
            [0xEB, 0xFE], [0xF4]
        ] as [[UInt8]])
    func aHandlerEndsTheRun(code: [UInt8]) throws {
        try withHandler(of: SIGUSR1) {
            let small = try machine(code)
            let before = Self.handledCount
            guard case .interrupted = try run(small, sending: SIGUSR1) else {
                Issue.record("no interruption: \(small.vcpu.runArea.exit)")
                return
            }
            #expect(Self.handledCount > before)
            // It ends the run that it finds, not the next one.
            let other = try SmallMachine(code: [0xE6, 0x10, 0xE6, 0x11])
            guard case .io = try other.vcpu.run() else {
                Issue.record("no port exit: \(other.vcpu.runArea.exit)")
                return
            }
            raise(SIGUSR1)
            guard case .io(let access) = try other.vcpu.run() else {
                Issue.record("no port exit: \(other.vcpu.runArea.exit)")
                return
            }
            #expect(access.port == 0x11)
        }
    }

    /// A signal that the thread blocks and the mask lets through ends the run. It stays pending: its handler runs when the
    /// thread lets it through, too.
    @Test(.enabled(if: getsSignals, missing), arguments: [[0xEB, 0xFE], [0xF4]] as [[UInt8]])
    func theMaskLetsASignalThrough(code: [UInt8]) throws {
        try withHandler(of: SIGUSR2, isBlocked: true) {
            let small = try machine(code)
            try small.vcpu.setSignalMask(0)
            let before = Self.handledCount
            guard case .interrupted = try run(small, sending: SIGUSR2) else {
                Issue.record("no interruption: \(small.vcpu.runArea.exit)")
                return
            }
            #expect(Self.handledCount == before)
            withHandler(of: SIGUSR2) {}
            #expect(Self.handledCount == before + 1)
        }
    }

    /// A signal that only the mask blocks does not end the run; its handler runs afterwards.
    @Test(.enabled(if: getsSignals, missing))
    func theMaskKeepsASignalAway() throws {
        try withHandler(of: SIGUSR1) {
            let small = try machine([0xEB, 0xFE])
            let vcpu = small.vcpu
            try vcpu.setSignalMask(1 << UInt64(SIGUSR1 - 1))
            let thread = Int(pthread_self())
            let sign = UInt(bitPattern: small.memory.baseAddress! + 0x2000)
            let before = Self.handledCount
            let wasAsked = Atomic<Bool>(false)
            try withThreads(1) { _ in
                // SAFETY: the memory is the machine's, which outlives the threads.
                let isRunning = UnsafeMutablePointer<Atomic<UInt8>>(bitPattern: sign).unsafelyUnwrapped
                while isRunning.pointee.load(ordering: .acquiring) == 0 {}
                for _ in 0..<20 {
                    pthread_kill(pthread_t(thread), SIGUSR1)
                    usleep(1000)
                }
                #expect(Self.handledCount == before)
                wasAsked.store(true, ordering: .releasing)
                vcpu.requestExit()
            } meanwhile: {
                guard case .interrupted = try vcpu.run() else {
                    Issue.record("no interruption: \(vcpu.runArea.exit)")
                    return
                }
                let mayEnd = wasAsked.load(ordering: .acquiring)
                #expect(mayEnd)
            }
            #expect(Self.handledCount == before + 1)
        }
    }

    /// However the request and the entry into guest code fall together.
    @Test func noRequestToReturnIsLost() throws {
        let small = try SmallMachine(code: [0xEB, 0xFE])
        let vcpu = small.vcpu
        let rounds = 4000
        let turn = Atomic<Int>(0)
        try withThreads(1) { _ in
            for round in 1...rounds {
                while turn.load(ordering: .acquiring) < round {}
                // About as long as a call takes to get to guest code.
                let start = martlet_rdtsc()
                while martlet_rdtsc() &- start < UInt64(round &* 7919 & 4095) {}
                vcpu.requestExit()
            }
        } meanwhile: {
            for round in 1...rounds {
                vcpu.immediateExit = false
                turn.store(round, ordering: .releasing)
                guard case .interrupted = try vcpu.run() else {
                    Issue.record("round \(round): \(vcpu.runArea.exit)")
                    return
                }
            }
        }
    }
}
