import CHost
import KVMInterface
import SystemPackage
import Translator

// Attributes of the system and of vCPUs (`KVM_HAS_DEVICE_ATTR` and its like).
// > Source: Documentation/virt/kvm/api.rst, section 4.80; Documentation/virt/kvm/devices/vcpu.rst, section 4.

extension UserspaceKVM {
    /// - Throws: `ENXIO` for an attribute that does not exist.
    func handleAttribute(_ request: KVMRequest, at argument: UInt) throws(Errno) {
        var attribute = kvm_device_attr()
        try ClientMemory.copyIn(&attribute, from: argument)
        guard attribute.group == 0, attribute.attr == UInt64(KVM_X86_XCOMP_GUEST_SUPP)
        else { throw .noSuchAddressOrDevice }
        if request == .getDeviceAttribute {
            let components = ExtendedState.x87 | ExtendedState.sse | ExtendedState.avx
            try ClientMemory.copyOut(components, to: UInt(attribute.addr))
        }
    }
}

extension UserspaceVCPU {
    /// The attribute is what the guest's time-stamp counter is ahead of the host's.
    /// - Throws: `ENXIO` for an attribute that does not exist.
    func handleAttribute(_ request: KVMRequest, at argument: UInt) throws(Errno) {
        var attribute = kvm_device_attr()
        try ClientMemory.copyIn(&attribute, from: argument)
        guard attribute.group == UInt32(KVM_VCPU_TSC_CTRL), attribute.attr == UInt64(KVM_VCPU_TSC_OFFSET)
        else { throw .noSuchAddressOrDevice }
        switch request {
        case .getDeviceAttribute:
            try ClientMemory.copyOut(processor.system.tscOffset, to: UInt(attribute.addr))
        case .setDeviceAttribute:
            var offset: UInt64 = 0
            try ClientMemory.copyIn(&offset, from: UInt(attribute.addr))
            setTSCOffset(offset)
        default: break
        }
    }
}
