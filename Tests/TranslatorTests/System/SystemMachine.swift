import Glibc
import GuestMemory
import Testing
import Translator
import X86

/// A processor with flat memory whose system instructions are executed one at a time, without fetching them.
///
/// Tables are where ``buildTables()`` says: GDT at 1000H, IDT at 2000H, the task state at 3000H, a second one at 3400H, an
/// LDT at 6000H, stacks below 7000H (inner), 8000H and 9000H, page tables from 10_0000H.
final class SystemMachine: ProcessorPlatform {
    let ram: UnsafeMutableRawPointer
    private let byteCount = 4 << 20
    private let decoder = Decoder()
    private let shadow = TestedShadow()
    private var storage: Processor?
    var processor: Processor { storage.unsafelyUnwrapped }
    var state: CPUState { processor.state }
    var taskPriority: UInt8 = 0
    /// Whether CPUID tells of long mode.
    var hasLongMode = true

    init() throws {
        ram = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        let memory = GuestMemory()
        for addressSpace in 0..<2 as Range<UInt32> {
            let region = UserMemoryRegion(
                slot: addressSpace << 16, flags: 0, guestPhysicalAddress: 0, memorySize: UInt64(byteCount),
                userspaceAddress: UInt64(UInt(bitPattern: ram)))
            try memory.setUserMemoryRegion(region) { _ in }
        }
        storage = try shadow.makeProcessor(memory, TranslationCache(byteCount: 1 << 20), self)
        storage?.prepare()
        for register in SegmentRegister.allCases {
            processor.setSegment(register, .realMode(selector: 0, isCode: register == .cs))
        }
        processor.modeDidChange()
    }

    deinit {
        storage = nil
        decoder.destroy()
        munmap(ram, byteCount)
    }

    // MARK: Memory

    func store<T: FixedWidthInteger>(_ value: T, at address: UInt64) {
        ram.storeBytes(of: value, toByteOffset: Int(address), as: T.self)
    }

    func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T {
        ram.loadUnaligned(fromByteOffset: Int(address), as: T.self)
    }

    /// `count` slots from `address` on.
    func slots<T: FixedWidthInteger>(_ count: Int, of type: T.Type, at address: UInt64) -> [T] {
        (0..<count).map { load(address + UInt64($0 * MemoryLayout<T>.size)) }
    }

    func store<T: FixedWidthInteger>(slots: [T], at address: UInt64) {
        for (index, value) in slots.enumerated() { store(value, at: address + UInt64(index * MemoryLayout<T>.size)) }
    }

    /// Makes a page of the first 2 MiB accessible or not.
    func setPresent(_ page: UInt64, _ isPresent: Bool) {
        store(page << 12 | (isPresent ? 7 : 0), at: 0x10_3000 + page * 8)
        processor.flushTLB(.all)
    }

    // MARK: Descriptors

    static func segment(base: UInt64 = 0, limit: UInt64 = 0xFFFFF, access: UInt64, flags: UInt64 = 0) -> UInt64 {
        limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52
            | (base >> 24 & 0xFF) << 56
    }

    static func gate(_ selector: UInt64, _ offset: UInt64, access: UInt64, extra: UInt64 = 0) -> UInt64 {
        offset & 0xFFFF | selector << 16 | extra << 32 | access << 40 | (offset >> 16 & 0xFFFF) << 48
    }

    func setGate(_ vector: UInt64, _ selector: UInt64, _ offset: UInt64, access: UInt64) {
        store(Self.gate(selector, offset, access: access), at: 0x2000 + vector * 8)
    }

    func setGate64(_ vector: UInt64, _ offset: UInt64, access: UInt64, interruptStack: UInt64 = 0) {
        store(Self.gate(8, offset, access: access, extra: interruptStack), at: 0x2000 + vector * 16)
        store(offset >> 32, at: 0x2008 + vector * 16)
    }

