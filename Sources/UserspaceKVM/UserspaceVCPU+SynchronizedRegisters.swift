import CHost
import KVMInterface
import SystemPackage

/// Registers that travel in the run area, without requests of their own (`KVM_CAP_SYNC_REGS`).
///
/// > Concurrency: the owner, outside.
/// > Source: Documentation/virt/kvm/api.rst, section 5, `kvm_valid_regs`.
extension UserspaceVCPU {
    /// General registers, special registers, events.
    static let synchronizedRegisters = UInt64(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

    /// Takes over what the client has changed.
    /// - Throws: `EINVAL` for register sets that do not exist, or values that are not valid.
    func takeSynchronizedRegisters() throws(Errno) {
        let run = runArea.run
        guard (run.pointee.kvm_valid_regs | run.pointee.kvm_dirty_regs) & ~Self.synchronizedRegisters == 0
        else { throw .invalidArgument }
        guard run.pointee.kvm_dirty_regs != 0 else { return }
        // One that is refused stays dirty.
        if isDirty(KVM_SYNC_X86_REGS) {
            generalRegisters = run.pointee.s.regs.regs
            clean(KVM_SYNC_X86_REGS)
        }
        if isDirty(KVM_SYNC_X86_SREGS) {
            let registers = run.pointee.s.regs.sregs
            try setSpecialRegisters(registers)
            setInterruptBitmap(of: registers)
            clean(KVM_SYNC_X86_SREGS)
        }
        if isDirty(KVM_SYNC_X86_EVENTS) {
            try setEvents(run.pointee.s.regs.events)
            clean(KVM_SYNC_X86_EVENTS)
        }
    }

    private func isDirty(_ set: UInt) -> Bool { runArea.run.pointee.kvm_dirty_regs & UInt64(set) != 0 }

    private func clean(_ set: UInt) { runArea.run.pointee.kvm_dirty_regs &= ~UInt64(set) }

    /// Fills the register sets that the client wants to see.
    func storeSynchronizedRegisters() {
        let run = runArea.run
        let wanted = run.pointee.kvm_valid_regs
        if wanted & UInt64(KVM_SYNC_X86_REGS) != 0 { run.pointee.s.regs.regs = generalRegisters }
        if wanted & UInt64(KVM_SYNC_X86_SREGS) != 0 { run.pointee.s.regs.sregs = specialRegisters }
        if wanted & UInt64(KVM_SYNC_X86_EVENTS) != 0 { run.pointee.s.regs.events = events }
    }
}
