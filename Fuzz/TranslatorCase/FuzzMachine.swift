import Glibc
import GuestMemory
import Translator
import X86

/// A processor whose memory lies in the middle of inaccessible address space, set up as an input says.
final class FuzzMachine: ProcessorPlatform {
    enum Mode: UInt8 {
        case real, protected16, protected32, paged32, physicalAddressExtension, compatibility, long, virtual8086
    }

    /// Host memory that stands for the guest's: the RAM, and a page that faults when it is written to.
    private struct HostMemory: @unchecked Sendable {
        let ram: UnsafeMutableRawPointer
        let readOnly: UnsafeMutableRawPointer

        /// Addresses on either side that a stray access of translated code may reach by a 32-bit displacement.
        init() {
            let guardByteCount = 8 << 30
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
            guard let base = mmap(nil, 3 * guardByteCount, PROT_NONE, flags, -1, 0), base != MAP_FAILED else {
                fatalError("no address space for the guest")
            }
            ram = base + guardByteCount
            readOnly = base + 2 * guardByteCount
            guard mprotect(ram, GuestImage.byteCount, PROT_READ | PROT_WRITE) == 0,
                mprotect(readOnly, 4096, PROT_READ) == 0
            else { fatalError("no memory for the guest") }
        }
    }

    private static let host = HostMemory()

    private let options: FuzzOptions
    private var storage: Processor?
    var processor: Processor { storage.unsafelyUnwrapped }
    var generator: SeededGenerator
    var taskPriority: UInt8 = 0

