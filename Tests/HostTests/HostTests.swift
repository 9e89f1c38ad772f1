import CHost
import Glibc
import Host
import Synchronization
import SystemPackage
import Testing

@Suite struct DescriptorTests {
    @Test func closesWithItsOwner() throws {
        let number: Int32
        do {
            let file = try OwnedDescriptor.memoryFile(name: "test", byteCount: 0x765_4000)
            number = file.rawValue
            #expect(try file.byteCount() == 0x765_4000)
        }
        // Other tests run at the same time and may be given the number again: then it is another file's.
        var status = stat()
        #expect(fstat(number, &status) == -1 || status.st_size != 0x765_4000)
    }

    @Test func sealedFilesKeepTheirSize() throws {
        let file = try OwnedDescriptor.memoryFile(name: "test", byteCount: 8192, sealedSize: true)
        #expect(throws: Errno.notPermitted) { try file.resize(byteCount: 4096) }
        #expect(try file.byteCount() == 8192)
    }

    @Test func openReportsTheSystemsError() {
        #expect(throws: Errno.noSuchFileOrDirectory) { _ = try OwnedDescriptor.open(path: "/nonexistent/file") }
    }

    @Test func eventCountersCount() throws {
        let counter = try OwnedDescriptor.eventCounter()
        var value: UInt64 = 3
        for _ in 0..<2 { _ = try withUnsafeBytes(of: &value) { try counter.write($0) } }
        let again = try counter.duplicate()
        _ = try withUnsafeMutableBytes(of: &value) { try again.read(into: $0) }
        #expect(value == 6)
        #expect(throws: Errno.resourceTemporarilyUnavailable) {
            _ = try withUnsafeMutableBytes(of: &value) { try counter.read(into: $0) }
        }
    }

    @Test func requestsReportTheSystemsError() throws {
        let file = try OwnedDescriptor.memoryFile(name: "test", byteCount: 4096)
        #expect(throws: Errno.self) { try file.request(MARTLET_KVM_RUN) }
    }
}

@Suite struct MappingTests {
    @Test func placedRangesAlias() throws {
        let file = try OwnedDescriptor.memoryFile(name: "test", byteCount: 0x4000)
        let space = try MemoryMapping.reserve(byteCount: 0x10000, alignment: 0x10000)
        #expect(UInt(bitPattern: space.baseAddress) & 0xffff == 0)
        try space.place(file, offset: 0x1000, in: 0x2000..<0x4000)
        try space.place(file, offset: 0x2000, in: 0x8000..<0x9000)
        space.baseAddress.storeBytes(of: 0x1234_5678, toByteOffset: 0x3010, as: UInt32.self)
        #expect(space.baseAddress.load(fromByteOffset: 0x8010, as: UInt32.self) == 0x1234_5678)
        let other = try MemoryMapping.shared(file, byteCount: 0x4000)
        #expect(other.baseAddress.load(fromByteOffset: 0x2010, as: UInt32.self) == 0x1234_5678)
    }

    @Test func rangesAreChecked() throws {
        let file = try OwnedDescriptor.memoryFile(name: "test", byteCount: 0x4000)
        let space = try MemoryMapping.reserve(byteCount: 0x4000)
        #expect(throws: Errno.invalidArgument) { try space.place(file, offset: 0, in: 0x3000..<0x5000) }
        #expect(throws: Errno.invalidArgument) { try space.place(file, offset: 0, in: 0x10..<0x1010) }
        #expect(throws: Errno.invalidArgument) { try space.protect(-0x1000..<0x1000, .read) }
        #expect(throws: Errno.invalidArgument) { _ = try MemoryMapping.anonymous(byteCount: 0) }
        #expect(throws: Errno.noMemory) { _ = try MemoryMapping.anonymous(byteCount: .max) }
        #expect(throws: Errno.noMemory) { _ = try MemoryMapping.anonymous(byteCount: .max, alignment: 1 << 21) }
    }

    @Test func hugeMappingsCostNothing() throws {
        let space = try MemoryMapping.anonymous(byteCount: 1 << 42)
        space.baseAddress.storeBytes(of: 7, toByteOffset: 1 << 41, as: UInt8.self)
        try space.discardPages(1 << 41..<1 << 42)
        #expect(space.baseAddress.load(fromByteOffset: 1 << 41, as: UInt8.self) == 0)
    }
}

