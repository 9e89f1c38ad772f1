import CHost
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// One machine with and one without interrupt controllers, a vCPU in each, on one backend.
private final class Fixture {
    let backend: any KVMBackend
    let system: KVMDescriptor
    let plain: KVMDescriptor
    let plainVCPU: KVMDescriptor
    let full: KVMDescriptor
    let fullVCPU: KVMDescriptor
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 4096)

    init(_ backend: any KVMBackend) throws {
        self.backend = backend
        system = try backend.openSystem()
        func create(_ parent: KVMDescriptor, _ request: KVMRequest, _ argument: UInt) throws -> KVMDescriptor {
            KVMDescriptor(rawValue: try backend.ioctl(parent, request.rawValue, argument))
        }
        plain = try create(system, .createVM, 0)
        plainVCPU = try create(plain, .createVCPU, 3)
        full = try create(system, .createVM, 0)
        _ = try backend.ioctl(full, KVMRequest.createIRQChip.rawValue, 0)
        fullVCPU = try create(full, .createVCPU, 0)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        for descriptor in [fullVCPU, full, plainVCPU, plain, system] { backend.close(descriptor) }
        memory.deallocate()
        scratch.deallocate()
    }

    /// The request's result or negative error number, after the words were put in the scratch buffer.
    func call(_ descriptor: KVMDescriptor, _ request: UInt32, words: [UInt32]) -> Int32 {
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
        words.withUnsafeBytes { scratch.copyMemory(from: $0) }
        return call(descriptor, request, UInt(bitPattern: scratch.baseAddress))
    }

    func call(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) -> Int32 {
        do throws(Errno) {
            return try backend.ioctl(descriptor, request, argument)
        } catch {
            return -error.rawValue
        }
    }

    func region(_ slot: UInt32, _ flags: UInt32, _ gpa: UInt64, _ size: UInt64, offset: Int = 0) -> [UInt32] {
        region(slot, flags, gpa, size, address: UInt64(UInt(bitPattern: memory.baseAddress! + offset)))
    }

    func region(_ slot: UInt32, _ flags: UInt32, _ gpa: UInt64, _ size: UInt64, address: UInt64) -> [UInt32] {
        [slot, flags] + [gpa, size, address].flatMap { [UInt32(truncatingIfNeeded: $0), UInt32($0 >> 32)] }
    }
}

/// One request and what KVM answers.
private struct Case {
    let name: String
    let expected: Int32
    let body: (Fixture) -> Int32

    init(_ name: String, _ expected: Int32, _ body: @escaping (Fixture) -> Int32) {
        self.name = name
        self.expected = expected
        self.body = body
    }

    init(_ name: String, _ error: Errno, _ body: @escaping (Fixture) -> Int32) {
        self.init(name, -error.rawValue, body)
    }
}

