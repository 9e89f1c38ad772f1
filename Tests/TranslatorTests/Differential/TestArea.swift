/// Where test sequences and their data lie: at the same linear addresses on the host and in the guest.
///
/// All of it is below 2 GiB, so that absolute addresses and 32-bit code reach it; the data is mapped a second time far
/// above 4 GiB.
enum TestArea {
    static var code: UInt64 { 0x4000_0000 }
    static var codePages: Int { 2 }
    static var data: UInt64 { 0x4001_0000 }
    static var dataPages: Int { 4 }
    static var stack: UInt64 { 0x4002_0000 }
    static var stackPages: Int { 2 }
    /// Only on the host: registers and trampolines of ``NativeRunner``.
    static var control: UInt64 { 0x4003_0000 }
    static var controlPages: Int { 4 }
    /// The data pages again.
    static var dataAlias: UInt64 { 0x12_3401_0000 }
    /// The base of GS for test sequences.
    static var gsBase: UInt64 { 0x7654_3210 }

    /// Data and stack together.
    static var memoryByteCount: Int { (dataPages + stackPages) << 12 }
}