    func buildTables() {
        let table: [UInt64] = [
            0,
            Self.segment(access: 0x9A, flags: 0xA),  // 08 64-bit code, ring 0
            Self.segment(access: 0x92, flags: 0xC),  // 10 data, ring 0
            Self.segment(access: 0xFA, flags: 0xC),  // 18 32-bit code, ring 3
            Self.segment(access: 0xF2, flags: 0xC),  // 20 data, ring 3
            Self.segment(access: 0xFA, flags: 0xA),  // 28 64-bit code, ring 3
            Self.segment(base: 0x3000, limit: 0x68, access: 0x89), 0,  // 30 task state
            Self.segment(access: 0x9A, flags: 0xC),  // 40 32-bit code, ring 0
            Self.segment(base: 0x3400, limit: 0x68, access: 0x89),  // 48 another task state
            Self.gate(0x40, 0x5000, access: 0xEC, extra: 2),  // 50 call gate with two parameters, ring 3
            Self.gate(0x48, 0, access: 0xE5),  // 58 task gate, ring 3
            Self.segment(limit: 0xFFFF, access: 0x9A),  // 60 16-bit code, ring 0
            Self.segment(limit: 0xFFFF, access: 0x92),  // 68 16-bit data, ring 0
            Self.segment(base: 0x6000, limit: 0x1F, access: 0x82), 0,  // 70 local descriptor table
            Self.gate(0x08, 0x5100, access: 0xEC), 0,  // 80 64-bit call gate, ring 3
            Self.segment(access: 0x9E, flags: 0xC)  // 90 conforming 32-bit code, ring 0
        ]
        store(slots: table, at: 0x1000)
        processor.system.gdtr = DescriptorTableRegister(base: 0x1000, limit: UInt16(table.count * 8 - 1))
        processor.system.idtr = DescriptorTableRegister(base: 0x2000, limit: 0xFFF)
        store(UInt64(0x10_1007), at: 0x10_0000)
        store(UInt64(0x10_2007), at: 0x10_1000)
        store(UInt64(0x10_3007), at: 0x10_2000)
        store(UInt64(0x20_0087), at: 0x10_2008)
        for page in 0..<512 as Range<UInt64> { store(page << 12 | 7, at: 0x10_3000 + page * 8) }
    }

    // MARK: Modes

    /// 32-bit protected mode at CPL 0, entered as a boot loader does it.
    func enterProtectedMode() {
        buildTables()
        state[.rax] = 0x11
        #expect(execute("mov cr0, eax", 0x0F, 0x22, 0xC0) == nil)
        #expect(execute("jmp 40h:4000h", 0x66, 0xEA, 0, 0x40, 0, 0, 0x40, 0) == nil)
        state[.rax] = 0x10
        for (name, modRM) in [("ds", 0xD8), ("es", 0xC0), ("ss", 0xD0), ("fs", 0xE0), ("gs", 0xE8)] {
            #expect(execute("mov \(name), ax", 0x8E, UInt8(modRM)) == nil)
        }
        processor.system.interruptShadow = false
        state[.rax] = 0x30
        #expect(execute("ltr ax", 0x0F, 0x00, 0xD8) == nil)
        store(UInt32(0x7000), at: 0x3004)
        store(UInt16(0x10), at: 0x3008)
        state[.rsp] = 0x8000
    }

    /// CPL 3 in 32-bit protected mode, at 4500H with the stack at 9000H.
    func enterUserMode() {
        state[.rsp] = 0x7F00
        store(slots: [0x4500, 0x1B, 0x202, 0x9000, 0x23] as [UInt32], at: 0x7F00)
        #expect(execute("iretd", 0xCF) == nil)
    }

