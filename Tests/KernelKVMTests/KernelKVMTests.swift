import CHost
import Glibc
import Host
import KVMInterface
import KernelKVM
import Synchronization
import SystemPackage
import TestSupport
import Testing

/// What is no request of KVM's: opening, closing, mapping, kicking.
@Suite(.serialized) struct KernelKVMTests {
    @Test(arguments: [
        ("/dev/martlet-has-no-such-device", Errno.noSuchFileOrDirectory), ("/dev/null", .inappropriateIOCTLForDevice),
        ("/dev", .isDirectory), ("/dev/null/kvm", .notDirectory)
    ])
    func deviceThatIsNone(path: String, error: Errno) {
        let before = openDescriptorCount()
        #expect(throws: error) { try KernelKVM(path: path).openSystem() }
        #expect(throws: error) { try KVMSystem(backend: KernelKVM(path: path)) }
        #expect(openDescriptorCount() == before)
    }

    /// The number of this process's open files.
    private func openDescriptorCount() -> Int { (0..<1024).count { fcntl($0, F_GETFD) >= 0 } }

    @Suite(.serialized, .enabled(if: KernelDevice.isUsable, Comment(rawValue: KernelDevice.missing)))
    struct WithDevice {
        @Test func descriptorsDoNotSurviveExec() throws {
            let machine = try TestMachine(KernelKVM())
            for descriptor in [machine.system.descriptor, machine.machine.descriptor, machine.vcpu.descriptor] {
                #expect(fcntl(descriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
            }
            let statistics = try machine.system.backend.ioctl(machine.machine.descriptor, MARTLET_KVM_GET_STATS_FD, 0)
            #expect(fcntl(statistics, F_GETFD) & FD_CLOEXEC != 0)
            machine.system.backend.close(KVMDescriptor(rawValue: statistics))
            #expect(fcntl(statistics, F_GETFD) < 0)
        }

        /// A number that was given out again, or never was this backend's, is not closed.
        @Test func closesOnlyItsOwn() throws {
            let backend = KernelKVM()
            let system = try backend.openSystem()
            backend.close(system)
            #expect(fcntl(system.rawValue, F_GETFD) < 0)
            let other = dup(STDERR_FILENO)
            defer { close(other) }
            backend.close(KVMDescriptor(rawValue: other))
            #expect(fcntl(other, F_GETFD) >= 0)
            #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(KVMDescriptor(rawValue: other), 0xAE00, 0) }
            // Another backend's file is not its own either.
            let second = KernelKVM()
            let foreign = try second.openSystem()
            backend.close(foreign)
            #expect(try second.ioctl(foreign, KVMRequest.getAPIVersion.rawValue, 0) == KVM_API_VERSION)
            second.close(foreign)
        }

        /// A vCPU keeps its machine, and a mapping its vCPU; only what was mapped is unmapped.
        @Test func mappings() throws {
            let backend = KernelKVM()
            let system = try backend.openSystem()
            let machine = KVMDescriptor(rawValue: try backend.ioctl(system, KVMRequest.createVM.rawValue, 0))
            let vcpu = KVMDescriptor(rawValue: try backend.ioctl(machine, KVMRequest.createVCPU.rawValue, 0))
            let size = Int(try backend.ioctl(system, KVMRequest.getVCPUMapSize.rawValue, 0))
            let area = try backend.mapRunArea(vcpu)
            #expect(area.count == size)
            for descriptor in [system, machine, vcpu] { backend.close(descriptor) }
            area[1] = 1
            let own = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
            defer { own.deallocate() }
            backend.unmapRunArea(own)
            own[0] = 1
            backend.unmapRunArea(UnsafeMutableRawBufferPointer(start: nil, count: 0))
            backend.unmapRunArea(area)
            #expect(madvise(area.baseAddress, size, MADV_NORMAL) != 0, "still mapped")
            backend.unmapRunArea(area)
        }

        // MARK: Kicks

