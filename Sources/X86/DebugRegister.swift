/// Bits of DR6 and DR7. > Source: APM volume 2, section 13.1.1; Intel SDM volume 3, section 17.2.
public enum DebugRegister {
    // DR6: what caused a debug exception.
    /// B0–B3: the breakpoints that matched.
    @inlinable public static var breakpoints6: UInt64 { 0xF }
    /// BD: a debug register was accessed while DR7.GD was set.
    @inlinable public static var accessDetected: UInt64 { 1 << 13 }
    /// BS.
    @inlinable public static var singleStep: UInt64 { 1 << 14 }
    /// BT.
    @inlinable public static var taskSwitch: UInt64 { 1 << 15 }
    /// Bits of DR6 that read as one.
    @inlinable public static var fixed6: UInt64 { 0xFFFF_0FF0 }
    @inlinable public static var writable6: UInt64 { 0xE00F }

    // DR7.
    /// GD: the next access to a debug register raises a debug exception.
    @inlinable public static var generalDetect: UInt64 { 1 << 13 }
    /// L0–L3 and LE, which a task switch clears.
    @inlinable public static var localEnables: UInt64 { 0x155 }
    /// L0–L3 and G0–G3.
    @inlinable public static var breakpointEnables: UInt64 { 0xFF }
    /// The bit of DR7 that reads as one.
    @inlinable public static var fixed7: UInt64 { 0x400 }
    @inlinable public static var writable7: UInt64 { 0xFFFF_23FF }
}