@Suite struct ErrnoTests {
    /// In this order: some create what later ones find.
    private static var cases: [Case] {
        [
            Case("system: unknown", .invalidArgument) { $0.call($0.system, 0xAEFF, 0) },
            Case("system: other type", .invalidArgument) { $0.call($0.system, 0x1234, 0) },
            Case("system: a machine's request", .invalidArgument) { $0.call($0.system, 0xAE60, 0) },
            Case("machine: unknown", .inappropriateIOCTLForDevice) { $0.call($0.plain, 0xAEFF, 0) },
            Case("machine: a vCPU's request", .inappropriateIOCTLForDevice) { $0.call($0.plain, 0xAE80, 0) },
            Case("vCPU: unknown", .invalidArgument) { $0.call($0.plainVCPU, 0xAEFF, 0) },
            Case("vCPU: a machine's request", .invalidArgument) { $0.call($0.plainVCPU, 0xAE60, 0) },
            Case("API version", 12) { $0.call($0.system, KVMRequest.getAPIVersion.rawValue, 0) },
            Case("API version with argument", .invalidArgument) {
                $0.call($0.system, KVMRequest.getAPIVersion.rawValue, 1)
            },
            Case("map size", 12288) { $0.call($0.system, KVMRequest.getVCPUMapSize.rawValue, 0) },
            Case("machine of unknown type", .invalidArgument) { $0.call($0.system, KVMRequest.createVM.rawValue, 5) },
            Case("CPUID: no room", .argListTooLong) {
                $0.call($0.system, KVMRequest.getSupportedCPUID.rawValue, words: [0, 0])
            },
            Case("MSR list: no room", .argListTooLong) {
                $0.call($0.system, KVMRequest.getMSRIndexList.rawValue, words: [0])
            },
            Case("vCPU id too large", .invalidArgument) { $0.call($0.plain, KVMRequest.createVCPU.rawValue, 1 << 20) },
            Case("vCPU id of 2^32", .invalidArgument) {
                $0.call($0.plain, KVMRequest.createVCPU.rawValue, 1 << 32 + 9)
            },
            Case("vCPU id taken", .fileExists) { $0.call($0.plain, KVMRequest.createVCPU.rawValue, 3) },
            Case("controllers after a vCPU", .invalidArgument) {
                $0.call($0.plain, KVMRequest.createIRQChip.rawValue, 0)
            },
            Case("controllers twice", .fileExists) { $0.call($0.full, KVMRequest.createIRQChip.rawValue, 0) },
            Case("timer without controllers", .noSuchFileOrDirectory) {
                $0.call($0.plain, KVMRequest.createPIT2.rawValue, words: [])
            },
            Case("timer state without timer", .noSuchAddressOrDevice) {
                $0.call($0.full, KVMRequest.getPIT2.rawValue, words: [])
            },
            Case("timer", 0) { $0.call($0.full, KVMRequest.createPIT2.rawValue, words: [1]) },
            Case("timer twice", .fileExists) { $0.call($0.full, KVMRequest.createPIT2.rawValue, words: []) },
            Case("boot vCPU after a vCPU", .resourceBusy) { $0.call($0.full, KVMRequest.setBootCPUID.rawValue, 0) },
            Case("identity map after a vCPU", .invalidArgument) {
                $0.call($0.full, KVMRequest.setIdentityMapAddress.rawValue, words: [0xFFFB_C000, 0])
            },
            Case("TSS too high", .invalidArgument) {
                $0.call($0.full, KVMRequest.setTSSAddress.rawValue, 0xFFFF_FFFF_F000)
            },
            Case("interrupt with controllers", .noSuchAddressOrDevice) {
                $0.call($0.fullVCPU, KVMRequest.interrupt.rawValue, words: [0x20])
            },
            Case("interrupt above 255", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.interrupt.rawValue, words: [300])
            },
            Case("interrupt", 0) { $0.call($0.plainVCPU, KVMRequest.interrupt.rawValue, words: [0x20]) },
            Case("local APIC without controllers", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.getLocalAPIC.rawValue, words: [])
            },
            Case("line without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, KVMRequest.irqLine.rawValue, words: [0, 1])
            },
            Case("chip without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, KVMRequest.getIRQChip.rawValue, words: [0])
            },
            Case("chip that does not exist", .invalidArgument) {
                $0.call($0.full, KVMRequest.getIRQChip.rawValue, words: [7])
            },
            Case("message without controllers", .invalidArgument) {
                $0.call($0.plain, KVMRequest.signalMSI.rawValue, words: [])
            },
            Case("routes without controllers", .invalidArgument) {
                $0.call($0.plain, KVMRequest.setGSIRouting.rawValue, words: [])
            },
            Case("route to pin 24", .invalidArgument) {
                $0.call($0.full, KVMRequest.setGSIRouting.rawValue, words: [1, 0, 5, 1, 0, 0, 2, 24])
            },
            Case("route of unknown type", .invalidArgument) {
                $0.call($0.full, KVMRequest.setGSIRouting.rawValue, words: [1, 0, 5, 99, 0, 0, 2, 5])
            },
            Case("state: halted without controllers", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.setMPState.rawValue, words: [3])
            },
            Case("state: unknown", .invalidArgument) {
                $0.call($0.fullVCPU, KVMRequest.setMPState.rawValue, words: [77])
            },
            Case("signal mask of 4 bytes", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.setSignalMask.rawValue, words: [4])
            },
            Case("clock control without clock", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.kvmClockControl.rawValue, 0)
            },
            Case("unknown capability", .invalidArgument) {
                $0.call($0.plain, KVMRequest.enableCapability.rawValue, words: [9999])
            },
            Case("unknown extension", 0) { $0.call($0.plain, KVMRequest.checkExtension.rawValue, 9999) },
            Case("registers from nowhere", .badAddress) { $0.call($0.plainVCPU, KVMRequest.setRegisters.rawValue, 0) },
            Case("registers from an unmapped page", .badAddress) {
                $0.call($0.plainVCPU, KVMRequest.setRegisters.rawValue, 0x10000)
            },
            Case("registers to nowhere", .badAddress) { $0.call($0.plainVCPU, KVMRequest.getRegisters.rawValue, 0) },
            Case("frequency of 1 kHz", .invalidArgument) {
                $0.call($0.plainVCPU, KVMRequest.setTSCFrequency.rawValue, 1)
            },
            Case("MSRs: too many", .argListTooLong) {
                $0.call($0.plainVCPU, KVMRequest.getMSRs.rawValue, words: [100_000])
            },
            Case("MSRs: stops at the first unknown", 1) {
                $0.call(
                    $0.plainVCPU, KVMRequest.getMSRs.rawValue,
                    words: [3, 0] + [0xC000_0081, 0, 0, 0] + [0x1234_5678, 0, 0, 0] + [0xC000_0082, 0, 0, 0])
            },
            Case("region", 0) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(0, 0, 0, 0x10000))
            },
            Case("region overlaps", .fileExists) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(1, 0, 0x8000, 0x10000))
            },
            Case("region at half a page", .invalidArgument) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(1, 0, 0x10800, 0x1000))
            },
            Case("deletion of nothing", .invalidArgument) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(7, 0, 0, 0))
            },
            Case("region changes size", .invalidArgument) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(0, 0, 0, 0x8000))
            },
            Case("region changes host address", .invalidArgument) {
                $0.call(
                    $0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(0, 0, 0, 0x10000, offset: 4096))
            },
            Case("region with unknown flag", .invalidArgument) {
                $0.call(
                    $0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(2, 1 << 7, 0x10_0000, 0x1000))
            },
            Case("slot too large", .invalidArgument) {
                $0.call(
                    $0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(32764, 0, 0x10_0000, 0x1000))
            },
            Case("region in the kernel's half", .invalidArgument) {
                $0.call(
                    $0.plain, KVMRequest.setUserMemoryRegion.rawValue,
                    words: $0.region(3, 0, 0x90_0000, 0x10000, address: 0xFFFF_8000_0000_0000))
            },
            Case("region wraps", .invalidArgument) {
                $0.call(
                    $0.plain, KVMRequest.setUserMemoryRegion.rawValue,
                    words: $0.region(3, 0, 0xFFFF_FFFF_FFFF_F000, 0x2000)
                )
            },
            Case("region moves", 0) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(0, 0, 0x20_0000, 0x10000))
            },
            Case("dirty log that is not kept", .noSuchFileOrDirectory) {
                $0.call($0.plain, KVMRequest.getDirtyLog.rawValue, words: [0, 0] + [0, 0])
            },
            Case("dirty log of no slot", .noSuchFileOrDirectory) {
                $0.call($0.plain, KVMRequest.getDirtyLog.rawValue, words: [9, 0] + [0, 0])
            },
            Case("deletion", 0) {
                $0.call($0.plain, KVMRequest.setUserMemoryRegion.rawValue, words: $0.region(0, 0, 0x20_0000, 0))
            }
        ]
    }

    @Test func userspace() throws {
        let fixture = try Fixture(UserspaceKVM())
        for one in Self.cases { #expect(one.body(fixture) == one.expected, "\(one.name)") }
    }

    /// The table is KVM's, not an opinion.
    @Test(.enabled(if: KernelBackend.shared != nil, "needs a usable /dev/kvm"))
    func kernel() throws {
        let fixture = try Fixture(try #require(KernelBackend.shared))
        for one in Self.cases { #expect(one.body(fixture) == one.expected, "\(one.name)") }
    }

    @Test func descriptors() throws {
        let backend = UserspaceKVM()
        let system = try backend.openSystem()
        #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(KVMDescriptor(rawValue: 77), 0xAE00, 0) }
        #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(KVMDescriptor(rawValue: -1), 0xAE00, 0) }
        #expect(throws: Errno.operationNotSupportedByDevice) { try backend.mapRunArea(system) }
        backend.close(system)
        #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(system, 0xAE00, 0) }
        backend.close(system)
    }
}
