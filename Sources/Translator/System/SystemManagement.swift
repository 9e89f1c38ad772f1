import Addressing
import GuestMemory
import X86

// System management mode: how it is entered, and left by RSM.
//
// In it the processor's memory is that of the slots of address space 1. Translations of one space must not be found in the
// other: translated blocks differ by their mode, and everything else is flushed on the way.

extension Processor {
    /// Whether a system management interrupt could be taken now: not in the mode itself, nor between the parts of an
    /// instruction, or of the delivery of an event.
    public var canAcceptSystemManagementInterrupt: Bool {
        !system.systemManagement.isActive && !isInShadow && system.pendingEvent == nil && !isCompletingAccess
    }

    /// Takes a system management interrupt: saves the state, and goes to the handler in real mode.
    ///
    /// What of the area lies in no memory, or in a read-only slot, is lost. Where the client has taken memory away nothing
    /// happens but a fault, ``GuestFault/hostMemory(_:)``.
    /// - Parameter isHalted: RIP is behind a HLT that the processor was in, where RSM leads back to.
    /// > Concurrency: the owner, inside, before ``run()``.
    /// > Source: APM volume 2, section 10.3; Linux, `enter_smm` (behaviour).
    public func enterSystemManagement(fromHalt isHalted: Bool) throws(GuestFault) {
        precondition(canAcceptSystemManagementInterrupt, "a system management interrupt comes at the wrong time")
        var area = SystemManagementSaveArea(of: self)
        area.isHalted = isHalted
        let base = system.systemManagement.base
        let bytes = area.encoded(saveAreaLayout)
        setSystemManagement(isActive: true)
        do throws(GuestFault) {
            try bytes.withUnsafeBufferPointer { (bytes) throws(GuestFault) in
                try writePhysical(base &+ SystemManagementSaveArea.offset, from: UnsafeRawBufferPointer(bytes))
            }
        } catch {
            setSystemManagement(isActive: false)
            throw error
        }

        system.systemManagement.isInsideNMI = system.nmiBlocked
        system.nmiBlocked = true
        system.activity = .running
        system.interruptShadow = false
        system.modelSpecific.systemManagementInterruptCount &+= 1
        state.rflags = RFlags.reserved1
        state.rip = 0x8000
        system.idtr = DescriptorTableRegister(base: 0, limit: 0)
        setDebugRegister(7, 0)
        let data = Segment(selector: 0, base: 0, limit: ~0, attributes: 0x8093)
        for register in SegmentRegister.allCases { setSegment(register, data) }
        setSegment(
            .cs,
            Segment(selector: UInt16(truncatingIfNeeded: base >> 4), base: base, limit: ~0, attributes: 0x8093))
        system.cpl = 0
        let cleared = CR0.protection | CR0.emulation | CR0.taskSwitched | CR0.paging
        loadControlRegisters(
            cr0: system.cr0 & ~cleared, cr3: system.cr3, cr4: 0,
            efer: saveAreaLayout == .bits64 ? 0 : system.efer)
    }

    /// Goes into the mode, or out of it, with the other registers as they are.
    /// > Concurrency: the owner, outside guest code.
    public func setSystemManagement(isActive: Bool) {
        guard isActive != system.systemManagement.isActive else { return }
        system.systemManagement.isActive = isActive
        system.systemManagement.isInsideNMI = false
        flushTLB(.all)
        flushTLB(.contextSwitch(preserving: false))
        modeDidChange()
    }

    /// RSM.
    ///
    /// A state that cannot be loaded shuts the processor down, outside the mode.
    /// > Source: APM volume 2, section 10.3.3; Linux, `em_rsm` (behaviour).
    func executeResume() throws(GuestFault) {
        guard system.systemManagement.isActive else { throw .invalidOpcode }
        var bytes = [UInt8](repeating: 0, count: SystemManagementSaveArea.byteCount)
        let address = system.systemManagement.base &+ SystemManagementSaveArea.offset
        try bytes.withUnsafeMutableBufferPointer { (bytes) throws(GuestFault) in
            try readPhysical(address, into: UnsafeMutableRawBufferPointer(bytes))
        }
        var area = SystemManagementSaveArea(of: self)
        area.decode(bytes, saveAreaLayout)
        let isInsideNMI = system.systemManagement.isInsideNMI
        setSystemManagement(isActive: false)
        let isLoadable: Bool
        do throws(GuestFault) {
            isLoadable = try canLoad(area)
        } catch {
            setSystemManagement(isActive: true)
            system.systemManagement.isInsideNMI = isInsideNMI
            throw error
        }
        if !isInsideNMI { system.nmiBlocked = false }
        guard isLoadable else { throw .shutdown }
        load(area)
        // INIT and the next SMI waited.
        raiseAttention()
    }

