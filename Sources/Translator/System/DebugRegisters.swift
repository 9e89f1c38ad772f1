import CZydis
import X86

// MOV to and from DR0–DR7.

extension Processor {
    func executeMoveFromDebug(_ i: DecodedInstruction) throws(GuestFault) {
        let number = try debugRegisterNumber(i.operand(1).register)
        writeRegister(i.operand(0).register, debugRegister(number))
        advance(i)
    }

    func executeMoveToDebug(_ i: DecodedInstruction) throws(GuestFault) {
        let number = try debugRegisterNumber(i.operand(0).register)
        let value = readRegister(i.operand(1).register)
        if number >= 6 && value >> 32 != 0 { throw .generalProtection() }
        setDebugRegister(number, value)
        advance(i)
        modeDidChange()
    }

    /// The debug register an instruction may access: 0…3, 6 or 7.
    private func debugRegisterNumber(_ register: ZydisRegister) throws(GuestFault) -> Int {
        var number = Int(register.rawValue) - Int(ZYDIS_REGISTER_DR0.rawValue)
        if number > 7 { throw .invalidOpcode }
        if number == 4 || number == 5 {
            // Without debugging extensions these name DR6 and DR7.
            if system.cr4 & CR4.debuggingExtensions != 0 { throw .invalidOpcode }
            number += 2
        }
        try requirePrivilege()
        if breakpoints.control & DebugRegister.generalDetect != 0 {
            throw .exception(.debug(DebugRegister.accessDetected))
        }
        return number
    }

    /// DR0…DR3, DR6 or DR7.
    public func debugRegister(_ number: Int) -> UInt64 {
        switch number {
        case 0: system.debugAddresses.0
        case 1: system.debugAddresses.1
        case 2: system.debugAddresses.2
        case 3: system.debugAddresses.3
        case 6: system.dr6
        default: system.dr7
        }
    }

    /// Writes DR0…DR3, DR6 or DR7; bits that are fixed keep their values.
    public func setDebugRegister(_ number: Int, _ value: UInt64) {
        switch number {
        case 0: system.debugAddresses.0 = value
        case 1: system.debugAddresses.1 = value
        case 2: system.debugAddresses.2 = value
        case 3: system.debugAddresses.3 = value
        case 6: system.dr6 = value & DebugRegister.writable6 | DebugRegister.fixed6
        default: system.dr7 = value & DebugRegister.writable7 | DebugRegister.fixed7
        }
    }
}
