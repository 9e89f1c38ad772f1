import Glibc
import GuestMemory
import Translator
import X86

/// A processor with flat memory and nothing around it: every access beyond its memory asks the client.
final class BareMachine: ProcessorPlatform {
    let ram: UnsafeMutableRawPointer
    let byteCount: Int
    private let shadow = TestedShadow()
    private var storage: Processor?
    var processor: Processor { storage.unsafelyUnwrapped }
    var taskPriority: UInt8 = 0
    /// How often ``withOthersPaused(_:)`` was called.
    private(set) var pauseCount = 0

    init(byteCount: Int = 16 << 20) throws {
        self.byteCount = byteCount
        ram = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        let memory = GuestMemory()
        let region = UserMemoryRegion(
            slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: UInt64(byteCount),
            userspaceAddress: UInt64(UInt(bitPattern: ram)))
        try memory.setUserMemoryRegion(region) { _ in }
        storage = try shadow.makeProcessor(memory, TranslationCache(byteCount: 8 << 20), self)
        storage?.prepare()
    }

    deinit {
        storage = nil
        munmap(ram, byteCount)
    }

    /// 64-bit mode at CPL 0, the first GiB mapped to itself.
    func enterLongMode(at rip: UInt64, stack: UInt64) {
        store(0x2007, at: 0x1000)
        store(0x3007, at: 0x2000)
        for i in 0..<512 { store(UInt64(i) << 21 | 0x87, at: 0x3000 + i * 8) }
        processor.system.cr3 = 0x1000
        processor.system.cr4 = CR4.physicalAddressExtension | CR4.fxsave | CR4.simdExceptions | CR4.xsave
        processor.system.cr0 = CR0.protection | CR0.paging | CR0.writeProtect | CR0.numericError
        processor.system.efer = EFER.longModeEnable | EFER.longModeActive
        processor.system.xcr0 = 7
        processor.system.cs = Segment(selector: 8, base: 0, limit: ~0, attributes: 0xA09B)
        processor.system.ss = Segment(selector: 16, base: 0, limit: ~0, attributes: 0xC093)
        for register in SegmentRegister.allCases { processor.state.setSegmentBase(register, 0) }
        processor.state.rip = rip
        processor.state[.rsp] = stack
        processor.modeDidChange()
    }

    func load(_ bytes: [UInt8], at address: Int) {
        bytes.withUnsafeBytes {
            (ram + address).copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: bytes.count)
        }
    }

    func store(_ value: UInt64, at address: Int) {
        ram.storeBytes(of: value, toByteOffset: address, as: UInt64.self)
    }

    func word(at address: Int) -> UInt64 { ram.loadUnaligned(fromByteOffset: address, as: UInt64.self) }

    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64? { nil }
    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool { false }
    func readPort(_ port: UInt16, byteCount: Int) -> UInt32? { nil }
    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool { false }
    func readMSR(_ index: UInt32, by reader: RegisterUser) -> UInt64? { nil }
    func writeMSR(_ index: UInt32, _ value: UInt64, by writer: RegisterUser) -> Bool { false }
    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult { CPUIDResult() }
    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64 { 0 }
    func requestOthers(_ requests: ProcessorRequests) {}
    func withOthersPaused(_ body: () -> Void) {
        pauseCount += 1
        body()
    }
}
