import Glibc
import GuestMemory
import Translator
import X86

/// A processor with flat memory and nothing around it.
final class BareMachine: ProcessorPlatform {
    let ram: UnsafeMutableRawPointer
    let byteCount: Int
    private var processorStorage: Processor?
    var processor: Processor { processorStorage! }
    var taskPriority: UInt8 = 0

    init(byteCount: Int = 16 << 20) throws {
        self.byteCount = byteCount
        ram = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        let memory = GuestMemory(host: ram, pages: UInt64(byteCount >> 12))
        processorStorage = try Processor(memory: memory, cache: TranslationCache(byteCount: 8 << 20), platform: self)
    }

    /// 64-bit mode at CPL 0, the first GiB mapped to itself.
    func enterLongMode(at rip: UInt64, stack: UInt64) {
        let tables = ram + 0x1000
        tables.storeBytes(of: 0x2007, as: UInt64.self)
        (ram + 0x2000).storeBytes(of: 0x3007, as: UInt64.self)
        for i in 0..<512 {
            (ram + 0x3000 + i * 8).storeBytes(of: UInt64(i) << 21 | 0x87, as: UInt64.self)
        }
        processor.system.cr3 = 0x1000
        processor.system.cr4 = CR4.physicalAddressExtension | CR4.fxsave | CR4.xsave
        processor.system.cr0 = CR0.protection | CR0.paging | CR0.writeProtect | CR0.numericError
        processor.system.efer = EFER.longModeEnable | EFER.longModeActive
        processor.system.xcr0 = 7
        processor.system.cs = Segment(selector: 8, base: 0, limit: ~0, attributes: 0xA09B)
        processor.system.ss = Segment(selector: 16, base: 0, limit: ~0, attributes: 0xC093)
        for s in SegmentRegister.allCases { processor.state.setSegmentBase(s, 0) }
        processor.state.rip = rip
        processor.state[.rsp] = stack
        processor.modeDidChange()
    }

    func load(_ bytes: [UInt8], at address: Int) {
        bytes.withUnsafeBytes { (ram + address).copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
    }

    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64? { nil }
    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool { false }
    func readPort(_ port: UInt16, byteCount: Int) -> UInt32? { nil }
    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool { false }
    func readMSR(_ index: UInt32) -> UInt64? { nil }
    func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool { false }
    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult { CPUIDResult() }
    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64 { 0 }
    func requestOthers(_ requests: ProcessorRequests) {}
    func withOthersPaused(_ body: () -> Void) { body() }
}
