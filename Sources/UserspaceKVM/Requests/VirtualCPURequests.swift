import CHost
import KVMInterface
import SystemPackage
import Translator
import X86

// Requests to a virtual CPU: which there are, and those that carry registers.

extension UserspaceVCPU {
    /// > Concurrency: takes the vCPU's lock, which a `KVM_RUN` of another thread may hold for long.
    func handle(_ request: KVMRequest, _ argument: UInt) throws(Errno) -> Int32 {
        // Not the owner's business: they must reach a vCPU that runs.
        if request == .nmi {
            postNMI()
            return 0
        }
        if request == .smi {
            postSystemManagementInterrupt()
            return 0
        }
        if request == .run {
            guard argument == 0 else { throw .invalidArgument }
            lock.lock()
            let result = runWithHostSignals()
            lock.unlock()
            return try result.get()
        }
        lock.lock()
        defer { lock.unlock() }
        return try handleState(request, argument)
    }

    private func handleState(_ request: KVMRequest, _ argument: UInt) throws(Errno) -> Int32 {
        switch request {
        case .getRegisters: try ClientMemory.copyOut(generalRegisters, to: argument)
        case .setRegisters: try setGeneralRegisters(at: argument)
        case .getSpecialRegisters: try ClientMemory.copyOut(specialRegisters, to: argument)
        case .setSpecialRegisters: try setSpecialRegisters(at: argument)
        case .getSpecialRegisters2: try ClientMemory.copyOut(specialRegisters2, to: argument)
        case .setSpecialRegisters2: try setSpecialRegisters2(at: argument)
        case .getDebugRegisters: try ClientMemory.copyOut(debugRegisters, to: argument)
        case .setDebugRegisters: try setDebugRegisters(at: argument)
        case .getFloatingPoint: try ClientMemory.copyOut(floatingPoint, to: argument)
        case .setFloatingPoint: try setFloatingPoint(at: argument)
        case .getXSave, .getXSave2: try getXSave(at: argument)
        case .setXSave: try setXSave(at: argument)
        case .getXCRs: try getXCRs(at: argument)
        case .setXCRs: try setXCRs(at: argument)
        case .getCPUID2: try getCPUID(at: argument)
        case .setCPUID: try setPlainCPUID(at: argument)
        case .translate: try translate(at: argument)
        case .enableCapability: try enableCapability(at: argument)
        case .setCPUID2: try setCPUID(at: argument)
        case .getMSRs: return try MSRRequest.answer(at: argument) { readClientMSR($0) }
        case .setMSRs: return try MSRRequest.take(at: argument) { writeClientMSR($0, $1) }
        case .getLocalAPIC: try getLocalAPIC(at: argument)
        case .setLocalAPIC: try setLocalAPIC(at: argument)
        case .getMPState: try ClientMemory.copyOut(activity.rawValue, to: argument)
        case .setMPState: try setMPState(at: argument)
        case .getEvents: try ClientMemory.copyOut(events, to: argument)
        case .setEvents: try setEvents(at: argument)
        case .interrupt: try injectInterrupt(at: argument)
        case .setSignalMask: try setSignalMask(at: argument)
        case .getTSCFrequency: return Int32(clamping: vm.tscKilohertz)
        case .setTSCFrequency: try vm.checkTSCFrequency(kilohertz: UInt32(truncatingIfNeeded: argument))
        case .getDeviceAttribute, .setDeviceAttribute, .hasDeviceAttribute:
            try handleAttribute(request, at: argument)
        case .setTaskPriorityReporting: try setTaskPriorityReporting(at: argument)
        case .setTaskPriorityWord: try setTaskPriorityWord(at: argument)
        case .setGuestDebug: try setGuestDebug(at: argument)
        case .setUpMachineCheck: try setUpMachineCheck(at: argument)
        case .setMachineCheck: try setMachineCheck(at: argument)
        case .kvmClockControl: try markPaused()
        default: throw .invalidArgument
        }
        return 0
    }

