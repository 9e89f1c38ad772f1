import CHost
import KVMInterface
import SystemPackage

// Requests and what KVM answers. In this order: some create what later ones find.

/// The table, in parts.
enum ErrnoTables {
    /// Of descriptors, and of the system.
    static var system: [ErrnoCase] {
        [
            ErrnoCase("system: unknown", .invalidArgument) { $0.call($0.system, 0xAEFF, 0) },
            ErrnoCase("system: other type", .invalidArgument) { $0.call($0.system, 0x1234, 0) },
            ErrnoCase("system: a machine's request", .invalidArgument) { $0.call($0.system, 0xAE60, 0) },
            ErrnoCase("machine: unknown", .inappropriateIOCTLForDevice) { $0.call($0.plain, 0xAEFF, 0) },
            ErrnoCase("machine: a vCPU's request", .inappropriateIOCTLForDevice) { $0.call($0.plain, 0xAE80, 0) },
            ErrnoCase("vCPU: unknown", .invalidArgument) { $0.call($0.plainVCPU, 0xAEFF, 0) },
            ErrnoCase("vCPU: a machine's request", .invalidArgument) { $0.call($0.plainVCPU, 0xAE60, 0) },
            ErrnoCase("API version", 12) { $0.call($0.system, .getAPIVersion, 0) },
            ErrnoCase("API version with argument", .invalidArgument) {
                $0.call($0.system, .getAPIVersion, 1)
            },
            ErrnoCase("map size", 12288) { $0.call($0.system, .getVCPUMapSize, 0) },
            ErrnoCase("machine of unknown type", .invalidArgument) { $0.call($0.system, .createVM, 5) },
            ErrnoCase("CPUID: no room", .argListTooLong) {
                $0.call($0.system, .getSupportedCPUID, words: [0, 0])
            },
            ErrnoCase("MSR list: no room", .argListTooLong) {
                $0.call($0.system, .getMSRIndexList, words: [0])
            }
        ]
    }

