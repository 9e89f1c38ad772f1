import CHost
import KVMInterface
import SystemPackage
import Translator
import X86

// Machine checks: how many banks there are, and errors that a client reports.

extension UserspaceVCPU {
    /// - Throws: `EINVAL` for no or more than 32 banks, or capabilities that are not supported.
    func setUpMachineCheck(at argument: UInt) throws(Errno) {
        var capabilities: UInt64 = 0
        try ClientMemory.copyIn(&capabilities, from: argument)
        guard machineCheck.setUp(capabilities) else { throw .invalidArgument }
    }

    /// - Throws: `EINVAL` for a bank that does not exist, or an error that is not valid.
    func setMachineCheck(at argument: UInt) throws(Errno) {
        var error = kvm_x86_mce()
        try ClientMemory.copyIn(&error, from: argument)
        guard machineCheck.accepts(error) else { throw .invalidArgument }
        let isEnabled = processor.system.cr4 & CR4.machineCheck != 0
        switch machineCheck.record(error, isEnabled: isEnabled) {
        case .nothing: break
        case .exception: processor.system.pendingEvent = PendingEvent(kind: .exception, vector: 18)
        case .tripleFault: hasPendingTripleFault = true
        }
    }
}
