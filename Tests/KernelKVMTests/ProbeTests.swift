import CHost
import Glibc
import Host
import KVMInterface
import KernelKVM
import Synchronization
import SystemPackage
import TestSupport
import Testing
import UserspaceKVM

/// The trial of a KVM, on cores that are known to work and on such as do not.
@Suite(.serialized) struct ProbeTests {
    @Test func userSpaceWorks() throws {
        let system = try KVMSystem(backend: UserspaceKVM())
        let verdict = AccelerationProbe.run(on: system, timeLimitNanoseconds: 20_000_000_000)
        guard case .works(let speed) = verdict else {
            Issue.record("\(verdict)")
            return
        }
        #expect(speed.kernelMode > 0 && (speed.userMode ?? 0) > 0 && speed.native > 0)
    }

    /// Whatever it is good for, the machine's own device gets a verdict.
    @Test(.enabled(if: KernelDevice.isUsable, Comment(rawValue: KernelDevice.missing)), arguments: [false, true])
    func device(isThorough: Bool) throws {
        let system = try KVMSystem(backend: KernelKVM())
        let start = MonotonicClock.nanoseconds()
        let verdict = withWatchdog { AccelerationProbe.run(on: system, isThorough: isThorough) }
        print("/dev/kvm: \(verdict) after \((MonotonicClock.nanoseconds() - start) / 1000) µs")
        switch verdict {
        case .works(let speed): #expect(speed.kernelMode > 0)
        case .unusable(let reason): #expect(!reason.isEmpty)
        }
    }

    /// What goes wrong, and what the verdict says of it.
    @Test(arguments: [
        (FaultyBackend.Fault.lacks(.tscDeadlineTimer), "KVM_CAP_TSC_DEADLINE_TIMER"),
        (.lacks(.irqChip), "lacks KVM_CAP_IRQCHIP"), (.refuses(.createVM), "refuses to make a machine"),
        (.refuses(.createVCPU), "refuses to make a machine"), (.refuses(.run), "refuses to run a guest"),
        (.hangsWhenMade, "did not make a machine within 1000 ms"),
        (.hangs, "did not run a guest of a few instructions within 100 ms"), (.computesWrongly, "computes wrongly"),
        (
            .answersEmulationFailure,
            "cannot execute the instruction at 0x0 of the probe guest (KVM_EXIT_INTERNAL_ERROR, suberror 1)"
        ),
        (.shutsDown, "shuts a guest down")
    ])
    func faults(fault: FaultyBackend.Fault, reason: String) throws {
        let system = try KVMSystem(backend: FaultyBackend(fault))
        let verdict = withWatchdog {
            AccelerationProbe.run(
                on: system,
                timeLimitNanoseconds: [.hangs, .hangsWhenMade].contains(fault) ? 100_000_000 : 20_000_000_000)
        }
        guard case .unusable(let text) = verdict else {
            Issue.record("\(verdict)")
            return
        }
        #expect(text.contains(reason), "\(text)")
    }

    /// Kernel mode that takes ages is found out without a look at the rest.
    @Test func slowCore() throws {
        let backend = FaultyBackend(.isSlow)
        let verdict = withWatchdog {
            AccelerationProbe.run(
                on: try! KVMSystem(backend: backend), isThorough: false, timeLimitNanoseconds: 20_000_000_000)
        }
        guard case .works(let speed) = verdict else {
            Issue.record("\(verdict)")
            return
        }
        #expect(!speed.isNative && speed.userMode == nil)
    }

    @Test(
        arguments: [
            (100.0, 100.0, true), (24, 100, false), (100, 24, false), (26, 26, true), (1, nil, false), (99, nil, true)
        ] as [(Double, Double?, Bool)])
    func nativeSpeed(kernelMode: Double, userMode: Double?, isNative: Bool) {
        let speed = AccelerationProbe.Speed(kernelMode: kernelMode, userMode: userMode, native: 100)
        #expect(speed.isNative == isNative)
    }
}

/// The core in user space, with a fault.
final class FaultyBackend: KVMBackend {
    enum Fault: Equatable, Sendable {
        case lacks(KVMCapability)
        case refuses(KVMRequest)
        /// `KVM_RUN` does not return before it is kicked.
        case hangs
        /// `KVM_CREATE_VM` takes longer than anybody waits for it.
        case hangsWhenMade
        case computesWrongly
        case answersEmulationFailure
        case shutsDown
        /// Each run takes a millisecond.
        case isSlow
    }

    private let core = UserspaceKVM()
    private let fault: Fault
    /// The run area of the vCPU that was mapped last.
    private let area = Mutex<UInt>(0)

    init(_ fault: Fault) { self.fault = fault }

    func openSystem() throws(Errno) -> KVMDescriptor { try core.openSystem() }

    func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        let known = KVMRequest(rawValue: request)
        switch fault {
        case .lacks(let capability):
            if known == .checkExtension, argument == UInt(capability.rawValue) { return 0 }
        case .refuses(let refused):
            if known == refused { throw .ioError }
        case .hangs:
            guard known == .run, let area = runArea else { break }
            while !area.immediateExit { usleep(1000) }
            throw .interrupted
        case .hangsWhenMade:
            if known == .createVM { usleep(1_500_000) }
        case .computesWrongly:
            guard known == .run else { break }
            let result = try core.ioctl(descriptor, request, argument)
            if case .io(let access)? = runArea?.exit, access.isWrite { access.value += 1 }
            return result
        case .answersEmulationFailure, .shutsDown:
            guard known == .run, let run = runArea?.run else { break }
            run.pointee.exit_reason = UInt32(fault == .shutsDown ? KVM_EXIT_SHUTDOWN : KVM_EXIT_INTERNAL_ERROR)
            run.pointee.internal.suberror = UInt32(KVM_INTERNAL_ERROR_EMULATION)
            run.pointee.internal.ndata = 0
            return 0
        case .isSlow:
            if known == .run { usleep(1000) }
        }
        return try core.ioctl(descriptor, request, argument)
    }

    private var runArea: RunArea? {
        UnsafeMutableRawPointer(bitPattern: area.withLock { $0 }).map {
            RunArea(UnsafeMutableRawBufferPointer(start: $0, count: Limits.runAreaByteCount))
        }
    }

    func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer {
        let mapped = try core.mapRunArea(vcpu)
        area.withLock { $0 = UInt(bitPattern: mapped.baseAddress) }
        return mapped
    }

    func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) { core.unmapRunArea(area) }
    func kick(_ vcpu: KVMDescriptor) { core.kick(vcpu) }
    func close(_ descriptor: KVMDescriptor) { core.close(descriptor) }
}
