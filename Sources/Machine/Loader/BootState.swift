import Addressing

/// The registers with which the first vCPU starts the guest.
///
/// Plain values: the machine turns them into the backend's. Registers that are not here are 0.
public struct BootState: Equatable, Sendable {
    public struct Segment: Equatable, Sendable {
        public var selector: UInt16
        public var base: UInt64
        /// In bytes, less one.
        public var limit: UInt32
        /// The descriptor's access rights: type 0…3, S 4, DPL 5…6, P 7, AVL 12, L 13, D/B 14, G 15.
        public var attributes: UInt16

        public static func data(selector: UInt16) -> Self {
            Self(selector: selector, base: 0, limit: .max, attributes: 0xC093)
        }
        public static func code64(selector: UInt16) -> Self {
            Self(selector: selector, base: 0, limit: .max, attributes: 0xA09B)
        }
        public static func code32(selector: UInt16) -> Self {
            Self(selector: selector, base: 0, limit: .max, attributes: 0xC09B)
        }
        /// A busy TSS nobody uses; hardware demands one.
        public static func task(selector: UInt16) -> Self {
            Self(selector: selector, base: 0, limit: 0x67, attributes: 0x8B)
        }
        /// No segment: present is clear.
        public static var none: Self { Self(selector: 0, base: 0, limit: 0, attributes: 0) }

        /// The descriptor with these contents, as the guest's table has it.
        package var descriptor: UInt64 {
            let granular = attributes & 0x8000 != 0
            let limit = UInt64(granular ? self.limit >> 12 : self.limit)
            var value = limit & 0xFFFF | (limit >> 16 & 0xF) << 48
            value |= (base & 0xFF_FFFF) << 16 | (base >> 24 & 0xFF) << 56
            value |= UInt64(attributes & 0xF0FF) << 40
            return value
        }
    }

    public var rip: UInt64
    public var rsp: UInt64
    public var rbx: UInt64 = 0
    public var rsi: UInt64 = 0
    /// Only the bit that is always set: interrupts off, direction up.
    public var rflags: UInt64 = 2

    public var cr0: UInt64
    public var cr3: UInt64
    public var cr4: UInt64
    public var efer: UInt64

    public var cs: Segment
    /// DS, ES and SS.
    public var data: Segment
    /// FS and GS.
    public var extra: Segment = .data(selector: Self.dataSelector)
    public var tr: Segment = .task(selector: Self.taskSelector)
    public var ldt: Segment = .none
    public var gdtBase: UInt64 = BoardLayout.descriptorTable.value
    public var gdtLimit: UInt16 = 6 * 8 - 1
    public var idtBase: UInt64 = 0
    public var idtLimit: UInt16 = 0

    /// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol.
    static var codeSelector: UInt16 { 0x10 }
    static var dataSelector: UInt16 { 0x18 }
    static var taskSelector: UInt16 { 0x20 }

    /// The 64-bit Linux entry: long mode, identity-mapped page tables, RSI at `boot_params`.
    ///
    /// > Source: Documentation/arch/x86/boot.rst, "64-bit boot protocol".
    public static func linux64(entry: UInt64) -> Self {
        Self(
            rip: entry, rsp: BoardLayout.stackEnd.value, rsi: BoardLayout.bootParameters.value,
            cr0: 0x8000_0011, cr3: BoardLayout.pageTables.value, cr4: 0x20, efer: 0x500,
            cs: .code64(selector: codeSelector), data: .data(selector: dataSelector))
    }

    /// The PVH entry: 32-bit protected mode without paging, EBX at `hvm_start_info`.
    ///
    /// > Source: xen/docs/misc/pvh.pandoc.
    public static func pvh(entry: UInt32) -> Self {
        Self(
            rip: UInt64(entry), rsp: BoardLayout.stackEnd.value, rbx: BoardLayout.startInfo.value,
            cr0: 0x11, cr3: 0, cr4: 0, efer: 0,
            cs: .code32(selector: codeSelector), data: .data(selector: dataSelector))
    }

    /// Writes the tables the state points to: descriptors and, where paging is on, page tables.
    package func writeTables(to ram: GuestRAM) throws(GuestRAM.OutsideRAM) {
        // In long mode the TSS descriptor has a second half.
        let table = [0, 0, cs.descriptor, data.descriptor, tr.descriptor, 0]
        for (index, descriptor) in table.enumerated() {
            try ram.write(descriptor, at: GuestPhysicalAddress(gdtBase) + UInt64(index * 8))
        }
        guard cr0 & 0x8000_0000 != 0 else { return }
        try Self.writeIdentityPageTables(to: ram)
    }

    /// Maps the first 4 GiB to themselves with 2 MiB pages, present, writable, for the kernel.
    private static func writeIdentityPageTables(to ram: GuestRAM) throws(GuestRAM.OutsideRAM) {
        let top = BoardLayout.pageTables
        let presentWritable: UInt64 = 0x3
        let large: UInt64 = 0x80
        try ram.zero(at: top, byteCount: 6 * pageSize)
        try ram.write(top.value + pageSize | presentWritable, at: top)
        for index in 0..<UInt64(4) {
            let directory = top + (2 + index) * pageSize
            try ram.write(directory.value | presentWritable, at: top + pageSize + index * 8)
            for page in 0..<UInt64(512) {
                try ram.write((index << 30) + (page << 21) | presentWritable | large, at: directory + page * 8)
            }
        }
    }
}
