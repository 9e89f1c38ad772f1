import CHost
import KVMInterface
import SystemPackage
import Translator
import X86

// The client's debugger.
// > Source: Documentation/virt/kvm/api.rst, section 4.87.

extension UserspaceVCPU {
    /// What `KVM_SET_GUEST_DEBUG` knows.
    static let debugControls =
        UInt32(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP) | UInt32(KVM_GUESTDBG_USE_SW_BP)
        | UInt32(KVM_GUESTDBG_USE_HW_BP) | UInt32(KVM_GUESTDBG_INJECT_DB) | UInt32(KVM_GUESTDBG_INJECT_BP)
        | UInt32(KVM_GUESTDBG_BLOCKIRQ)

    /// - Throws: `EBUSY` if an exception is to be injected while one is pending.
    func setGuestDebug(at argument: UInt) throws(Errno) {
        var request = kvm_guest_debug()
        try ClientMemory.copyIn(&request, from: argument)
        try injectDebugException(request.control)
        let isOn = request.control & UInt32(KVM_GUESTDBG_ENABLE) != 0
        func has(_ control: Int32) -> Bool { isOn && request.control & UInt32(control) != 0 }
        var debugger = DebuggerControl()
        debugger.catchesBreakpoints = has(KVM_GUESTDBG_USE_SW_BP)
        debugger.singleSteps = has(KVM_GUESTDBG_SINGLESTEP)
        if has(KVM_GUESTDBG_USE_HW_BP) {
            let registers = request.arch.debugreg
            debugger.breakpoints = DebugBreakpoints(
                addresses: [registers.0, registers.1, registers.2, registers.3], control: registers.7)
        }
        debuggerBlocksInterrupts = has(KVM_GUESTDBG_BLOCKIRQ)
        let changesCode = debugger.catchesBreakpoints || processor.debugger.catchesBreakpoints
        processor.attach(debugger)
        // Debuggers write INT3 into the guest's code behind the back of the vCPUs, and tell so by this request.
        if changesCode { vm.distrustCode() }
    }

    private func injectDebugException(_ control: UInt32) throws(Errno) {
        let isDebug = control & UInt32(KVM_GUESTDBG_INJECT_DB) != 0
        guard isDebug || control & UInt32(KVM_GUESTDBG_INJECT_BP) != 0 else { return }
        guard processor.system.pendingEvent?.kind != .exception else { throw .resourceBusy }
        processor.system.pendingEvent = PendingEvent(kind: .exception, vector: isDebug ? 1 : 3)
    }
}
