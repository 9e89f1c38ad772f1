import CHost
import SystemPackage

extension VCPU {
    /// The corresponding C request is `KVM_GET_REGS`.
    public func registers() throws(Errno) -> GeneralRegisters {
        var state = GeneralRegisters()
        try backend.call(descriptor, .getRegisters, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_REGS`.
    public func setRegisters(_ state: GeneralRegisters) throws(Errno) {
        try backend.call(descriptor, .setRegisters, from: state)
    }

    /// The corresponding C request is `KVM_GET_SREGS`.
    public func specialRegisters() throws(Errno) -> SpecialRegisters {
        var state = SpecialRegisters()
        try backend.call(descriptor, .getSpecialRegisters, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_SREGS`.
    /// - Throws: `Errno.invalidArgument` for a combination the processor does not have.
    public func setSpecialRegisters(_ state: SpecialRegisters) throws(Errno) {
        try backend.call(descriptor, .setSpecialRegisters, from: state)
    }

    /// The corresponding C request is `KVM_GET_SREGS2`.
    public func specialRegisters2() throws(Errno) -> SpecialRegisters2 {
        var state = SpecialRegisters2()
        try backend.call(descriptor, .getSpecialRegisters2, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_SREGS2`.
    public func setSpecialRegisters2(_ state: SpecialRegisters2) throws(Errno) {
        try backend.call(descriptor, .setSpecialRegisters2, from: state)
    }

    /// The corresponding C request is `KVM_GET_FPU`.
    public func floatingPoint() throws(Errno) -> FloatingPointState {
        var state = FloatingPointState()
        try backend.call(descriptor, .getFloatingPoint, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_FPU`.
    public func setFloatingPoint(_ state: FloatingPointState) throws(Errno) {
        try backend.call(descriptor, .setFloatingPoint, from: state)
    }

    /// The corresponding C request is `KVM_GET_XSAVE`.
    public func xsave() throws(Errno) -> XSaveState {
        var state = XSaveState()
        try backend.call(descriptor, .getXSave, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_XSAVE`.
    public func setXSave(_ state: XSaveState) throws(Errno) { try backend.call(descriptor, .setXSave, from: state) }

    /// The corresponding C request is `KVM_GET_XCRS`.
    public func extendedControlRegisters() throws(Errno) -> ExtendedControlRegisters {
        var state = ExtendedControlRegisters()
        try backend.call(descriptor, .getXCRs, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_XCRS`.
    public func setExtendedControlRegisters(_ state: ExtendedControlRegisters) throws(Errno) {
        try backend.call(descriptor, .setXCRs, from: state)
    }

    /// The CPUID leaves of this vCPU. The corresponding C request is `KVM_GET_CPUID2`.
    public func cpuid() throws(Errno) -> [CPUIDEntry] {
        try backend.call(
            descriptor, .getCPUID2, headerByteCount: 8, elements: [CPUIDEntry](repeating: .init(), count: 256)
        ).elements
    }

    /// The corresponding C request is `KVM_SET_CPUID2`.
    public func setCPUID(_ entries: [CPUIDEntry]) throws(Errno) {
        try backend.call(descriptor, .setCPUID2, headerByteCount: 8, elements: entries)
    }

    /// Reads model-specific registers in order, up to the first that does not exist. The corresponding C request is
    /// `KVM_GET_MSRS`.
    public func msrs(_ indices: [UInt32]) throws(Errno) -> [MSREntry] {
        let answer = try backend.call(
            descriptor, .getMSRs, headerByteCount: 8, elements: indices.map { MSREntry($0) })
        return Array(answer.elements.prefix(Int(answer.result)))
    }

    /// Writes model-specific registers in order, up to the first that does not take its value. The corresponding C request
    /// is `KVM_SET_MSRS`.
    /// - Returns: how many were written.
    @discardableResult
    public func setMSRs(_ entries: [MSREntry]) throws(Errno) -> Int {
        Int(try backend.call(descriptor, .setMSRs, headerByteCount: 8, elements: entries).result)
    }

    /// The corresponding C request is `KVM_GET_LAPIC`.
    public func localAPIC() throws(Errno) -> LocalAPICRegisters {
        var state = LocalAPICRegisters()
        try backend.call(descriptor, .getLocalAPIC, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_LAPIC`.
    public func setLocalAPIC(_ state: LocalAPICRegisters) throws(Errno) {
        try backend.call(descriptor, .setLocalAPIC, from: state)
    }

    /// The corresponding C request is `KVM_GET_MP_STATE`.
    /// - Throws: `Errno.invalidArgument` also for a state this interface does not know.
    public func mpState() throws(Errno) -> MPState {
        var state = kvm_mp_state()
        try backend.call(descriptor, .getMPState, with: &state)
        guard let known = MPState(rawValue: state.mp_state) else { throw .invalidArgument }
        return known
    }

    /// The corresponding C request is `KVM_SET_MP_STATE`.
    public func setMPState(_ state: MPState) throws(Errno) {
        try backend.call(descriptor, .setMPState, from: kvm_mp_state(mp_state: state.rawValue))
    }

    /// The corresponding C request is `KVM_GET_VCPU_EVENTS`.
    public func events() throws(Errno) -> VCPUEvents {
        var state = VCPUEvents()
        try backend.call(descriptor, .getEvents, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_VCPU_EVENTS`.
    public func setEvents(_ state: VCPUEvents) throws(Errno) { try backend.call(descriptor, .setEvents, from: state) }

    /// The corresponding C request is `KVM_GET_DEBUGREGS`.
    public func debugRegisters() throws(Errno) -> DebugRegisters {
        var state = DebugRegisters()
        try backend.call(descriptor, .getDebugRegisters, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_DEBUGREGS`.
    public func setDebugRegisters(_ state: DebugRegisters) throws(Errno) {
        try backend.call(descriptor, .setDebugRegisters, from: state)
    }

    /// The frequency of the guest's time-stamp counter in kHz. The corresponding C request is `KVM_GET_TSC_KHZ`.
    public func tscFrequency() throws(Errno) -> UInt32 {
        UInt32(bitPattern: try backend.call(descriptor, .getTSCFrequency))
    }

    /// The corresponding C request is `KVM_SET_TSC_KHZ`.
    public func setTSCFrequency(kilohertz: UInt32) throws(Errno) {
        try backend.call(descriptor, .setTSCFrequency, UInt(kilohertz))
    }

    /// Injects an external interrupt where the machine has no in-kernel controllers. The corresponding C request is
    /// `KVM_INTERRUPT`.
    public func interrupt(vector: UInt8) throws(Errno) {
        try backend.call(descriptor, .interrupt, from: kvm_interrupt(irq: UInt32(vector)))
    }

    /// Sets which signals are blocked during runs: bit 0 stands for signal 1; nil leaves the thread's own mask. A signal that
    /// only the thread blocks ends a run and stays pending. The corresponding C request is `KVM_SET_SIGNAL_MASK`.
    public func setSignalMask(_ mask: UInt64?) throws(Errno) {
        guard let mask else {
            try backend.call(descriptor, .setSignalMask)
            return
        }
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: mask >> UInt64(8 * $0)) }
        try backend.call(descriptor, .setSignalMask, headerByteCount: 4, elements: bytes)
    }

    /// Raises the non-maskable interrupt. The corresponding C request is `KVM_NMI`.
    public func nmi() throws(Errno) { try backend.call(descriptor, .nmi) }

    /// Raises the system management interrupt. The corresponding C request is `KVM_SMI`.
    public func systemManagementInterrupt() throws(Errno) { try backend.call(descriptor, .smi) }

    /// Tells the guest that it was paused. The corresponding C request is `KVM_KVMCLOCK_CTRL`.
    public func markPaused() throws(Errno) { try backend.call(descriptor, .kvmClockControl) }
}