    /// - Throws: `EINVAL` for a capability that a vCPU does not have.
    private func enableCapability(at argument: UInt) throws(Errno) {
        var request = kvm_enable_cap()
        try ClientMemory.copyIn(&request, from: argument)
        guard request.flags == 0, KVMCapability(rawValue: request.cap) == .enforceParavirtualFeatures
        else { throw .invalidArgument }
        enforcesParavirtualFeatures = request.args.0 != 0
    }

    private func translate(at argument: UInt) throws(Errno) {
        var request = kvm_translation()
        try ClientMemory.copyIn(&request, from: argument)
        requests.enter()
        let physical = processor.translate(request.linear_address)
        requests.leave()
        request.physical_address = physical ?? .max
        request.valid = physical == nil ? 0 : 1
        request.writeable = 1
        request.usermode = 0
        try ClientMemory.copyOut(request, to: argument)
    }

    private func setGeneralRegisters(at argument: UInt) throws(Errno) {
        var registers = GeneralRegisters()
        try ClientMemory.copyIn(&registers, from: argument)
        generalRegisters = registers
    }

    private func setSpecialRegisters(at argument: UInt) throws(Errno) {
        var registers = SpecialRegisters()
        try ClientMemory.copyIn(&registers, from: argument)
        try setSpecialRegisters(registers)
        setInterruptBitmap(of: registers)
    }

    /// With the page directory pointers of PAE paging, which are those in memory, as in KVM with nested paging.
    private var specialRegisters2: SpecialRegisters2 {
        let system = processor.system
        var registers = SpecialRegisters2(specialRegisters)
        guard Self.hasDirectoryPointers(cr0: system.cr0, cr4: system.cr4, efer: system.efer) else { return registers }
        requests.enter()
        defer { requests.leave() }
        let table = system.cr3 & 0xFFFF_FFE0
        func pointer(_ index: UInt64) -> UInt64 { readGuest(UInt64.self, at: table + index * 8) ?? 0 }
        registers.pdptrs = (pointer(0), pointer(1), pointer(2), pointer(3))
        registers.flags = UInt64(KVM_SREGS2_FLAGS_PDPTRS_VALID)
        return registers
    }

    /// Only PAE paging has them.
    private static func hasDirectoryPointers(cr0: UInt64, cr4: UInt64, efer: UInt64) -> Bool {
        cr0 & CR0.paging != 0 && cr4 & CR4.physicalAddressExtension != 0 && efer & EFER.longModeActive == 0
    }

    private func setSpecialRegisters2(at argument: UInt) throws(Errno) {
        var registers = SpecialRegisters2()
        try ClientMemory.copyIn(&registers, from: argument)
        guard registers.flags & ~UInt64(KVM_SREGS2_FLAGS_PDPTRS_VALID) == 0 else { throw .invalidArgument }
        let hasPointers = Self.hasDirectoryPointers(cr0: registers.cr0, cr4: registers.cr4, efer: registers.efer)
        guard registers.flags == 0 || hasPointers else { throw .invalidArgument }
        try setSpecialRegisters(SpecialRegisters(registers))
    }

    private func setDebugRegisters(at argument: UInt) throws(Errno) {
        var registers = DebugRegisters()
        try ClientMemory.copyIn(&registers, from: argument)
        try setDebugRegisters(registers)
    }

    private func setFloatingPoint(at argument: UInt) throws(Errno) {
        var state = FloatingPointState()
        try ClientMemory.copyIn(&state, from: argument)
        setFloatingPoint(state)
    }

    private func getXSave(at argument: UInt) throws(Errno) {
        let image = UnsafeMutableRawBufferPointer.allocate(byteCount: Limits.xsaveByteCount, alignment: 64)
        defer { image.deallocate() }
        saveVectors(to: image)
        try ClientMemory.copyOut(UnsafeRawBufferPointer(image), to: argument)
    }

    private func setXSave(at argument: UInt) throws(Errno) {
        let image = UnsafeMutableRawBufferPointer.allocate(byteCount: Limits.xsaveByteCount, alignment: 64)
        defer { image.deallocate() }
        try ClientMemory.copyIn(image, from: argument)
        try loadVectors(from: UnsafeRawBufferPointer(image))
    }