    /// 64-bit mode at CPL 0.
    func enterLongMode() throws {
        enterProtectedMode()
        store(Self.segment(base: 0x3000, limit: 0x68, access: 0x89), at: 0x1030)
        state[.rax] = 0x20
        #expect(execute("mov cr4, eax", 0x0F, 0x22, 0xE0) == nil)
        state[.rax] = 0x10_0000
        #expect(execute("mov cr3, eax", 0x0F, 0x22, 0xD8) == nil)
        try processor.setEFER(0x901)
        state[.rax] = 0x8000_0011
        #expect(execute("mov cr0, eax", 0x0F, 0x22, 0xC0) == nil)
        #expect(execute("jmp 8:4000h", 0xEA, 0, 0x40, 0, 0, 8, 0) == nil)
        state[.rax] = 0x30
        #expect(execute("ltr ax", 0x0F, 0x00, 0xD8) == nil)
        // Not aligned to 16, so that tests see the alignment.
        store(UInt64(0x7008), at: 0x3004)
        state[.rsp] = 0x8000
    }

    /// CPL 3 in 64-bit mode, at 4500H.
    func enterUserMode64() {
        state[.rsp] = 0x7F00
        store(slots: [0x4500, 0x2B, 0x202, 0x7FFF_FFFF_9000, 0x23] as [UInt64], at: 0x7F00)
        #expect(execute("iretq", 0x48, 0xCF) == nil)
    }

    // MARK: Execution

    func decode(_ bytes: UInt8...) throws -> DecodedInstruction { try decode(bytes) }

    private func decode(_ bytes: [UInt8]) throws -> DecodedInstruction {
        let size: Decoder.CodeSize =
            processor.isCode64 ? .bits64 : processor.isCode32 ? .bits32 : .bits16
        let outcome = (bytes + [UInt8](repeating: 0x90, count: 15)).withUnsafeBytes {
            decoder.decode($0.baseAddress.unsafelyUnwrapped, byteCount: 15, size: size)
        }
        guard case .instruction(let instruction) = outcome, Int(instruction.length) == bytes.count else {
            throw GuestFault.invalidOpcode
        }
        return instruction
    }

    /// Executes the instruction that `bytes` encode; `assembly` is for the reader.
    /// - Returns: the fault it raised, if any.
    @discardableResult
    func execute(_ assembly: String, _ bytes: UInt8...) -> GuestFault? {
        guard let instruction = try? decode(bytes) else {
            Issue.record("\(assembly) does not decode")
            return nil
        }
        do throws(GuestFault) {
            let isKnown = try processor.executeSystem(instruction)
            #expect(isKnown, "\(assembly)")
            return nil
        } catch {
            return error
        }
    }

    /// The fault that delivering `event` raises, if any.
    func deliver(_ event: PendingEvent) -> GuestFault? {
        do throws(GuestFault) {
            try processor.deliver(event)
            return nil
        } catch {
            return error
        }
    }

    // MARK: Platform

    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult {
        switch function {
        case 1: CPUIDResult(ecx: ~0, edx: ~0)
        case 7: CPUIDResult(ebx: ~0, ecx: ~0)
        case 0xD: CPUIDResult(eax: 7)
        case 0x8000_0000: CPUIDResult(eax: 0x8000_0008)
        case 0x8000_0001: CPUIDResult(edx: hasLongMode ? ~0 : ~(1 << 29))
        case 0x8000_0008: CPUIDResult(eax: 48)
        default: CPUIDResult()
        }
    }

    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64 {
        number << 16 | a0 << 12 | a1 << 8 | a2 << 4 | a3
    }

    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64? { nil }
    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool { false }
    func readPort(_ port: UInt16, byteCount: Int) -> UInt32? { nil }
    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool { false }
    func readMSR(_ index: UInt32, by reader: RegisterUser) -> UInt64? { nil }
    func writeMSR(_ index: UInt32, _ value: UInt64, by writer: RegisterUser) -> Bool { false }
    func requestOthers(_ requests: ProcessorRequests) {}
    func withOthersPaused(_ body: () -> Void) { body() }
}
