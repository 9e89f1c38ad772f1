import CHost
import Interrupts
import KVMInterface
import SystemPackage
import Translator
import X86

// The registers of a vCPU in the structures of the ABI.
// > Concurrency: the owner, outside.

extension UserspaceVCPU {
    // MARK: General registers

    var generalRegisters: GeneralRegisters {
        get {
            let state = processor.state
            return GeneralRegisters(
                rax: state[.rax], rbx: state[.rbx], rcx: state[.rcx], rdx: state[.rdx], rsi: state[.rsi],
                rdi: state[.rdi], rsp: state[.rsp], rbp: state[.rbp], r8: state[.r8], r9: state[.r9],
                r10: state[.r10], r11: state[.r11], r12: state[.r12], r13: state[.r13], r14: state[.r14],
                r15: state[.r15], rip: state.rip, rflags: state.rflags)
        }
        set {
            let state = processor.state
            let hasShadow = processor.hasInterruptShadow
            state[.rax] = newValue.rax
            state[.rbx] = newValue.rbx
            state[.rcx] = newValue.rcx
            state[.rdx] = newValue.rdx
            state[.rsi] = newValue.rsi
            state[.rdi] = newValue.rdi
            state[.rsp] = newValue.rsp
            state[.rbp] = newValue.rbp
            state[.r8] = newValue.r8
            state[.r9] = newValue.r9
            state[.r10] = newValue.r10
            state[.r11] = newValue.r11
            state[.r12] = newValue.r12
            state[.r13] = newValue.r13
            state[.r14] = newValue.r14
            state[.r15] = newValue.r15
            state.rip = newValue.rip
            state.rflags = newValue.rflags
            processor.hasInterruptShadow = hasShadow
            // An exception that waits belongs to the code the client just left.
            if processor.system.pendingEvent?.kind == .exception { processor.system.pendingEvent = nil }
            processor.modeDidChange()
            // Who sends a vCPU elsewhere may just have put code there.
            processor.distrustCode()
        }
    }

    // MARK: Special registers

    var specialRegisters: SpecialRegisters {
        showExceptionPayload()
        let system = processor.system
        var registers = SpecialRegisters()
        registers.cs = SegmentState(system.cs)
        registers.ds = SegmentState(system.ds)
        registers.es = SegmentState(system.es)
        registers.fs = SegmentState(system.fs)
        registers.gs = SegmentState(system.gs)
        registers.ss = SegmentState(system.ss)
        registers.tr = SegmentState(system.tr)
        registers.ldt = SegmentState(system.ldtr)
        registers.gdt = DescriptorTableState(system.gdtr)
        registers.idt = DescriptorTableState(system.idtr)
        registers.cr0 = system.cr0
        registers.cr2 = system.cr2
        registers.cr3 = system.cr3
        registers.cr4 = system.cr4
        registers.cr8 = UInt64(taskPriority)
        registers.efer = system.efer
        registers.apic_base = apic?.base ?? clientAPICBase
        if let event = system.pendingEvent, event.kind == .externalInterrupt {
            withUnsafeMutableBytes(of: &registers.interrupt_bitmap) { bytes in
                bytes[Int(event.vector) / 8] |= 1 << (event.vector % 8)
            }
        }
        return registers
    }

    /// - Throws: `EINVAL`, with nothing changed, for a combination the processor does not have.
    func setSpecialRegisters(_ registers: SpecialRegisters) throws(Errno) {
        guard areValid(registers) else { throw .invalidArgument }
        if let apic {
            guard apic.setBase(registers.apic_base, isFromClient: true) else { throw .invalidArgument }
        } else {
            guard setClientAPICBase(registers.apic_base) else { throw .invalidArgument }
        }
        processor.system.gdtr = DescriptorTableRegister(registers.gdt)
        processor.system.idtr = DescriptorTableRegister(registers.idt)
        // As in KVM, a priority that does not exist is no error, and changes nothing.
        if registers.cr8 <= 15 { taskPriority = UInt8(registers.cr8) }
        processor.setSegment(.cs, Segment(registers.cs))
        processor.setSegment(.ds, Segment(registers.ds))
        processor.setSegment(.es, Segment(registers.es))
        processor.setSegment(.fs, Segment(registers.fs))
        processor.setSegment(.gs, Segment(registers.gs))
        processor.setSegment(.ss, Segment(registers.ss))
        processor.system.tr = Segment(registers.tr)
        processor.system.ldtr = Segment(registers.ldt)
        processor.replaceControlRegisters(
            cr0: registers.cr0, cr2: registers.cr2, cr3: registers.cr3, cr4: registers.cr4, efer: registers.efer)
        processor.system.cpl = processor.system.isProtectedMode ? processor.system.ss.privilegeLevel : 0
        // A bootstrap processor put at the reset vector starts over, whatever it waited for.
        let isAtReset = processor.system.cs.selector == 0xF000 && processor.system.cs.base == 0xFFFF_0000
        if isAtReset, processor.state.rip == 0xFFF0, !processor.system.isProtectedMode, isBootstrapProcessor {
            processor.system.activity = .running
        }
        processor.modeDidChange()
    }

    /// Sets the base of the client's own local APIC.
    /// - Returns: false, with nothing changed, for bits that do not exist and for x2APIC mode without the APIC.
    func setClientAPICBase(_ value: UInt64) -> Bool {
        let hasX2APIC = (cpuidTable.find(1)?.ecx ?? 0) & 1 << 21 != 0
        let bits = UInt64(cpuidTable.physicalAddressBits)
        guard APICBase.isValid(value, hasX2APIC: hasX2APIC, physicalAddressBits: bits) else { return false }
        clientAPICBase = value
        return true
    }