    init(_ options: FuzzOptions, code: UnsafeRawBufferPointer) {
        self.options = options
        generator = SeededGenerator(seed: options.seed)
        let ram = Self.host.ram
        GuestImage.bytes.withUnsafeBytes { ram.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: $0.count) }
        let room = min(code.count, GuestImage.data.lowerBound - GuestImage.code - options.codeOffset)
        if let base = code.baseAddress {
            (ram + GuestImage.code + options.codeOffset).copyMemory(from: base, byteCount: room)
        }
        let memory = GuestMemory()
        do {
            let regions: [(UInt32, UInt64, Int, UnsafeMutableRawPointer)] = [
                (0, 0, GuestImage.byteCount, ram), (2, GuestImage.readOnlyPage, 4096, Self.host.readOnly)
            ]
            for (flags, address, byteCount, host) in regions {
                let region = UserMemoryRegion(
                    slot: flags, flags: flags, guestPhysicalAddress: address, memorySize: UInt64(byteCount),
                    userspaceAddress: UInt64(UInt(bitPattern: host)))
                try memory.setUserMemoryRegion(region) { _ in }
            }
            storage = try Processor(memory: memory, cache: TranslationCache(byteCount: 1 << 20), platform: self)
            storage?.prepare()
        } catch {
            fatalError("no machine: \(error)")
        }
    }

    // MARK: Entry

    /// Puts the processor into the mode of the options, at byte `offset` of the code.
    func start(at offset: Int) {
        let processor = processor
        processor.reset()
        let mode = options.mode
        let isUser = options.isUser && mode != .real || mode == .virtual8086
        processor.system.gdtr = DescriptorTableRegister(
            base: 0x1000, limit: UInt16(GuestImage.descriptorCount * 8 - 1))
        let hasLongTables = mode == .compatibility || mode == .long
        processor.system.idtr =
            switch mode {
            case .real: DescriptorTableRegister(base: 0, limit: 0x3FF)
            case .compatibility, .long: DescriptorTableRegister(base: 0x4000, limit: 0xFFF)
            default: DescriptorTableRegister(base: 0x2000, limit: 0x7FF)
            }
        processor.system.tr = Segment(selector: 0x30, base: 0x3000, limit: 0x68, attributes: 0x8B)
        processor.system.ldtr = Segment(selector: 0x70, base: 0x6000, limit: 0x1F, attributes: 0x82)
        processor.system.star = 0x18_0008 << 32
        processor.system.lstar = 0xF00
        processor.system.cstar = 0xF00
        processor.system.sysenterCS = 8
        processor.system.sysenterEIP = 0xF00
        processor.system.sysenterESP = 0x7000
        setControlRegisters(mode, isLong: hasLongTables)
        processor.system.cpl = isUser ? 3 : 0
        setSegments(mode, isUser: isUser)
        setRegisters()
        processor.state.rip = UInt64(GuestImage.code + options.codeOffset + offset)
        if mode == .real || mode == .virtual8086 {
            processor.state.rip -= processor.state.segmentBase(.cs)
        }
        processor.state.rflags = flags(mode)
        processor.modeDidChange()
    }

    private func setControlRegisters(_ mode: Mode, isLong: Bool) {
        var cr0 = CR0.extensionType | CR0.numericError
        if mode != .real { cr0 |= CR0.protection }
        if options.protectsWrites { cr0 |= CR0.writeProtect }
        if options.taskSwitched { cr0 |= CR0.taskSwitched }
        if options.emulatesX87 { cr0 |= CR0.emulation }
        var cr4 = CR4.simdExceptions | CR4.xsave | CR4.fsgsbase
        if !options.lacksSSE { cr4 |= CR4.fxsave }
        switch mode {
        case .real, .protected16, .protected32: break
        case .paged32, .virtual8086:
            processor.system.cr3 = GuestImage.tables32
            cr4 |= CR4.pageSizeExtension
        case .physicalAddressExtension:
            processor.system.cr3 = GuestImage.paeTables
            cr4 |= CR4.physicalAddressExtension
        case .compatibility, .long:
            processor.system.cr3 = GuestImage.pageTables
            cr4 |= CR4.physicalAddressExtension | CR4.globalPages
            if options.hasContexts { cr4 |= CR4.processContextIdentifiers }
            processor.system.efer = EFER.syscall | EFER.longModeEnable | EFER.longModeActive | EFER.noExecute
        }
        if processor.system.cr3 != 0 { cr0 |= CR0.paging }
        if options.preventsAccess { cr4 |= CR4.supervisorAccessPrevention }
        if options.preventsExecution { cr4 |= CR4.supervisorExecutionPrevention }
        processor.system.cr0 = cr0
        processor.system.cr4 = cr4
        processor.system.xcr0 = options.lacksAVX ? 3 : 7
    }

    private func setSegments(_ mode: Mode, isUser: Bool) {
        let level: UInt16 = isUser ? 3 : 0
        let bits = level << 5
        switch mode {
        case .real, .virtual8086:
            for register in SegmentRegister.allCases {
                let paragraph = register == .cs ? 0x1000 : register == .ss ? 0 : UInt16(generator.next() & 0x7FFF)
                var segment = Segment.realMode(selector: paragraph, isCode: register == .cs)
                if mode == .virtual8086 { segment.attributes = 0xF3 }
                processor.setSegment(register, segment)
            }
            return
        default: break
        }
        let is16 = mode == .protected16
        let data: UInt16 = is16 ? 0x0093 : 0xC093
        for register in SegmentRegister.allCases where register != .cs {
            let selector = (isUser ? 0x20 : is16 ? 0x68 : 0x10) | level
            var segment = Segment(selector: selector, base: 0, limit: ~0, attributes: data | bits)
            if register == .fs || register == .gs || register == .es && generator.next() & 1 != 0 {
                segment.base = pointer() & (mode == .long ? ~0 : 0xFFFF_FFFF)
            }
            processor.setSegment(register, segment)
        }
        let code: (UInt16, UInt16) =
            switch mode {
            case .protected16: (isUser ? 0x98 : 0x60, 0x009B)
            case .long: (isUser ? 0x28 : 0x08, 0xA09B)
            default: (isUser ? 0x18 : 0x40, 0xC09B)
            }
        processor.setSegment(
            .cs, Segment(selector: code.0 | level, base: 0, limit: ~0, attributes: code.1 | bits))
    }

    private func flags(_ mode: Mode) -> UInt64 {
        var flags = generator.next() & RFlags.arithmetic | RFlags.reserved1
        if options.traps { flags |= RFlags.trap }
        if options.checksAlignment { flags |= RFlags.alignmentCheck }
        if options.acceptsInterrupts { flags |= RFlags.interrupt }
        if options.countsDown { flags |= RFlags.direction }
        if options.mayDoIO { flags |= RFlags.ioPrivilege }
        if mode == .virtual8086 { flags |= RFlags.virtual8086 }
        return flags
    }

    private func setRegisters() {
        for register in GeneralRegister.allCases { processor.state[register] = value() }
        let stacks: [UInt64] = [0x8000, 0x9000, 0x8004, 0x8801, pointer()]
        processor.state[.rsp] = stacks[Int(generator.next() % 5)]
        for index in 0..<16 {
            for part in 0..<4 {
                processor.state.vectorRegister(index).storeBytes(
                    of: generator.next(), toByteOffset: part * 8, as: UInt64.self)
            }
        }
        if options.unmasksExceptions {
            processor.state.mxcsr = UInt32(truncatingIfNeeded: generator.next()) & 0xFFC0
            processor.state.fxsaveArea.storeBytes(
                of: UInt16(truncatingIfNeeded: generator.next()) & 0xF7F, as: UInt16.self)
        }
    }

    // MARK: Values

    /// A register: often an address, sometimes a count, seldom neither.
    private func value() -> UInt64 {
        switch generator.next() % 8 {
        case 0: generator.next()
        case 1: generator.next() & 0xFF
        case 2: 0 &- (generator.next() & 0xFF)
        default: pointer()
        }
    }

    private func pointer() -> UInt64 {
        let data = UInt64(GuestImage.data.lowerBound) + generator.next() & 0x3_FFFF
        switch generator.next() % 16 {
        case 0: return (data | 0xFFF) - generator.next() % 16
        case 1: return 0xFFFF_8000_0000_0000 | data
        case 2: return UInt64(GuestImage.code) + generator.next() & 0xFFF
        case 3: return GuestImage.readOnlyPage + generator.next() & 0xFFF
        case 4: return UInt64(GuestImage.byteCount) - generator.next() % 16
        case 5: return 0x10_0000 + generator.next() & 0xFFFF
        case 6:
            return [0x7FFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, 0x8000_0000_0000][
                Int(generator.next() % 4)] - generator.next() % 16
        case 7: return GuestImage.pageTables + generator.next() & 0x7FFF
        case 8: return 0x1000 + generator.next() & 0x3FFF
        case 9...12: return data & ~63
        default: return data
        }
    }

    // MARK: Around a run

    /// What the rest of a machine does to a processor between two runs.
    func disturb() {
        if options.getsRequests {
            processor.perform(ProcessorRequests(rawValue: UInt32(generator.next() & 7)))
        }
        guard options.getsEvents else { return }
        let number = generator.next()
        processor.wantsInterruptWindow = number & 3 == 0
        if number & 12 == 0, processor.canAcceptInterrupt {
            processor.wantsInterruptWindow = false
            processor.system.pendingEvent = PendingEvent(kind: .externalInterrupt, vector: UInt8(number >> 8 & 63 + 32))
        } else if number & 48 == 0, !processor.system.nmiBlocked, processor.system.pendingEvent == nil {
            processor.system.pendingEvent = PendingEvent(kind: .nonMaskableInterrupt, vector: 2)
        }
    }

    /// Traps if a run broke a promise.
    func check(_ result: RunResult) {
        // Frame 0 is RAM: the address stands for a host fault that no guest instruction can explain.
        if result == .hostMemory(0) { fail("translated code raised a host fault that is no guest exception") }
        if divide(1, 3) != Float(bitPattern: 0x3EAA_AAAB) { fail("the guest's MXCSR is loaded on the host") }
        if divide80(1, 3) != Self.third { fail("the guest's x87 state is loaded on the host") }
    }

    private static let third = Float80(
        sign: .plus, exponentBitPattern: 0x3FFD, significandBitPattern: 0x2AAA_AAAA_AAAA_AAAB)

    private func fail(_ message: String) -> Never {
        fatalError("\(message); RIP \(String(processor.state.rip, radix: 16)), mode \(options.mode)")
    }

    // Not to be computed by the compiler.
    @_optimize(none) private func divide(_ a: Float, _ b: Float) -> Float { a / b }
    @_optimize(none) private func divide80(_ a: Float80, _ b: Float80) -> Float80 { a / b }

    // MARK: ProcessorPlatform

    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64? { address & 0x1000 == 0 ? generator.next() : nil }
    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool { address & 0x1000 == 0 }
    func readPort(_ port: UInt16, byteCount: Int) -> UInt32? {
        port & 1 == 0 ? UInt32(truncatingIfNeeded: generator.next()) : nil
    }
    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool { port & 1 == 0 }
    func readMSR(_ index: UInt32, by reader: RegisterUser) -> UInt64? { index & 1 == 0 ? generator.next() : nil }
    func writeMSR(_ index: UInt32, _ value: UInt64, by writer: RegisterUser) -> Bool { index & 1 == 0 }
    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult {
        CPUIDResult(eax: function, ebx: index, ecx: ~0, edx: ~0)
    }
    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64 { 0 }
    func requestOthers(_ requests: ProcessorRequests) {
        if options.getsRequests { processor.perform(requests) }
    }
    func withOthersPaused(_ body: () -> Void) { body() }
}