    private func getXCRs(at argument: UInt) throws(Errno) {
        var registers = ExtendedControlRegisters()
        registers.nr_xcrs = 1
        registers.xcrs.0.xcr = 0
        registers.xcrs.0.value = processor.system.xcr0
        try ClientMemory.copyOut(registers, to: argument)
    }

    /// - Throws: `EINVAL` for flags, too many registers, or components that do not exist.
    private func setXCRs(at argument: UInt) throws(Errno) {
        var registers = ExtendedControlRegisters()
        try ClientMemory.copyIn(&registers, from: argument)
        guard registers.flags == 0, registers.nr_xcrs <= UInt32(KVM_MAX_XCRS) else { throw .invalidArgument }
        let first = withUnsafeBytes(of: registers.xcrs) { bytes in
            bytes.bindMemory(to: kvm_xcr.self).prefix(Int(registers.nr_xcrs)).first { $0.xcr == 0 }
        }
        guard let first else { return }
        guard ExtendedState.isValid(first.value) else { throw .invalidArgument }
        processor.system.xcr0 = first.value
        processor.modeDidChange()
    }

    private func setEvents(at argument: UInt) throws(Errno) {
        var events = VCPUEvents()
        try ClientMemory.copyIn(&events, from: argument)
        try setEvents(events)
    }

    private func setMPState(at argument: UInt) throws(Errno) {
        var state: UInt32 = 0
        try ClientMemory.copyIn(&state, from: argument)
        guard let state = MPState(rawValue: state) else { throw .invalidArgument }
        try setActivity(state)
    }

    /// With local APICs the vector waits until the processor takes interrupts of the 8259.
    ///
    /// - Throws: `EINVAL` for a vector above 255, `ENXIO` if the machine has PICs, `EEXIST` if a vector waits.
    private func injectInterrupt(at argument: UInt) throws(Errno) {
        var request = kvm_interrupt()
        try ClientMemory.copyIn(&request, from: argument)
        guard let vector = UInt8(exactly: request.irq) else { throw .invalidArgument }
        if apic != nil {
            guard vm.router?.pic == nil else { throw .noSuchAddressOrDevice }
            guard clientVector == nil else { throw .fileExists }
            clientVector = vector
            return
        }
        processor.system.pendingEvent = PendingEvent(kind: .externalInterrupt, vector: vector)
    }

    /// - Throws: `EINVAL` unless the mask has 8 bytes.
    private func setSignalMask(at argument: UInt) throws(Errno) {
        guard argument != 0 else {
            signalMask = nil
            return
        }
        var byteCount: UInt32 = 0
        var mask: UInt64 = 0
        try ClientMemory.copyIn(&byteCount, from: argument)
        guard byteCount == 8 else { throw .invalidArgument }
        try ClientMemory.copyIn(&mask, from: argument &+ 4)
        // Faults of guest code are signals, too.
        mask &= SignalMask.all
        ClientSignals.admit(signalsOutside: mask)
        signalMask = mask
    }

    /// - Throws: `EINVAL` if the guest has not asked for the clock.
    private func markPaused() throws(Errno) {
        guard paravirtualClock.isEnabled else { throw .invalidArgument }
        paravirtualClock.wasPaused = true
        signal(.clockChanged)
    }
}

extension SpecialRegisters2 {
    init(_ registers: SpecialRegisters) {
        self.init()
        copySharedRegisters(of: registers, to: &self)
    }
}

extension SpecialRegisters {
    init(_ registers: SpecialRegisters2) {
        self.init()
        copySharedRegisters(of: registers, to: &self)
    }
}

/// Copies what `kvm_sregs` and `kvm_sregs2` both begin with.
private func copySharedRegisters<Source, Target>(of source: Source, to target: inout Target) {
    let byteCount = MemoryLayout<SpecialRegisters>.offset(of: \.interrupt_bitmap)
    precondition(byteCount == MemoryLayout<SpecialRegisters2>.offset(of: \.flags), "the structures differ")
    withUnsafeBytes(of: source) { source in
        withUnsafeMutableBytes(of: &target) { target in
            target.copyMemory(from: UnsafeRawBufferPointer(rebasing: source.prefix(byteCount ?? 0)))
        }
    }
}