@Suite struct ThreadTests {
    @Test func threadsBlockSignalsAndKeepTheirName() throws {
        final class Seen: Sendable {
            let blocked = Atomic<Bool>(false)
            let named = Atomic<Bool>(false)
        }
        let seen = Seen()
        var before = sigset_t()
        var after = sigset_t()
        pthread_sigmask(SIG_BLOCK, nil, &before)
        let thread = try HostThread(name: "a name too long to keep") {
            var mask = sigset_t()
            pthread_sigmask(SIG_BLOCK, nil, &mask)
            seen.blocked.store(sigismember(&mask, SIGUSR1) == 1, ordering: .relaxed)
            var name = [CChar](repeating: 0, count: 16)
            name.withUnsafeMutableBytes {
                _ = martlet_prctl(PR_GET_NAME, UInt(bitPattern: $0.baseAddress), 0, 0, 0)
            }
            seen.named.store(strcmp(name, "a name too long") == 0, ordering: .relaxed)
        }
        thread.join()
        let (blocked, named) = (seen.blocked.load(ordering: .relaxed), seen.named.load(ordering: .relaxed))
        #expect(blocked)
        #expect(named)
        // The creator's own mask is as it was.
        pthread_sigmask(SIG_BLOCK, nil, &after)
        #expect((1..<65).allSatisfy { sigismember(&before, $0) == sigismember(&after, $0) })
    }

    @Test func stackSizesAreChecked() {
        #expect(throws: Errno.invalidArgument) { _ = try HostThread(name: "small", stackSize: 4096) {} }
    }

    @Test func locksExclude() throws {
        final class Shared: @unchecked Sendable {
            let lock = FutexLock()
            var count = 0
        }
        let shared = Shared()
        let threads = try (0..<4).map { _ in
            try HostThread(name: "locker") {
                for _ in 0..<50_000 { shared.lock.withLock { shared.count += 1 } }
            }
        }
        threads.forEach { $0.join() }
        #expect(shared.count == 200_000)
        shared.lock.lock()
        let takenTwice = shared.lock.tryLock()
        #expect(!takenTwice)
        shared.lock.unlock()
        let takenAgain = shared.lock.tryLock()
        #expect(takenAgain)
        shared.lock.unlock()
    }

    @Test func futexOutcomes() throws {
        let word = FutexWord(1)
        #expect(word.wait(while: 0) == .changed)
        let now = MonotonicClock.nanoseconds()
        #expect(word.wait(while: 1, deadlineNanoseconds: now + 1_000_000) == .timedOut)
        #expect(MonotonicClock.nanoseconds() >= now + 1_000_000)
        #expect(word.wait(while: 1, deadlineNanoseconds: 0) == .timedOut)
    }
}

@Suite struct CHeaderTests {
    @Test func requestNumbersAreKVMs() {
        #expect(MARTLET_KVM_GET_API_VERSION == 0xae00)
        #expect(MARTLET_KVM_RUN == 0xae80)
        #expect(MARTLET_KVM_SET_USER_MEMORY_REGION == 0x4020_ae46)
        #expect(MARTLET_KVM_GET_DIRTY_LOG == 0x4010_ae42)
    }

    @Test func flexibleArraysStartAfterTheirStructure() {
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
            let list = buffer.baseAddress!.bindMemory(to: kvm_cpuid2.self, capacity: 1)
            #expect(UnsafeMutableRawPointer(martlet_kvm_cpuid2_entries(list)!) == buffer.baseAddress! + 8)
            let run = MemoryLayout<kvm_run>.size
            #expect(run == 2352)
        }
    }

    @Test func contextsOfSignalHandlersCanBeRead() {
        // SIGTRAP by INT3 would need an instruction; a handler on raise() sees its own stack pointer and changes nothing.
        let mask = sigset_t()
        var old = sigaction()
        withUnsafePointer(to: mask) { mask in
            _ = martlet_sigaction(
                SIGUSR2,
                { _, _, context in
                    let stackPointer = martlet_context_registers(context)[Int(MARTLET_REG_RSP)]
                    var local = 0
                    let distance = withUnsafePointer(to: &local) { Int(stackPointer) - Int(bitPattern: $0) }
                    seenDistance.store(distance, ordering: .relaxed)
                }, 0, mask, &old)
        }
        var wanted = sigset_t()
        var masked = sigset_t()
        sigaddset(&wanted, SIGUSR2)
        pthread_sigmask(SIG_UNBLOCK, &wanted, &masked)
        raise(SIGUSR2)
        pthread_sigmask(SIG_SETMASK, &masked, nil)
        sigaction(SIGUSR2, &old, nil)
        let distance = seenDistance.load(ordering: .relaxed)
        #expect((1..<65536).contains(distance))
    }

    @Test func gsBaseIsReadable() {
        #expect(martlet_get_gs_base_by_call() == (martlet_has_fsgsbase() ? martlet_rdgsbase() : 0))
        martlet_compiler_barrier()
        let before = martlet_rdtsc()
        martlet_pause()
        #expect(martlet_rdtsc() > before)
    }
}

private let seenDistance = Atomic<Int>(0)
