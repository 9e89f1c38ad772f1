import CHost

// The structures of the ABI under the names this code uses. They are the C ones, so that nothing is converted on the
// way to the backend.

/// General-purpose registers, RIP and RFLAGS. The corresponding C type is `kvm_regs`.
public typealias GeneralRegisters = kvm_regs
/// Segments, descriptor tables, control registers, EFER and APIC base. The corresponding C type is `kvm_sregs`.
public typealias SpecialRegisters = kvm_sregs
/// The same with page-directory pointers in place of the interrupt bitmap. The corresponding C type is `kvm_sregs2`.
public typealias SpecialRegisters2 = kvm_sregs2
/// The corresponding C type is `kvm_segment`.
public typealias SegmentState = kvm_segment
/// The corresponding C type is `kvm_dtable`.
public typealias DescriptorTableState = kvm_dtable
/// x87 and SSE registers. The corresponding C type is `kvm_fpu`.
public typealias FloatingPointState = kvm_fpu
/// One leaf of CPUID. The corresponding C type is `kvm_cpuid_entry2`.
public typealias CPUIDEntry = kvm_cpuid_entry2
/// A model-specific register and its value. The corresponding C type is `kvm_msr_entry`.
public typealias MSREntry = kvm_msr_entry
/// The local APIC's register page. The corresponding C type is `kvm_lapic_state`.
public typealias LocalAPICRegisters = kvm_lapic_state
/// Events pending or being delivered. The corresponding C type is `kvm_vcpu_events`.
public typealias VCPUEvents = kvm_vcpu_events
/// The corresponding C type is `kvm_debugregs`.
public typealias DebugRegisters = kvm_debugregs
/// The XSAVE image in the standard format. The corresponding C type is `kvm_xsave`.
public typealias XSaveState = kvm_xsave
/// Extended control registers. The corresponding C type is `kvm_xcrs`.
public typealias ExtendedControlRegisters = kvm_xcrs
/// The corresponding C type is `kvm_userspace_memory_region`.
public typealias UserMemoryRegion = kvm_userspace_memory_region
/// The corresponding C type is `kvm_irq_routing_entry`.
public typealias IRQRoutingEntry = kvm_irq_routing_entry
/// PIC or IOAPIC state. The corresponding C type is `kvm_irqchip`.
public typealias IRQChipState = kvm_irqchip
/// The corresponding C type is `kvm_pit_state2`.
public typealias PITState = kvm_pit_state2
/// The corresponding C type is `kvm_clock_data`.
public typealias ClockData = kvm_clock_data

extension kvm_cpuid_entry2 {
    /// A leaf; `index` is given for leaves whose ECX input matters.
    public init(
        function: UInt32, index: UInt32? = nil, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
    ) {
        self.init(
            function: function, index: index ?? 0, flags: index == nil ? 0 : UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: eax, ebx: ebx, ecx: ecx, edx: edx, padding: (0, 0, 0))
    }

    /// Whether ECX selects among entries of this function.
    public var hasSignificantIndex: Bool { flags & UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0 }
}

extension kvm_msr_entry {
    public init(_ index: UInt32, _ data: UInt64 = 0) { self.init(index: index, reserved: 0, data: data) }
}

extension kvm_irq_routing_entry {
    /// `gsi` raises `pin` of `chip`.
    public static func irqChip(gsi: UInt32, chip: IRQChip, pin: UInt32) -> Self {
        var entry = Self()
        entry.gsi = gsi
        entry.type = UInt32(KVM_IRQ_ROUTING_IRQCHIP)
        entry.u.irqchip = kvm_irq_routing_irqchip(irqchip: chip.rawValue, pin: pin)
        return entry
    }

    /// `gsi` sends a message.
    public static func message(gsi: UInt32, address: UInt64, data: UInt32) -> Self {
        var entry = Self()
        entry.gsi = gsi
        entry.type = UInt32(KVM_IRQ_ROUTING_MSI)
        entry.u.msi.address_lo = UInt32(truncatingIfNeeded: address)
        entry.u.msi.address_hi = UInt32(truncatingIfNeeded: address >> 32)
        entry.u.msi.data = data
        return entry
    }
}

/// An interrupt controller of the virtual machine, as `KVM_GET_IRQCHIP` and routing entries number them.
public enum IRQChip: UInt32, CaseIterable, Sendable {
    case picMaster = 0
    case picSlave = 1
    case ioapic = 2
}

/// What a vCPU is doing. The raw values are those of `KVM_MP_STATE_…`.
public enum MPState: UInt32, Sendable {
    case runnable = 0
    /// Never started: waits for INIT and SIPI.
    case uninitialized = 1
    case initReceived = 2
    case halted = 3
    case sipiReceived = 4
    /// Waits as ``halted`` does. The corresponding C constant is `KVM_MP_STATE_AP_RESET_HOLD`.
    case resetHold = 9
}

/// What `KVM_SET_USER_MEMORY_REGION` is told about a region.
public struct MemoryRegionFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Record which pages are written.
    public static let logDirtyPages = Self(rawValue: 1 << 0)
    /// Guest writes become MMIO exits.
    public static let readOnly = Self(rawValue: 1 << 1)
}