    /// - Throws: nothing but `.hostMemory`.
    private func canLoad(_ area: SystemManagementSaveArea) throws(GuestFault) -> Bool {
        guard area.dr6 >> 32 == 0, area.dr7 >> 32 == 0, ControlRegisterRules.isValidCR0(area.cr0),
            ControlRegisterRules.isValidCR3(area.cr3, physicalAddressBits: physicalAddressBits),
            area.cr4 & ~cr4Bits == 0
        else { return false }
        let extended = platform.cpuid(function: 0x8000_0001, index: 0)
        let eferBits = ControlRegisterRules.eferBits(extendedEDX: extended.edx) | EFER.longModeActive
        guard area.efer & ~eferBits == 0 else { return false }
        if area.isLong { return area.cr4 & CR4.physicalAddressExtension != 0 }
        if area.cr4 & CR4.processContextIdentifiers != 0 { return false }
        do throws(GuestFault) {
            try checkPointers(cr0: area.cr0, cr3: area.cr3, cr4: area.cr4, efer: area.efer)
        } catch {
            if case .hostMemory = error { throw error }
            return false
        }
        return true
    }

    private func load(_ area: SystemManagementSaveArea) {
        for index in area.registers.indices { state[GeneralRegister(index: index)] = area.registers[index] }
        state.rip = area.rip
        state.rflags = area.rflags | RFlags.reserved1
        setDebugRegister(6, area.dr6)
        setDebugRegister(7, area.dr7)
        system.systemManagement.base = area.base
        system.gdtr = area.gdtr
        system.idtr = area.idtr
        system.ldtr = area.ldtr
        system.tr = area.tr
        for register in SegmentRegister.allCases { setSegment(register, area.segments[Int(register.rawValue)]) }
        system.cpl = area.cr0 & CR0.protection != 0 ? area.segments[Int(SegmentRegister.ss.rawValue)].privilegeLevel : 0
        if area.isHalted { system.activity = .halted }
        loadControlRegisters(
            cr0: area.cr0, cr3: area.cr3, cr4: area.cr4,
            efer: area.efer & ~EFER.longModeActive | (area.isLong ? EFER.longModeActive : 0))
    }

    /// The layout goes with the processor's model, not with its mode.
    private var saveAreaLayout: SystemManagementSaveArea.Layout {
        let hasLongMode =
            platform.cpuid(function: 0x8000_0000, index: 0).eax >= 0x8000_0001
            && platform.cpuid(function: 0x8000_0001, index: 0).edx >> 29 & 1 != 0
        return hasLongMode ? .bits64 : .bits32
    }

    // MARK: Physical memory

    /// The host address of a byte of the processor's own address space, up to the end of its page; valid while it stays
    /// inside.
    private func physicalPointer(_ address: UInt64, forWriting: Bool) -> UnsafeMutableRawPointer? {
        let frame = GuestFrameNumber(address >> 12)
        return memory.withReadSection {
            guard let slot = memory.lookup(frame, addressSpace: addressSpace, cache: &lastSlot) else { return nil }
            if forWriting {
                if slot.pointee.flags.contains(.readOnly) { return nil }
                slot.pointee.markDirty(frame: frame, ring: dirtyRing)
            }
            return slot.pointee.hostPointer(for: frame) + Int(address & 0xFFF)
        }
    }

    /// Copies bytes out. Where there is no memory, nothing can be executed either.
    private func readPhysical(
        _ address: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let current = address &+ UInt64(done)
            let count = min(buffer.count - done, 4096 - Int(current & 0xFFF))
            guard let host = physicalPointer(current, forWriting: false) else { throw .notExecutable }
            // SAFETY: the buffer is not empty, so it has an address.
            let target = buffer.baseAddress.unsafelyUnwrapped + done
            guard target.copyGuestBytes(from: host, byteCount: count) else { throw .hostMemory(current) }
            done += count
        }
    }

    /// Copies bytes in, where there is memory that can be written.
    private func writePhysical(_ address: UInt64, from buffer: UnsafeRawBufferPointer) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let current = address &+ UInt64(done)
            let count = min(buffer.count - done, 4096 - Int(current & 0xFFF))
            // SAFETY: the buffer is not empty, so it has an address.
            let source = buffer.baseAddress.unsafelyUnwrapped + done
            // Each page is looked up anew: a caught store may lead outside for a moment.
            if let host = physicalPointer(current, forWriting: true) {
                var isStored = false
                storeGuarded(current >> 12, host, byteCount: count) {
                    isStored = host.copyGuestBytes(from: source, byteCount: count)
                }
                guard isStored else { throw .hostMemory(current) }
            }
            done += count
        }
    }
}

extension SystemManagementSaveArea {
    /// The state of a processor.
    init(of processor: Processor) {
        let (state, system) = (processor.state, processor.system)
        for index in registers.indices { registers[index] = state[GeneralRegister(index: index)] }
        rip = state.rip
        rflags = state.rflags
        dr6 = system.dr6
        dr7 = system.dr7
        cr0 = system.cr0
        cr3 = system.cr3
        cr4 = system.cr4
        efer = system.efer
        for register in SegmentRegister.allCases { segments[Int(register.rawValue)] = system[register] }
        ldtr = system.ldtr
        tr = system.tr
        gdtr = system.gdtr
        idtr = system.idtr
        base = system.systemManagement.base
    }

    /// Paging is that of long mode.
    fileprivate var isLong: Bool { efer & EFER.longModeEnable != 0 && cr0 & CR0.paging != 0 }
}