    /// Of interrupt controllers, timers and what a machine is told once.
    static var machine: [ErrnoCase] {
        [
            ErrnoCase("vCPU id too large", .invalidArgument) { $0.call($0.plain, .createVCPU, 1 << 20) },
            // Older kernels see 9.
            ErrnoCase("vCPU id of 2^32 + 9", .invalidArgument, kernel: 0) {
                min($0.call($0.plain, .createVCPU, 1 << 32 + 9), 0)
            },
            ErrnoCase("vCPU id taken", .fileExists) { $0.call($0.plain, .createVCPU, 3) },
            ErrnoCase("controllers after a vCPU", .invalidArgument) {
                $0.call($0.plain, .createIRQChip, 0)
            },
            ErrnoCase("controllers twice", .fileExists) { $0.call($0.full, .createIRQChip, 0) },
            // Older kernels make one.
            ErrnoCase("timer without controllers", .noSuchFileOrDirectory, kernel: 0) {
                $0.call($0.plain, .createPIT2, words: [])
            },
            ErrnoCase("timer state without timer", .noSuchAddressOrDevice) {
                $0.call($0.full, .getPIT2, words: [])
            },
            ErrnoCase("timer", 0) { $0.call($0.full, .createPIT2, words: [1]) },
            ErrnoCase("timer twice", .fileExists) { $0.call($0.full, .createPIT2, words: []) },
            ErrnoCase("boot vCPU after a vCPU", .resourceBusy) { $0.call($0.full, .setBootCPUID, 0) },
            ErrnoCase("identity map after a vCPU", .invalidArgument) {
                $0.call($0.full, .setIdentityMapAddress, words: [0xFFFB_C000, 0])
            },
            ErrnoCase("TSS too high", .invalidArgument) {
                $0.call($0.full, .setTSSAddress, 0xFFFF_FFFF_F000)
            },
            ErrnoCase("interrupt with controllers", .noSuchAddressOrDevice) {
                $0.call($0.fullVCPU, .interrupt, words: [0x20])
            },
            ErrnoCase("interrupt above 255", .invalidArgument) {
                $0.call($0.plainVCPU, .interrupt, words: [300])
            },
            ErrnoCase("interrupt", 0) { $0.call($0.plainVCPU, .interrupt, words: [0x20]) },
            ErrnoCase("local APIC without controllers", .invalidArgument) {
                $0.call($0.plainVCPU, .getLocalAPIC, words: [])
            },
            ErrnoCase("line without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, .irqLine, words: [0, 1])
            },
            ErrnoCase("chip without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, .getIRQChip, words: [0])
            },
            ErrnoCase("chip that does not exist", .invalidArgument) {
                $0.call($0.full, .getIRQChip, words: [7])
            },
            ErrnoCase("message without controllers", .invalidArgument) {
                $0.call($0.plain, .signalMSI, words: [])
            },
            ErrnoCase("routes without controllers", .invalidArgument) {
                $0.call($0.plain, .setGSIRouting, words: [])
            },
            ErrnoCase("route to pin 24", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0, 5, 1, 0, 0, 2, 24])
            },
            ErrnoCase("route of unknown type", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0, 5, 99, 0, 0, 2, 5])
            },
            ErrnoCase("identity map from nowhere after a vCPU", .invalidArgument) {
                $0.call($0.full, .setIdentityMapAddress, 0)
            },
            ErrnoCase("identity map from nowhere", .badAddress) { $0.call($0.empty, .setIdentityMapAddress, 0) },
            ErrnoCase("interrupt controllers are asked for with an argument", .fileExists) {
                $0.call($0.full, .createIRQChip, 1)
            },
            ErrnoCase("old timer beside the new one", .fileExists) { $0.call($0.full, .createPIT) },
            ErrnoCase("reinjection without timer", .noSuchAddressOrDevice) {
                $0.call($0.empty, .reinjectControl, words: [])
            },
            ErrnoCase("timer is set without timer", .noSuchAddressOrDevice) {
                $0.call($0.empty, .setPIT2, words: [])
            },
            ErrnoCase("chip is set without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, .setIRQChip, words: [0])
            },
            ErrnoCase("chip that does not exist is set", .invalidArgument) {
                $0.call($0.full, .setIRQChip, words: [7])
            },
            ErrnoCase("line beyond all", 0) { $0.call($0.full, .irqLine, words: [5000, 1]) },
            ErrnoCase("line with status without controllers", .noSuchAddressOrDevice) {
                $0.call($0.plain, .irqLineStatus, words: [0, 1])
            },
            ErrnoCase("message with flags", .invalidArgument) {
                $0.call($0.full, .signalMSI, words: [0xFEE0_0000, 0, 0x31, 1 << 5])
            },
            ErrnoCase("message to nobody", 0) {
                $0.call($0.full, .signalMSI, words: [0xFEE7_7000, 0, 0x31])
            },
            ErrnoCase("message to a vCPU whose APIC is off", 0) {
                $0.call($0.full, .signalMSI, words: [0xFEE0_0000, 0, 0x31])
            },
            ErrnoCase("routes with flags", .invalidArgument) { $0.call($0.full, .setGSIRouting, words: [0, 1]) },
            ErrnoCase("too many routes", .invalidArgument) { $0.call($0.full, .setGSIRouting, words: [5000, 0]) },
            ErrnoCase("route with flags", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [5, 1, 1, 0, 2, 5])
            },
            ErrnoCase("route of a line beyond all", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [4096, 1, 0, 0, 2, 5])
            },
            ErrnoCase("route to pin 8 of a PIC", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [5, 1, 0, 0, 0, 8])
            },
            ErrnoCase("route to a chip that does not exist", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [5, 1, 0, 0, 7, 5])
            },
            ErrnoCase("two routes of a line to one chip", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [2, 0] + $0.route(5, pin: 5) + $0.route(5, pin: 6))
            },
            ErrnoCase("a line with a pin and a message", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [2, 0] + $0.route(5, pin: 5) + $0.messageRoute(5))
            },
            ErrnoCase("a line with two messages", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [2, 0] + $0.messageRoute(5) + $0.messageRoute(5))
            },
            ErrnoCase("routes", 0) {
                $0.call($0.full, .setGSIRouting, words: [2, 0] + $0.route(5, pin: 5) + $0.messageRoute(24))
            },
            ErrnoCase("no routes", 0) { $0.call($0.full, .setGSIRouting, words: [0, 0]) },
            ErrnoCase("message that names its device", 0) {
                $0.call($0.full, .signalMSI, words: [0xFEE0_0000, 0, 0x31, 1])
            },
            ErrnoCase("route to a message that names its device", 0) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [5, 2, 1, 0, 0xFEE0_0000, 0, 0x31, 7, 0, 0, 0, 0])
            },
            ErrnoCase("route to a message with unknown flags", .invalidArgument) {
                $0.call($0.full, .setGSIRouting, words: [1, 0] + [5, 2, 2, 0, 0xFEE0_0000, 0, 0x31, 7, 0, 0, 0, 0])
            },
            ErrnoCase("old timer state without timer", .noSuchAddressOrDevice) {
                $0.call($0.empty, .getPIT, words: [])
            },
            ErrnoCase("old timer state is set without timer", .noSuchAddressOrDevice) {
                $0.call($0.empty, .setPIT, words: [])
            },
            ErrnoCase("old timer state", 0) { $0.call($0.full, .getPIT, words: []) },
            ErrnoCase("too few pages of the MMU", .invalidArgument) { $0.call($0.full, .setMMUPageCount, 63) },
            ErrnoCase("pages of the MMU are set", 0) { $0.call($0.full, .setMMUPageCount, 1000) },
            // Newer kernels do not know the request.
            ErrnoCase("pages of the MMU", 1000, kernel: -Errno.inappropriateIOCTLForDevice.rawValue) {
                $0.call($0.full, .getMMUPageCount, 0)
            },
            ErrnoCase("device that does not exist", .operationNotSupportedByDevice) {
                $0.call($0.full, .createDevice, words: [99])
            },
            ErrnoCase("another architecture's device", .operationNotSupportedByDevice) {
                $0.call($0.full, .createDevice, words: [5])
            },
            ErrnoCase("split controllers after a vCPU", .fileExists) {
                $0.call($0.plain, .enableCapability, words: [UInt32(KVMCapability.splitIRQChip.rawValue), 0, 24, 0])
            },
            ErrnoCase("split controllers beside others", .fileExists) {
                $0.call($0.full, .enableCapability, words: [UInt32(KVMCapability.splitIRQChip.rawValue), 0, 24, 0])
            },
            ErrnoCase("split controllers with too many pins", .invalidArgument) {
                $0.call($0.full, .enableCapability, words: [UInt32(KVMCapability.splitIRQChip.rawValue), 0, 4097, 0])
            },
            ErrnoCase("clock with unknown flags", .invalidArgument) {
                $0.call($0.full, .setClock, words: [0, 0, 1 << 9])
            },
            ErrnoCase("capability with flags", .invalidArgument) {
                $0.call($0.full, .enableCapability, words: [UInt32(KVMCapability.x2APICAPI.rawValue), 1])
            },
            ErrnoCase("x2APIC interface with unknown flags", .invalidArgument) {
                $0.call($0.full, .enableCapability, words: [UInt32(KVMCapability.x2APICAPI.rawValue), 0, 1 << 9])
            }
        ]
    }
}

extension ErrnoFixture {
    /// A route of a line to a pin of the IOAPIC.
    func route(_ gsi: UInt32, pin: UInt32) -> [UInt32] { [gsi, 1, 0, 0, 2, pin] + [UInt32](repeating: 0, count: 6) }

    /// A route of a line to a message.
    func messageRoute(_ gsi: UInt32) -> [UInt32] {
        [gsi, 2, 0, 0, 0xFEE0_0000, 0, 0x31, 0] + [UInt32](repeating: 0, count: 4)
    }
}
