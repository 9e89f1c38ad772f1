import CHost
import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage
import TestSupport
import Testing

/// Threads that use descriptors at random, of whatever kind, while others run, kick and close them: errors, never a crash.
@Suite(.serialized) struct StressTests {
    @Test(arguments: Core.available) func closeRunAndConfuse(core: Core) throws {
        let seed = runSeed("descriptors, \(core)")
        let pool = DescriptorPool(core.make())
        let isOver = Flag()
        let calls = Counter()
        let threads = try (0..<3).map { number in
            try HostThread(name: "stress \(number)", stackSize: 4 << 20) {
                acceptFaultSignals()
                var worker = Worker(pool, seed: seed &+ UInt64(number) &* 7919)
                while !isOver.isSet {
                    worker.step()
                    calls.add(1)
                }
            }
        }
        // A vCPU may run when the others are done: somebody must go on kicking.
        let kicker = try HostThread(name: "kicker") {
            var random = SeededGenerator(seed: seed ^ 1)
            while pool.isInUse {
                pool.kickSomething(&random)
                usleep(200)
            }
        }
        withWatchdog {
            usleep(UInt32(stressSeconds(1) * 1e6))
            isOver.set()
            for thread in threads { thread.join() }
            pool.isInUse = false
            kicker.join()
        }
        print(
            "descriptors, \(core): \(calls.value) calls, \(pool.successCount.value) worked, \(pool.runCount.value) runs"
        )
        #expect(pool.successCount.value > 0 && pool.runCount.value > 0)
        pool.closeAll()
    }
}

/// The core in user space meets accesses to guest memory in handlers of these.
private func acceptFaultSignals() {
    var set = sigset_t()
    sigemptyset(&set)
    for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL] { sigaddset(&set, signal) }
    pthread_sigmask(SIG_UNBLOCK, &set, nil)
}

/// Descriptors that all threads use and close.
private final class DescriptorPool: @unchecked Sendable {
    // `descriptors` is guarded by `lock`, which the thread sanitizer sees, as it does not see Mutex.

    let backend: any KVMBackend
    let successCount = Counter()
    let runCount = Counter()
    private var descriptors: [KVMDescriptor] = []
    private let lock = FutexLock()
    private let inUse = Atomic<Bool>(true)
    /// Guest memory: `out 0x10,al ; jmp` to itself, where a vCPU that nobody has set up begins as well.
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 4096)

    private static let sizeLimit = 24

    init(_ backend: any KVMBackend) {
        self.backend = backend
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        for (index, byte) in [0xE6, 0x10, 0xEB, 0xFC].enumerated() { memory[0xFFF0 + index] = UInt8(byte) }
    }

    deinit { memory.deallocate() }

    var isInUse: Bool {
        get { inUse.load(ordering: .relaxed) }
        set { inUse.store(newValue, ordering: .relaxed) }
    }

    /// Takes a descriptor in; a full pool closes one for it.
    func add(_ descriptor: KVMDescriptor, _ random: inout SeededGenerator) {
        let number = Int(random.next() % UInt64(Self.sizeLimit))
        let dropped = lock.withLock { () -> KVMDescriptor? in
            descriptors.append(descriptor)
            return descriptors.count > Self.sizeLimit ? descriptors.remove(at: number) : nil
        }
        if let dropped { backend.close(dropped) }
    }

    /// Any descriptor of the pool, or a number that may be anything.
    func any(_ random: inout SeededGenerator) -> KVMDescriptor {
        let number = random.next()
        if number % 16 == 0 { return KVMDescriptor(rawValue: Int32(truncatingIfNeeded: random.next())) }
        return lock.withLock {
            descriptors.isEmpty
                ? KVMDescriptor(rawValue: -1) : descriptors[Int(number >> 8) % descriptors.count]
        }
    }

    func remove(_ descriptor: KVMDescriptor) {
        lock.withLock { descriptors.removeAll { $0 == descriptor } }
        backend.close(descriptor)
    }

    /// Makes whoever runs one of the vCPUs come out.
    func kickSomething(_ random: inout SeededGenerator) {
        let descriptor = any(&random)
        if let area = try? backend.mapRunArea(descriptor) {
            RunArea(area).immediateExit = true
            backend.kick(descriptor)
            backend.unmapRunArea(area)
        }
        backend.kick(any(&random))
    }

    func closeAll() {
        for descriptor in lock.withLock({ descriptors }) { backend.close(descriptor) }
    }
}

/// One thread's random calls.
private struct Worker {
    private let pool: DescriptorPool
    private var random: SeededGenerator

    init(_ pool: DescriptorPool, seed: UInt64) {
        self.pool = pool
        random = SeededGenerator(seed: seed)
    }

    mutating func step() {
        switch random.next() % 16 {
        case 0: if let system = try? pool.backend.openSystem() { pool.add(system, &random) }
        case 1: pool.remove(pool.any(&random))
        case 2, 3: create(.createVM, 0)
        // Not those that would wait for others to start them: nobody can wake them once their descriptor is closed.
        case 4, 5: create(.createVCPU, random.oneIn(4) ? .max : 0)
        case 6: setMemory()
        case 7, 8: run()
        case 9: pool.kickSomething(&random)
        default: confuse()
        }
    }

    private mutating func create(_ request: KVMRequest, _ argument: UInt) {
        guard let number = try? pool.backend.ioctl(pool.any(&random), request.rawValue, argument) else { return }
        pool.successCount.add(1)
        pool.add(KVMDescriptor(rawValue: number), &random)
    }

    private mutating func setMemory() {
        // Where a vCPU begins that was just made.
        var region = UserMemoryRegion(
            slot: UInt32(random.next() % 2), flags: 0, guest_phys_addr: 0xFFFF_0000,
            memory_size: random.oneIn(4) ? 0 : 1 << 16,
            userspace_addr: UInt64(UInt(bitPattern: pool.memory.baseAddress)))
        withUnsafeMutablePointer(to: &region) { pointer in
            _ = try? pool.backend.ioctl(
                pool.any(&random), KVMRequest.setUserMemoryRegion.rawValue, UInt(bitPattern: pointer))
        }
    }

    private mutating func run() {
        let descriptor = pool.any(&random)
        guard let area = try? pool.backend.mapRunArea(descriptor) else { return }
        defer { pool.backend.unmapRunArea(area) }
        RunArea(area).immediateExit = false
        for _ in 0..<random.next() % 8 {
            guard (try? pool.backend.ioctl(descriptor, KVMRequest.run.rawValue, 0)) != nil else { break }
            pool.runCount.add(1)
        }
    }

    /// A request that may be one of another kind of descriptor, with an argument that may be anything but a good address.
    private mutating func confuse() {
        // Neither makes a vCPU that is not the first to start.
        let requests = KVMRequest.allCases.filter { ![.createVCPU, .setBootCPUID].contains($0) }
        let request = requests[Int(random.next() % UInt64(requests.count))]
        let arguments: [UInt] = [0, 1, 7, 0x1000, 0xFFFF_8000_0000_0000, .max]
        let argument = arguments[Int(random.next() % UInt64(arguments.count))]
        if (try? pool.backend.ioctl(pool.any(&random), request.rawValue, argument)) != nil {
            pool.successCount.add(1)
        }
    }
}
