import CHost
import Translator
import X86

/// The machine-check registers of one vCPU.
///
/// > Source: Intel SDM volume 3, section 16.3; Documentation/virt/kvm/api.rst, sections 4.104 to 4.106.
struct MachineCheck: Sendable {
    static let maximumBankCount = 32

    /// Bits of IA32_MCG_CAP.
    enum Capabilities {
        static let bankCount: UInt64 = 0xFF
        /// IA32_MCG_CTL exists.
        static let control: UInt64 = 1 << 8
        /// How many registers of extended state there are.
        static let extendedCount: UInt64 = 0xFF << 16
        /// Errors that software can recover from are told apart.
        static let recovery: UInt64 = 1 << 24

        /// What a client may choose, besides the counts.
        static let supported = control | recovery
    }

    /// Bits of IA32_MCi_STATUS.
    private enum Status {
        static let actionRequired: UInt64 = 1 << 55
        static let signalled: UInt64 = 1 << 56
        static let contextCorrupted: UInt64 = 1 << 57
        static let uncorrected: UInt64 = 1 << 61
        static let overflow: UInt64 = 1 << 62
        static let valid: UInt64 = 1 << 63
    }

    /// IA32_MCG_STATUS: a machine check is being handled.
    private static let isInProgress: UInt64 = 1 << 2
    /// HWCR: guests may write what banks report.
    private static let statusWrites: UInt64 = 1 << 18

    private(set) var capabilities = UInt64(maximumBankCount)
    private var status: UInt64 = 0
    private var control: UInt64 = 0
    /// Control, status, address and miscellaneous register of each bank in turn; empty as long as all are 0.
    private var banks: [UInt64] = []

    private var bankCount: Int { Int(capabilities & Capabilities.bankCount) }

    /// `KVM_X86_SETUP_MCE`.
    /// - Returns: false, with nothing changed, for no or too many banks, or capabilities that do not exist.
    mutating func setUp(_ new: UInt64) -> Bool {
        let known = Capabilities.supported | Capabilities.bankCount | Capabilities.extendedCount
        guard new & ~known == 0, 1...Self.maximumBankCount ~= Int(new & Capabilities.bankCount) else { return false }
        capabilities = new
        if new & Capabilities.control != 0 { control = .max }
        for bank in 0..<bankCount { setRegister(bank * 4, .max) }
        return true
    }

    private func register(_ place: Int) -> UInt64 { banks.isEmpty ? 0 : banks[place] }

    private mutating func setRegister(_ place: Int, _ value: UInt64) {
        if banks.isEmpty { banks = [UInt64](repeating: 0, count: Self.maximumBankCount * 4) }
        banks[place] = value
    }

    // MARK: Registers

    /// Whether `index` is one of these registers.
    static func ownsMSR(_ index: UInt32) -> Bool {
        switch index {
        case MSR.machineCheckCapabilities...MSR.machineCheckControl, MSR.machineCheckBank0...MSR.machineCheckBankLast,
            MSR.machineCheckBankControl0...MSR.machineCheckBankControlLast:
            true
        default: false
        }
    }

    /// - Returns: nil if the register is not there for `reader`.
    func read(_ index: UInt32, by reader: RegisterUser) -> UInt64? {
        switch index {
        case MSR.machineCheckCapabilities: return capabilities
        case MSR.machineCheckStatus: return status
        case MSR.machineCheckControl:
            return capabilities & Capabilities.control != 0 || reader == .client ? control : nil
        case MSR.machineCheckBank0...MSR.machineCheckBankLast:
            let place = Int(index - MSR.machineCheckBank0)
            return place < bankCount * 4 ? register(place) : nil
        default:
            // Nothing signals corrected errors, so the guest has no controls for that.
            return reader == .client && Int(index - MSR.machineCheckBankControl0) < bankCount ? 0 : nil
        }
    }

    /// - Parameter hardwareConfiguration: AMD's HWCR.
    /// - Returns: whether the register took the value.
    mutating func write(
        _ index: UInt32, _ value: UInt64, by writer: RegisterUser, hardwareConfiguration: UInt64
    ) -> Bool {
        let isSwitch = value == 0 || value == .max
        switch index {
        case MSR.machineCheckCapabilities: return writer == .client && value == capabilities
        case MSR.machineCheckStatus: status = value
        case MSR.machineCheckControl:
            let exists = capabilities & Capabilities.control != 0
            guard isSwitch, exists || writer == .client && value == 0 else { return false }
            control = value
        case MSR.machineCheckBank0...MSR.machineCheckBankLast:
            let place = Int(index - MSR.machineCheckBank0)
            guard place < bankCount * 4 else { return false }
            switch place % 4 {
            // Some kernels clear bit 0 or 10 of a control register, for the sake of real processors.
            case 0: guard value == 0 || value | 1 << 10 | 1 == .max else { return false }
            case 1:
                let isAllowed = writer == .client || hardwareConfiguration & Self.statusWrites != 0
                guard value == 0 || isAllowed else { return false }
            default: break
            }
            setRegister(place, value)
        default:
            return writer == .client && value == 0 && Int(index - MSR.machineCheckBankControl0) < bankCount
        }
        return true
    }

    // MARK: Errors

    /// What an error leads to.
    enum Outcome {
        case nothing
        /// #MC.
        case exception
        case tripleFault
    }

    /// Whether an error names a bank that exists, and is valid.
    func accepts(_ error: kvm_x86_mce) -> Bool { error.bank < bankCount && error.status & Status.valid != 0 }

    /// `KVM_X86_SET_MCE`: records an error that ``accepts(_:)`` takes.
    ///
    /// - Parameter isEnabled: CR4.MCE.
    mutating func record(_ error: kvm_x86_mce, isEnabled: Bool) -> Outcome {
        let place = Int(error.bank) * 4
        let isUncorrected = error.status & Status.uncorrected != 0
        let severe = Status.contextCorrupted | Status.signalled | Status.actionRequired
        if isUncorrected, error.mcg_status == 0, error.status & severe == 0 {
            // No action is required.
            status = 0
            store(error, at: place, status: error.status)
            return .nothing
        }
        let old = register(place + 1)
        let overflow = old & Status.valid != 0 ? Status.overflow : 0
        if isUncorrected {
            let isReported = capabilities & Capabilities.control == 0 || control == .max
            guard isReported, register(place) == .max else { return .nothing }
            guard status & Self.isInProgress == 0, isEnabled else { return .tripleFault }
            status = error.mcg_status
            store(error, at: place, status: error.status | overflow)
            return .exception
        }
        if old & Status.valid == 0 || old & Status.uncorrected == 0 {
            store(error, at: place, status: error.status | overflow)
        } else {
            setRegister(place + 1, old | Status.overflow)
        }
        return .nothing
    }

    private mutating func store(_ error: kvm_x86_mce, at place: Int, status: UInt64) {
        setRegister(place + 1, status)
        setRegister(place + 2, error.addr)
        setRegister(place + 3, error.misc)
    }
}
