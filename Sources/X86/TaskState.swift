/// Layouts of the task-state segment.
///
/// > Source: APM volume 2, sections 12.2.4 and 12.2.5; Intel SDM volume 3, section 7.2.
public enum TaskState {
    /// Where the stack of privilege level 0…2 is in a legacy task state, relative to its base.
    @inlinable public static func stackOffset(privilegeLevel: UInt8, isWide: Bool) -> UInt64 {
        isWide ? 4 + UInt64(privilegeLevel) * 8 : 2 + UInt64(privilegeLevel) * 4
    }

    /// RSP for privilege level 0…2 in a 64-bit task state.
    @inlinable public static func stackPointerOffset64(privilegeLevel: UInt8) -> UInt64 {
        4 + UInt64(privilegeLevel) * 8
    }

    /// Entry 1…7 of the interrupt-stack table in a 64-bit task state.
    @inlinable public static func interruptStackOffset(_ index: Int) -> UInt64 { 0x24 + UInt64(index - 1) * 8 }

    /// The offset of the I/O permission bitmap is stored here, in 32- and 64-bit layouts.
    @inlinable public static var ioBitmapBaseOffset: UInt64 { 0x66 }

    /// Offsets of what a task switch saves and loads.
    public struct Layout: Sendable {
        public var cr3: UInt64?
        public var instructionPointer: UInt64
        public var flags: UInt64
        /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI follow each other.
        public var generalRegisters: UInt64
        /// ES, CS, SS, DS and, in the 32-bit layout, FS and GS.
        public var segments: UInt64
        public var segmentCount: Int
        public var segmentStride: UInt64
        public var localDescriptorTable: UInt64
        /// Bit 0 of this word asks for a debug exception after the switch.
        public var debugTrap: UInt64?
        /// The size of a general register, in bytes.
        public var registerByteCount: Int
        /// The smallest valid limit.
        public var minimumLimit: UInt32
    }

    public static var layout32: Layout {
        Layout(
            cr3: 0x1C, instructionPointer: 0x20, flags: 0x24, generalRegisters: 0x28, segments: 0x48, segmentCount: 6,
            segmentStride: 4, localDescriptorTable: 0x60, debugTrap: 0x64, registerByteCount: 4, minimumLimit: 0x67)
    }

    public static var layout16: Layout {
        Layout(
            cr3: nil, instructionPointer: 0x0E, flags: 0x10, generalRegisters: 0x12, segments: 0x22, segmentCount: 4,
            segmentStride: 2, localDescriptorTable: 0x2A, debugTrap: nil, registerByteCount: 2, minimumLimit: 0x2B)
    }
}
