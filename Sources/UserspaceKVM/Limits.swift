/// The limits of this implementation, as `KVM_CHECK_EXTENSION` reports them.
public enum Limits {
    /// How many vCPUs a machine may have.
    public static let vcpuCount = 4096
    /// The first vCPU id that is too large; ids are APIC ids and may be sparse.
    public static let vcpuID = 16384
    public static let userMemorySlotCount = 32764
    /// Changes of one batch: enough to replace every slot.
    public static let memoryBatchCount = 2 * userMemorySlotCount
    /// Entries of one `KVM_SET_CPUID2`.
    public static let cpuidEntryCount = 256
    /// Registers of one `KVM_GET_MSRS` or `KVM_SET_MSRS`.
    public static let msrEntryCount = 256
    /// Entries of one `KVM_SET_GSI_ROUTING`, and the first GSI that is too large.
    public static let gsiCount = 4096
    /// The run area: `kvm_run`, a page for port data, and the machine's ring of coalesced writes.
    public static let runAreaByteCount = 3 * 4096
    /// Where port data lies in the run area.
    public static let portDataOffset = 4096
    /// Where the ring lies in the run area; `KVM_CAP_COALESCED_MMIO` answers with the page's number.
    public static let coalescedRingOffset = 2 * 4096
    /// The least that `KVM_SET_NR_MMU_PAGES` takes.
    static let mmuPageCount: UInt = 64
    /// Bytes of the XSAVE image.
    public static let xsaveByteCount = 4096
}
