/// Bits of RFLAGS.
///
/// > Source: AMD64 Architecture Programmer's Manual (APM) volume 2, section 3.1.6.
public enum RFlags {
    @inlinable public static var carry: UInt64 { 1 << 0 }
    @inlinable public static var reserved1: UInt64 { 1 << 1 }
    @inlinable public static var parity: UInt64 { 1 << 2 }
    @inlinable public static var auxiliary: UInt64 { 1 << 4 }
    @inlinable public static var zero: UInt64 { 1 << 6 }
    @inlinable public static var sign: UInt64 { 1 << 7 }
    @inlinable public static var trap: UInt64 { 1 << 8 }
    @inlinable public static var interrupt: UInt64 { 1 << 9 }
    @inlinable public static var direction: UInt64 { 1 << 10 }
    @inlinable public static var overflow: UInt64 { 1 << 11 }
    @inlinable public static var ioPrivilege: UInt64 { 3 << 12 }
    @inlinable public static var nestedTask: UInt64 { 1 << 14 }
    @inlinable public static var resume: UInt64 { 1 << 16 }
    @inlinable public static var virtual8086: UInt64 { 1 << 17 }
    @inlinable public static var alignmentCheck: UInt64 { 1 << 18 }
    @inlinable public static var virtualInterrupt: UInt64 { 1 << 19 }
    @inlinable public static var virtualInterruptPending: UInt64 { 1 << 20 }
    @inlinable public static var identification: UInt64 { 1 << 21 }

    /// The six flags that translated code keeps in the host's own RFLAGS.
    @inlinable public static var arithmetic: UInt64 { 0x8D5 }
    /// Every flag a guest can set.
    @inlinable public static var all: UInt64 { 0x3F_7FD5 }
}

/// Bits of CR0. > Source: APM volume 2, section 3.1.1.
public enum CR0 {
    @inlinable public static var protection: UInt64 { 1 << 0 }
    @inlinable public static var monitorCoprocessor: UInt64 { 1 << 1 }
    @inlinable public static var emulation: UInt64 { 1 << 2 }
    @inlinable public static var taskSwitched: UInt64 { 1 << 3 }
    @inlinable public static var extensionType: UInt64 { 1 << 4 }
    @inlinable public static var numericError: UInt64 { 1 << 5 }
    @inlinable public static var writeProtect: UInt64 { 1 << 16 }
    @inlinable public static var alignmentMask: UInt64 { 1 << 18 }
    @inlinable public static var notWriteThrough: UInt64 { 1 << 29 }
    @inlinable public static var cacheDisable: UInt64 { 1 << 30 }
    @inlinable public static var paging: UInt64 { 1 << 31 }
}

/// Bits of CR4. > Source: APM volume 2, section 3.1.3.
public enum CR4 {
    @inlinable public static var virtual8086Extensions: UInt64 { 1 << 0 }
    @inlinable public static var protectedVirtualInterrupts: UInt64 { 1 << 1 }
    @inlinable public static var timeStampDisable: UInt64 { 1 << 2 }
    @inlinable public static var debuggingExtensions: UInt64 { 1 << 3 }
    @inlinable public static var pageSizeExtension: UInt64 { 1 << 4 }
    @inlinable public static var physicalAddressExtension: UInt64 { 1 << 5 }
    @inlinable public static var machineCheck: UInt64 { 1 << 6 }
    @inlinable public static var globalPages: UInt64 { 1 << 7 }
    @inlinable public static var performanceCounters: UInt64 { 1 << 8 }
    @inlinable public static var fxsave: UInt64 { 1 << 9 }
    @inlinable public static var simdExceptions: UInt64 { 1 << 10 }
    @inlinable public static var userModeInstructionPrevention: UInt64 { 1 << 11 }
    @inlinable public static var fsgsbase: UInt64 { 1 << 16 }
    @inlinable public static var processContextIdentifiers: UInt64 { 1 << 17 }
    @inlinable public static var xsave: UInt64 { 1 << 18 }
    @inlinable public static var supervisorExecutionPrevention: UInt64 { 1 << 20 }
    @inlinable public static var supervisorAccessPrevention: UInt64 { 1 << 21 }
}

/// Bits of the EFER register. > Source: APM volume 2, section 3.1.7.
public enum EFER {
    @inlinable public static var syscall: UInt64 { 1 << 0 }
    @inlinable public static var longModeEnable: UInt64 { 1 << 8 }
    @inlinable public static var longModeActive: UInt64 { 1 << 10 }
    @inlinable public static var noExecute: UInt64 { 1 << 11 }
}