    private var isBootstrapProcessor: Bool { (apic?.base ?? clientAPICBase) & APICBase.bootstrapProcessor != 0 }

    /// Takes over the interrupt that `KVM_GET_SREGS` showed as being delivered.
    func setInterruptBitmap(of registers: SpecialRegisters) {
        let vector = withUnsafeBytes(of: registers.interrupt_bitmap) { bytes in
            (0..<256).first { bytes[$0 / 8] & 1 << UInt8($0 % 8) != 0 }
        }
        if let vector {
            processor.system.pendingEvent = PendingEvent(kind: .externalInterrupt, vector: UInt8(vector))
        }
    }

    /// > Source: Linux, `kvm_is_valid_sregs` (behaviour).
    private func areValid(_ registers: SpecialRegisters) -> Bool {
        guard ControlRegisterRules.areConsistent(cr0: registers.cr0, cr4: registers.cr4, efer: registers.efer),
            registers.cr4 & ~cr4Bits == 0, registers.efer & ~eferBits == 0
        else { return false }
        guard registers.efer & EFER.longModeActive != 0 else { return registers.cs.l == 0 }
        let bits = UInt64(cpuidTable.physicalAddressBits)
        return cpuidTable.entries.isEmpty
            || ControlRegisterRules.isValidCR3(registers.cr3, physicalAddressBits: bits)
    }

    /// The bits of CR4 that CPUID tells of; all that exist as long as the client has given no leaves.
    private var cr4Bits: UInt64 {
        guard !cpuidTable.entries.isEmpty else { return Self.knownCR4 }
        let (leaf1, leaf7) = (cpuidTable.answer(function: 1, index: 0), cpuidTable.answer(function: 7, index: 0))
        return ControlRegisterRules.cr4Bits(
            leaf1ECX: leaf1.ecx, leaf1EDX: leaf1.edx, leaf7EBX: leaf7.ebx, leaf7ECX: leaf7.ecx)
    }

    /// The bits of EFER that may be set, likewise.
    private var eferBits: UInt64 {
        let features =
            cpuidTable.entries.isEmpty ? UInt32.max : cpuidTable.answer(function: 0x8000_0001, index: 0).edx
        return ControlRegisterRules.eferBits(extendedEDX: features) | EFER.longModeActive
    }

    /// Bits of CR4 that exist here.
    private static let knownCR4: UInt64 =
        CR4.virtual8086Extensions | CR4.protectedVirtualInterrupts | CR4.timeStampDisable | CR4.debuggingExtensions
        | CR4.pageSizeExtension | CR4.physicalAddressExtension | CR4.machineCheck | CR4.globalPages
        | CR4.performanceCounters | CR4.fxsave | CR4.simdExceptions | CR4.userModeInstructionPrevention | CR4.fsgsbase
        | CR4.processContextIdentifiers | CR4.xsave | CR4.supervisorExecutionPrevention
        | CR4.supervisorAccessPrevention

    // MARK: Debug registers

    var debugRegisters: DebugRegisters {
        showExceptionPayload()
        var registers = DebugRegisters()
        registers.db = processor.system.debugAddresses
        registers.dr6 = processor.system.dr6
        registers.dr7 = processor.system.dr7
        return registers
    }

    /// - Throws: `EINVAL` for flags or upper halves that are not 0.
    func setDebugRegisters(_ registers: DebugRegisters) throws(Errno) {
        guard registers.flags == 0, registers.dr6 >> 32 == 0, registers.dr7 >> 32 == 0 else { throw .invalidArgument }
        processor.system.debugAddresses = registers.db
        processor.system.dr6 = registers.dr6
        processor.system.dr7 = registers.dr7
    }
}

extension SegmentState {
    init(_ segment: Segment) {
        self.init()
        base = segment.base
        limit = segment.limit
        selector = segment.selector
        type = segment.type
        s = segment.isCodeOrData ? 1 : 0
        dpl = segment.privilegeLevel
        present = segment.isPresent && !segment.isUnusable ? 1 : 0
        avl = UInt8(segment.attributes >> 12 & 1)
        l = segment.isLong ? 1 : 0
        db = segment.isDefault32 ? 1 : 0
        g = segment.isPageGranular ? 1 : 0
        unusable = segment.isUnusable ? 1 : 0
    }
}

extension Segment {
    init(_ segment: SegmentState) {
        let access =
            UInt16(segment.type & 15) | UInt16(segment.s & 1) << 4 | UInt16(segment.dpl & 3) << 5
            | UInt16(segment.present & 1) << 7
        let flags =
            UInt16(segment.avl & 1) << 12 | UInt16(segment.l & 1) << 13 | UInt16(segment.db & 1) << 14
            | UInt16(segment.g & 1) << 15
        self.init(
            selector: segment.selector, base: segment.base, limit: segment.limit, attributes: access | flags,
            isUnusable: segment.unusable != 0 || segment.present == 0)
    }
}

extension DescriptorTableState {
    init(_ register: DescriptorTableRegister) {
        self.init()
        base = register.base
        limit = register.limit
    }
}

extension DescriptorTableRegister {
    init(_ table: DescriptorTableState) { self.init(base: table.base, limit: table.limit) }
}
