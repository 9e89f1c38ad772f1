import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage
import UserspaceKVM

/// Sends arbitrary requests with arbitrary arguments to a core, from two threads at once.
///
/// An input is a sequence of steps of ``stepByteCount`` bytes; those with an odd number are the second thread's:
///
/// | byte | holds |
/// |---|---|
/// | 0 | which request, or one that does not exist, or closing, mapping, reading |
/// | 1 | which descriptor: of the device, a machine, a vCPU, statistics, or none |
/// | 2 | what the argument is: a number, or the address of bytes that may be read, written, both, a part, or nothing of it |
/// | 3 | bit 0: the bytes are made plausible for the request |
/// | 4–19 | the number, or the first of the bytes, which are repeated |
///
/// Nobody waits long: a third thread interrupts vCPUs that run.
public enum RequestCase {
    static let stepByteCount = 20
    private static let stepLimit = 96

    /// Runs `input`, and traps where the core broke a promise.
    /// - Returns: how many requests succeeded.
    @discardableResult
    public static func run(_ input: UnsafeRawBufferPointer) -> Int {
        let steps = stride(from: 0, to: input.count - stepByteCount + 1, by: stepByteCount).prefix(stepLimit).map {
            RequestStep(UnsafeRawBufferPointer(rebasing: input[$0..<$0 + stepByteCount]))
        }
        let target = RequestTarget()
        RequestInterrupter.shared.watch(target)
        defer {
            RequestInterrupter.shared.watch(nil)
            target.closeAll()
        }
        let others = steps.indices.filter { $0 % 2 == 1 }.map { steps[$0] }
        let second =
            others.isEmpty
            ? nil
            : try? HostThread(name: "requests") {
                acceptFaultSignals()
                for step in others { target.perform(step, arena: 1) }
            }
        for index in steps.indices where index % 2 == 0 { target.perform(steps[index], arena: 0) }
        second?.join()
        return target.successCount.load(ordering: .relaxed)
    }
}

/// Lets signals of faults through, which threads of the core's block: they are how a copy from a bad address fails.
private func acceptFaultSignals() {
    var set = sigset_t()
    sigemptyset(&set)
    for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL] { sigaddset(&set, signal) }
    pthread_sigmask(SIG_UNBLOCK, &set, nil)
}

/// One step of a case.
struct RequestStep {
    var kind: UInt8
    var descriptor: UInt8
    var argument: UInt8
    var options: UInt8
    var bytes: [UInt8]

    init(_ input: UnsafeRawBufferPointer) {
        (kind, descriptor, argument, options) = (input[0], input[1], input[2], input[3])
        bytes = Array(input[4...])
    }

    var number: UInt64 { bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) } }
}

/// The core of one case, with a device, a machine and two vCPUs to begin with.
final class RequestTarget: Sendable {
    let backend = UserspaceKVM()
    let successCount = Atomic<Int>(0)
    private let descriptors = Mutex<[KVMDescriptor]>([])
    private let arenas: [RequestArena]
    private let eventCounter: OwnedEventCounter

    init() {
        arenas = [RequestArena(), RequestArena()]
        eventCounter = OwnedEventCounter()
        add { () throws(Errno) in try backend.openSystem() }
        guard let system = descriptors.withLock({ $0.first }) else { return }
        add { () throws(Errno) in
            KVMDescriptor(rawValue: try backend.ioctl(system, KVMRequest.createVM.rawValue, 0))
        }
        guard let machine = descriptors.withLock({ $0.last }) else { return }
        for id: UInt in 0...1 {
            add { () throws(Errno) in
                KVMDescriptor(rawValue: try backend.ioctl(machine, KVMRequest.createVCPU.rawValue, id))
            }
        }
    }

    private func add(_ body: () throws(Errno) -> KVMDescriptor) {
        if let descriptor = try? body() { descriptors.withLock { $0.append(descriptor) } }
    }

    func interruptAll() {
        for descriptor in descriptors.withLock({ $0 }) { backend.interrupt(descriptor) }
    }

    func closeAll() {
        for descriptor in descriptors.withLock({ $0 }) { backend.close(descriptor) }
    }

    private func descriptor(_ selector: UInt8) -> KVMDescriptor {
        let all = descriptors.withLock { $0 }
        // Now and then one that never was.
        guard selector < 250, !all.isEmpty else { return KVMDescriptor(rawValue: Int32(selector) * 7 - 1760) }
        return all[Int(selector) % all.count]
    }

    /// - Parameter arena: which memory the arguments are in; each thread has its own.
    func perform(_ step: RequestStep, arena: Int) {
        let descriptor = descriptor(step.descriptor)
        switch step.kind {
        case 250: backend.close(descriptor)
        case 251, 252:
            guard let area = try? backend.mapRunArea(descriptor) else { return }
            if step.kind == 252 { area.copyBytes(from: step.bytes) }
            backend.unmapRunArea(area)
        case 253:
            var buffer = [UInt8](repeating: 0, count: 256)
            buffer.withUnsafeMutableBytes {
                _ = try? backend.readStatistics(descriptor, at: Int(step.number & 0x3FF), into: $0)
            }
        case 254: _ = backend.inspect(descriptor)
        default: request(step, descriptor, arenas[arena])
        }
    }

    private func request(_ step: RequestStep, _ descriptor: KVMDescriptor, _ arena: RequestArena) {
        let all = KVMRequest.allCases
        let known = all[Int(step.kind) % all.count]
        let number = step.kind == 255 ? UInt32(truncatingIfNeeded: step.number) : known.rawValue
        let argument = arena.argument(step, for: known, eventDescriptor: eventCounter.descriptor)
        do throws(Errno) {
            let result = try backend.ioctl(descriptor, number, argument)
            precondition(result >= 0, "a request succeeded with \(result)")
            successCount.add(1, ordering: .relaxed)
            switch known {
            case .createVM, .createVCPU, .getStatisticsDescriptor:
                if step.kind != 255 { descriptors.withLock { $0.append(KVMDescriptor(rawValue: result)) } }
            default: break
            }
        } catch {
            precondition((1...133).contains(error.rawValue), "a request failed with \(error.rawValue)")
        }
    }
}

/// An event descriptor for requests that want one.
private final class OwnedEventCounter: Sendable {
    /// -1 if there is none to be had.
    let descriptor: Int32

    init() { descriptor = (try? OwnedDescriptor.eventCounter())?.release() ?? -1 }

    deinit { if descriptor >= 0 { Glibc.close(descriptor) } }
}

/// Interrupts the vCPUs of the current case every millisecond.
private final class RequestInterrupter: Sendable {
    static let shared = RequestInterrupter()

    private let target = Mutex<RequestTarget?>(nil)

    private init() {
        // The thread lives as long as the process, and blocks all signals as every thread of the core does.
        let thread = try? HostThread(name: "interrupter") {
            while true {
                RequestInterrupter.shared.target.withLock { $0 }?.interruptAll()
                usleep(1000)
            }
        }
        precondition(thread != nil, "the interrupting thread could not be started")
    }

    func watch(_ new: RequestTarget?) { target.withLock { $0 = new } }
}