        @Test func requestExitEndsALoop() throws {
            // jmp $
            let machine = try TestMachine(KernelKVM(), code: [0xEB, 0xFE])
            try expectInterruption(of: machine)
            // And so it does again.
            machine.vcpu.immediateExit = false
            try expectInterruption(of: machine)
        }

        @Test func requestExitEndsAHalt() throws {
            // sti ; hlt ; jmp to hlt
            try expectInterruption(of: try TestMachine(KernelKVM(), code: [0xFB, 0xF4, 0xEB, 0xFD], hasIRQChip: true))
        }

        /// A mask for `KVM_RUN` that blocks all signals does not keep kicks away.
        @Test func requestExitIgnoresTheSignalMask() throws {
            let machine = try TestMachine(KernelKVM(), code: [0xEB, 0xFE])
            try machine.vcpu.setSignalMask(.max)
            try expectInterruption(of: machine)
        }

        /// Runs the vCPU in a thread with all signals blocked and asks it to come out.
        private func expectInterruption(of machine: TestMachine) throws {
            let vcpu = machine.vcpu
            let wasInterrupted = Flag()
            let thread = try HostThread(name: "runner") {
                if case .interrupted? = try? vcpu.run() { wasInterrupted.set() }
            }
            usleep(20_000)
            withWatchdog {
                vcpu.requestExit()
                thread.join()
            }
            #expect(wasInterrupted.isSet)
        }

        @Test func requestBeforeTheRunIsNotLost() throws {
            let machine = try TestMachine(KernelKVM(), code: [0xEB, 0xFE])
            machine.vcpu.requestExit()
            guard case .interrupted = try withWatchdog({ try machine.vcpu.run() }) else {
                Issue.record("\(machine.vcpu.runArea.exit)")
                return
            }
        }

        /// Requests that come at any moment, around runs that are short: none is lost, and none hits what comes after a run.
        @Test func requestsAtAnyMoment() throws {
            let seed = runSeed("kicks")
            // out 0x10,al ; jmp to out
            let machine = try TestMachine(KernelKVM(), code: [0xE6, 0x10, 0xEB, 0xFC])
            let vcpu = machine.vcpu
            let isOver = Flag()
            let requests = Counter()
            let interruptions = Counter()
            let disturbances = Counter()
            let runner = try HostThread(name: "runner") {
                while !isOver.isSet {
                    guard let exit = try? vcpu.run() else {
                        Issue.record("an error")
                        return
                    }
                    if case .interrupted = exit {
                        vcpu.immediateExit = false
                        interruptions.add(1)
                    }
                    // What a signal would cut short.
                    var pause = timespec(tv_sec: 0, tv_nsec: 20_000)
                    if nanosleep(&pause, nil) != 0 { disturbances.add(1) }
                }
            }
            var random = SeededGenerator(seed: seed)
            let end = MonotonicClock.nanoseconds() + UInt64(stressSeconds(1) * 1e9)
            withWatchdog {
                while MonotonicClock.nanoseconds() < end {
                    let seen = interruptions.value
                    vcpu.requestExit()
                    requests.add(1)
                    while interruptions.value == seen { sched_yield() }
                    for _ in 0..<random.next() % 2000 { martlet_pause() }
                }
                isOver.set()
                runner.join()
            }
            #expect(requests.value > 0 && interruptions.value >= requests.value)
            #expect(disturbances.value == 0)
            print("kicks: \(requests.value)")
        }

        /// Two threads that run one vCPU take turns, and a request reaches the one whose turn it is.
        @Test func twoThreadsRunOneVCPU() throws {
            let machine = try TestMachine(KernelKVM(), code: [0xEB, 0xFE])
            let vcpu = machine.vcpu
            let ended = Counter()
            let threads = try (0..<2).map { number in
                try HostThread(name: "runner \(number)") {
                    if case .interrupted? = try? vcpu.run() { ended.add(1) }
                }
            }
            usleep(10_000)
            withWatchdog {
                vcpu.requestExit()
                for thread in threads { thread.join() }
            }
            #expect(ended.value == 2)
        }
    }
}
