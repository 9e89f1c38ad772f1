import CHost
import KVMInterface
import SystemPackage

// Requests and what KVM answers. In this order: some create what later ones find.

extension ErrnoTables {
    /// Of virtual CPUs.
    static var vcpu: [ErrnoCase] {
        [
            ErrnoCase("state: halted without controllers", .invalidArgument) {
                $0.call($0.plainVCPU, .setMPState, words: [3])
            },
            ErrnoCase("state: unknown", .invalidArgument) {
                $0.call($0.fullVCPU, .setMPState, words: [77])
            },
            ErrnoCase("signal mask of 4 bytes", .invalidArgument) {
                $0.call($0.plainVCPU, .setSignalMask, words: [4])
            },
            ErrnoCase("clock control without clock", .invalidArgument) {
                $0.call($0.plainVCPU, .kvmClockControl, 0)
            },
            ErrnoCase("unknown capability", .invalidArgument) {
                $0.call($0.plain, .enableCapability, words: [9999])
            },
            ErrnoCase("unknown extension", 0) { $0.call($0.plain, .checkExtension, 9999) },
            ErrnoCase("registers from nowhere", .badAddress) { $0.call($0.plainVCPU, .setRegisters, 0) },
            ErrnoCase("registers from an unmapped page", .badAddress) {
                $0.call($0.plainVCPU, .setRegisters, 0x10000)
            },
            ErrnoCase("registers to nowhere", .badAddress) { $0.call($0.plainVCPU, .getRegisters, 0) },
            ErrnoCase("frequency of 1 kHz", .invalidArgument) {
                $0.call($0.plainVCPU, .setTSCFrequency, 1)
            },
            ErrnoCase("MSRs: too many", .argListTooLong) {
                $0.call($0.plainVCPU, .getMSRs, words: [100_000])
            },
            ErrnoCase("MSRs: stops at the first unknown", 1) {
                $0.call(
                    $0.plainVCPU, .getMSRs,
                    words: [3, 0] + [0xC000_0081, 0, 0, 0] + [0x1234_5678, 0, 0, 0] + [0xC000_0082, 0, 0, 0])
            },
            ErrnoCase("run with an argument", .invalidArgument) { $0.call($0.plainVCPU, .run, 1) },
            ErrnoCase("signal mask of 16 bytes", .invalidArgument) {
                $0.call($0.plainVCPU, .setSignalMask, words: [16])
            },
            ErrnoCase("no signal mask", 0) { $0.call($0.plainVCPU, .setSignalMask) },
            ErrnoCase("state: not started, without controllers", .invalidArgument) {
                $0.call($0.plainVCPU, .setMPState, words: [1])
            },
            ErrnoCase("state: runs, without controllers", 0) { $0.call($0.plainVCPU, .setMPState, words: [0]) },
            ErrnoCase("256 MSRs", .argListTooLong) { $0.call($0.plainVCPU, .getMSRs, words: [256]) },
            ErrnoCase("256 MSRs are set", .argListTooLong) { $0.call($0.plainVCPU, .setMSRs, words: [256]) },
            ErrnoCase("no MSRs", 0) { $0.call($0.plainVCPU, .getMSRs, words: [0]) },
            ErrnoCase("MSRs are set up to the first unknown", 1) {
                $0.call(
                    $0.plainVCPU, .setMSRs,
                    words: [3, 0] + [0xC000_0081, 0, 0, 0] + [0x1234_5678, 0, 0, 0] + [0xC000_0082, 0, 0, 0])
            },
            ErrnoCase("an MSR with an address that is not canonical", 0) {
                $0.call($0.plainVCPU, .setMSRs, words: [1, 0] + [0xC000_0082, 0, 0, 1 << 31])
            },
            ErrnoCase("EFER with reserved bits", 0) {
                $0.call($0.plainVCPU, .setMSRs, words: [1, 0] + [0xC000_0080, 0, 0, 1])
            },
            ErrnoCase("257 leaves of CPUID", .argListTooLong) { $0.call($0.plainVCPU, .setCPUID2, words: [257]) },
            ErrnoCase("a leaf of CPUID", 0) { $0.call($0.plainVCPU, .setCPUID2, words: [1]) },
            ErrnoCase("no room for it", .argListTooLong) { $0.call($0.plainVCPU, .getCPUID2, words: [0]) },
            ErrnoCase("its own leaf", 0) { $0.call($0.plainVCPU, .getCPUID2, words: [1]) },
            ErrnoCase("XSAVE: component that does not exist", .invalidArgument) {
                $0.changeXSave { $0.storeBytes(of: 1 << 62, toByteOffset: 512, as: UInt64.self) }
            },
            ErrnoCase("XSAVE: compacted", .invalidArgument) {
                $0.changeXSave { $0.storeBytes(of: 1 << 63 | 3, toByteOffset: 520, as: UInt64.self) }
            },
            ErrnoCase("XSAVE: reserved byte of the header", .invalidArgument) {
                $0.changeXSave { $0[512 + 30] = 1 }
            },
            ErrnoCase("XSAVE: reserved bit of MXCSR", .invalidArgument) {
                $0.changeXSave {
                    $0[512] = 3
                    $0.storeBytes(of: 0x8000_1F80, toByteOffset: 24, as: UInt32.self)
                }
            },
            ErrnoCase("XSAVE: as it was", 0) { $0.changeXSave { _ in } },
            ErrnoCase("XCRs: flags", .invalidArgument) { $0.changeXCRs { $0.flags = 1 } },
            ErrnoCase("XCRs: 17", .invalidArgument) { $0.changeXCRs { $0.nr_xcrs = 17 } },
            ErrnoCase("XCRs: without x87", .invalidArgument) { $0.changeXCRs { $0.xcrs.0.value = 2 } },
            ErrnoCase("XCRs: AVX without SSE", .invalidArgument) { $0.changeXCRs { $0.xcrs.0.value = 5 } },
            ErrnoCase("XCRs: component that does not exist", .invalidArgument) {
                $0.changeXCRs { $0.xcrs.0.value = 1 << 62 | 1 }
            },
            ErrnoCase("XCRs: none", 0) { $0.changeXCRs { $0.nr_xcrs = 0 } },
            ErrnoCase("debug registers: flags", .invalidArgument) { $0.changeDebugRegisters { $0.flags = 1 } },
            ErrnoCase("debug registers: upper half of DR7", .invalidArgument) {
                $0.changeDebugRegisters { $0.dr7 = 1 << 40 }
            },
            ErrnoCase("debug registers: upper half of DR6", .invalidArgument) {
                $0.changeDebugRegisters { $0.dr6 = 1 << 40 }
            },
            ErrnoCase("events: unknown flag", .invalidArgument) { $0.changeEvents { $0.flags = 1 << 20 } },
            ErrnoCase("events: exception 32", .invalidArgument) {
                $0.changeEvents {
                    $0.exception.injected = 1
                    $0.exception.nr = 32
                }
            },
            ErrnoCase("events: NMI as an exception", .invalidArgument) {
                $0.changeEvents {
                    $0.exception.injected = 1
                    $0.exception.nr = 2
                }
            },
            ErrnoCase("events: as they were", 0) { $0.changeEvents { _ in } },
            ErrnoCase("special registers: as they were", 0) { $0.changeSpecialRegisters { _ in } },
            ErrnoCase("special registers: reserved bit of CR4", .invalidArgument) {
                $0.changeSpecialRegisters { $0.cr4 = 1 << 31 }
            },
            ErrnoCase("special registers: paging without protection", .invalidArgument) {
                $0.changeSpecialRegisters { $0.cr0 = 0x8000_0010 }
            },
            ErrnoCase("special registers: upper half of CR0", .invalidArgument) {
                $0.changeSpecialRegisters { $0.cr0 |= 1 << 40 }
            },
            ErrnoCase("special registers: long mode that is not active", .invalidArgument) {
                $0.changeSpecialRegisters {
                    $0.cr0 = 0x8000_0011
                    $0.cr4 = 0x20
                    $0.efer = 0x100
                }
            },
            // The kernel keeps it until the processor refuses to enter the guest.
            ErrnoCase("special registers: reserved bit of EFER", .invalidArgument, kernel: 0) {
                $0.changeSpecialRegisters { $0.efer = 1 << 40 }
            },
            ErrnoCase("special registers: APIC base beyond physical addresses", .invalidArgument) {
                $0.changeSpecialRegisters { $0.apic_base |= 1 << 60 }
            },
            ErrnoCase("NMI", 0) { $0.call($0.fullVCPU, .nmi) }
        ]
    }
}

extension ErrnoFixture {
    func changeXSave(_ body: (UnsafeMutableRawBufferPointer) -> Void) -> Int32 {
        change(fullVCPU, .getXSave, .setXSave, XSaveState()) { state in withUnsafeMutableBytes(of: &state) { body($0) }
        }
    }

    func changeXCRs(_ body: (inout ExtendedControlRegisters) -> Void) -> Int32 {
        change(fullVCPU, .getXCRs, .setXCRs, ExtendedControlRegisters(), body)
    }

    func changeDebugRegisters(_ body: (inout DebugRegisters) -> Void) -> Int32 {
        change(fullVCPU, .getDebugRegisters, .setDebugRegisters, DebugRegisters(), body)
    }

    func changeEvents(_ body: (inout VCPUEvents) -> Void) -> Int32 {
        change(fullVCPU, .getEvents, .setEvents, VCPUEvents(), body)
    }

    func changeSpecialRegisters(_ body: (inout SpecialRegisters) -> Void) -> Int32 {
        change(fullVCPU, .getSpecialRegisters, .setSpecialRegisters, SpecialRegisters(), body)
    }
}
