import CHost
import X86

// CPUID, RDTSC, RDTSCP and RDPID.

extension Processor {
    /// The guest's time-stamp counter.
    public var timeStamp: UInt64 { martlet_rdtsc() &+ system.tscOffset }

    func executeCPUID(_ i: DecodedInstruction) throws(GuestFault) {
        if system.modelSpecific.miscFeaturesEnable & 1 != 0 { try requirePrivilege() }
        let function = UInt32(truncatingIfNeeded: state[.rax])
        let index = UInt32(truncatingIfNeeded: state[.rcx])
        let result = CPUIDAdjustment.adjusted(
            platform.cpuid(function: function, index: index), function: function, index: index, cr4: system.cr4,
            xcr0: system.xcr0)
        state[.rax] = UInt64(result.eax)
        state[.rbx] = UInt64(result.ebx)
        state[.rcx] = UInt64(result.ecx)
        state[.rdx] = UInt64(result.edx)
        advance(i)
    }

    func executeReadTimeStamp(_ i: DecodedInstruction, withAuxiliary: Bool) throws(GuestFault) {
        if system.cr4 & CR4.timeStampDisable != 0 { try requirePrivilege() }
        let value = timeStamp
        state[.rax] = value & 0xFFFF_FFFF
        state[.rdx] = value >> 32
        if withAuxiliary { state[.rcx] = system.tscAux & 0xFFFF_FFFF }
        advance(i)
    }

    func executeReadProcessorID(_ i: DecodedInstruction) {
        writeRegister(i.operand(0).register, system.tscAux & 0xFFFF_FFFF)
        advance(i)
    }
}

/// Parts of CPUID leaves that follow the processor's state.
package enum CPUIDAdjustment {
    package static func adjusted(
        _ leaf: CPUIDResult, function: UInt32, index: UInt32, cr4: UInt64, xcr0: UInt64
    ) -> CPUIDResult {
        var result = leaf
        switch (function, index) {
        case (1, _):
            // OSXSAVE mirrors CR4.
            result.ecx &= ~(1 << 27)
            if cr4 & CR4.xsave != 0 { result.ecx |= 1 << 27 }
        case (7, 0):
            // OSPKE: there are no protection keys.
            result.ecx &= ~(1 << 4)
        case (0xD, 0) where leaf.ecx != 0:
            result.ebx = UInt32(ExtendedState.byteCount(xcr0))
        case (0xD, 1) where leaf.eax & 0xA != 0:
            // XSAVEC or XSAVES: the size of the compact format, which has no gaps to close below bit 3.
            result.ebx = UInt32(ExtendedState.byteCount(xcr0))
        default: break
        }
        return result
    }
}
