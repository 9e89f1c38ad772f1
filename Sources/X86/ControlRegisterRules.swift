/// Which values control registers may have.
///
/// Pure functions: the processor asks them when a guest writes a control register, and the KVM layer when a client does.
/// > Source: APM volume 2, sections 3.1 and 14.6; Intel SDM volume 3, section 2.5 and volume 2, MOV to control registers.
public enum ControlRegisterRules {
    /// The bits of CR0 that exist; others are ignored in the low half and faults in the high one.
    @inlinable public static var cr0Bits: UInt64 { 0xE005_003F }

    /// Whether `value` is consistent in itself.
    public static func isValidCR0(_ value: UInt64) -> Bool {
        if value >> 32 != 0 { return false }
        if value & CR0.paging != 0 && value & CR0.protection == 0 { return false }
        if value & CR0.notWriteThrough != 0 && value & CR0.cacheDisable == 0 { return false }
        return true
    }

    /// What CR0 holds after a write of the valid `value`.
    @inlinable public static func effectiveCR0(_ value: UInt64) -> UInt64 { value & cr0Bits | CR0.extensionType }

    /// Whether CR0 may go from `old` to the valid `new`, given the other registers. `hasLongCode`: CS.L is
    /// set.
    public static func allowsCR0(_ new: UInt64, over old: UInt64, cr4: UInt64, efer: UInt64, hasLongCode: Bool) -> Bool
    {
        let changed = new ^ old
        guard changed & CR0.paging != 0 else { return true }
        if new & CR0.paging != 0 {
            // Long mode is entered with PAE on and from a code segment that is not 64-bit already.
            return efer & EFER.longModeEnable == 0 || cr4 & CR4.physicalAddressExtension != 0 && !hasLongCode
        }
        if efer & EFER.longModeActive != 0 && hasLongCode { return false }
        return cr4 & CR4.processContextIdentifiers == 0
    }

    /// Whether CR3 may hold `value` (bit 63 removed) with `physicalAddressBits` address bits.
    @inlinable public static func isValidCR3(_ value: UInt64, physicalAddressBits: UInt64) -> Bool {
        value >> physicalAddressBits == 0
    }

    /// Whether CR4 may go from `old` to `new`, given the other registers; `allowed` are the bits that exist.
    public static func allowsCR4(_ new: UInt64, over old: UInt64, allowed: UInt64, cr3: UInt64, efer: UInt64) -> Bool {
        if new & ~allowed != 0 { return false }
        let isLong = efer & EFER.longModeActive != 0
        if isLong && new & CR4.physicalAddressExtension == 0 { return false }
        let enablesContexts = new & ~old & CR4.processContextIdentifiers != 0
        return !enablesContexts || isLong && cr3 & 0xFFF == 0
    }

    /// The bits of CR4 that exist for a processor with these CPUID registers.
    ///
    /// Bits of features that this processor does not implement are not among them, whatever CPUID says: protection keys,
    /// five-level paging, virtualization, control-flow enforcement.
    /// - Parameters:
    ///   - leaf1ECX: CPUID function 1.
    ///   - leaf7EBX: CPUID function 7, index 0.
    public static func cr4Bits(leaf1ECX: UInt32, leaf1EDX: UInt32, leaf7EBX: UInt32, leaf7ECX: UInt32) -> UInt64 {
        var bits = CR4.machineCheck | CR4.performanceCounters
        func allow(_ mask: UInt64, if register: UInt32, bit: UInt32) {
            if register >> bit & 1 != 0 { bits |= mask }
        }
        allow(CR4.virtual8086Extensions | CR4.protectedVirtualInterrupts, if: leaf1EDX, bit: 1)
        allow(CR4.debuggingExtensions, if: leaf1EDX, bit: 2)
        allow(CR4.pageSizeExtension, if: leaf1EDX, bit: 3)
        allow(CR4.timeStampDisable, if: leaf1EDX, bit: 4)
        allow(CR4.physicalAddressExtension, if: leaf1EDX, bit: 6)
        allow(CR4.globalPages, if: leaf1EDX, bit: 13)
        allow(CR4.fxsave, if: leaf1EDX, bit: 24)
        allow(CR4.simdExceptions, if: leaf1EDX, bit: 25)
        allow(CR4.processContextIdentifiers, if: leaf1ECX, bit: 17)
        allow(CR4.xsave, if: leaf1ECX, bit: 26)
        allow(CR4.fsgsbase, if: leaf7EBX, bit: 0)
        allow(CR4.supervisorExecutionPrevention, if: leaf7EBX, bit: 7)
        allow(CR4.supervisorAccessPrevention, if: leaf7EBX, bit: 20)
        allow(CR4.userModeInstructionPrevention, if: leaf7ECX, bit: 2)
        return bits
    }

    /// The bits of EFER that can be written on a processor with CPUID function 8000_0001H, register EDX.
    public static func eferBits(extendedEDX: UInt32) -> UInt64 {
        var bits: UInt64 = 0
        if extendedEDX >> 11 & 1 != 0 { bits |= EFER.syscall }
        if extendedEDX >> 20 & 1 != 0 { bits |= EFER.noExecute }
        if extendedEDX >> 29 & 1 != 0 { bits |= EFER.longModeEnable }
        return bits
    }

    /// Whether EFER may go from `old` to `new`; LMA in `new` is not looked at.
    public static func allowsEFER(_ new: UInt64, over old: UInt64, allowed: UInt64, cr0: UInt64) -> Bool {
        if new & ~(allowed | EFER.longModeActive) != 0 { return false }
        return (new ^ old) & EFER.longModeEnable == 0 || cr0 & CR0.paging == 0
    }

    /// Whether the registers agree with each other, as when a client sets all of them.
    ///
    /// As KVM, it does not ask that PCIDs are off outside long mode.
    public static func areConsistent(cr0: UInt64, cr4: UInt64, efer: UInt64) -> Bool {
        if !isValidCR0(cr0) { return false }
        let isLong = efer & EFER.longModeEnable != 0 && cr0 & CR0.paging != 0
        if isLong != (efer & EFER.longModeActive != 0) { return false }
        return !isLong || cr4 & CR4.physicalAddressExtension != 0
    }

    /// Whether XCR0 may hold `value` if the processor supports `supported`.
    public static func isValidXCR0(_ value: UInt64, supported: UInt64) -> Bool {
        if value & 1 == 0 || value & ~supported != 0 { return false }
        // AVX needs SSE; the bound registers, AVX-512 and tile states come in groups.
        if value & 4 != 0 && value & 2 == 0 { return false }
        if value & 0x18 != 0 && value & 0x18 != 0x18 { return false }
        if value & 0xE0 != 0 && value & 0xE4 != 0xE4 { return false }
        return value & 0x6_0000 == 0 || value & 0x6_0000 == 0x6_0000
    }
}
