import CZydis

/// A register operand, taken apart.
struct RegisterName {
    enum Kind { case general, vector, mmx, x87, segment, control, debug, other }

    var kind: Kind
    /// The number in the encoding, 0…15.
    var number: UInt8
    /// For general registers, the width in bits.
    var width: UInt8 = 0
    /// AH, CH, DH or BH; `number` is then that of the register it is a part of.
    var isHighByte = false

    init(_ register: ZydisRegister) {
        let value = register.rawValue
        func number(from first: ZydisRegister) -> UInt8 { UInt8(truncatingIfNeeded: value &- first.rawValue) }
        switch value {
        case ZYDIS_REGISTER_AL.rawValue...ZYDIS_REGISTER_BL.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_AL), 8)
        case ZYDIS_REGISTER_AH.rawValue...ZYDIS_REGISTER_BH.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_AH), 8)
            isHighByte = true
        case ZYDIS_REGISTER_SPL.rawValue...ZYDIS_REGISTER_R15B.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_SPL) + 4, 8)
        case ZYDIS_REGISTER_AX.rawValue...ZYDIS_REGISTER_R15W.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_AX), 16)
        case ZYDIS_REGISTER_EAX.rawValue...ZYDIS_REGISTER_R15D.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_EAX), 32)
        case ZYDIS_REGISTER_RAX.rawValue...ZYDIS_REGISTER_R15.rawValue:
            self.init(.general, number(from: ZYDIS_REGISTER_RAX), 64)
        case ZYDIS_REGISTER_ST0.rawValue...ZYDIS_REGISTER_ST7.rawValue:
            self.init(.x87, number(from: ZYDIS_REGISTER_ST0))
        case ZYDIS_REGISTER_MM0.rawValue...ZYDIS_REGISTER_MM7.rawValue:
            self.init(.mmx, number(from: ZYDIS_REGISTER_MM0))
        case ZYDIS_REGISTER_XMM0.rawValue...ZYDIS_REGISTER_XMM15.rawValue:
            self.init(.vector, number(from: ZYDIS_REGISTER_XMM0))
        case ZYDIS_REGISTER_YMM0.rawValue...ZYDIS_REGISTER_YMM15.rawValue:
            self.init(.vector, number(from: ZYDIS_REGISTER_YMM0))
        case ZYDIS_REGISTER_ES.rawValue...ZYDIS_REGISTER_GS.rawValue:
            self.init(.segment, number(from: ZYDIS_REGISTER_ES))
        case ZYDIS_REGISTER_CR0.rawValue...ZYDIS_REGISTER_CR15.rawValue:
            self.init(.control, number(from: ZYDIS_REGISTER_CR0))
        case ZYDIS_REGISTER_DR0.rawValue...ZYDIS_REGISTER_DR15.rawValue:
            self.init(.debug, number(from: ZYDIS_REGISTER_DR0))
        default:
            self.init(.other, 0)
        }
    }

    private init(_ kind: Kind, _ number: UInt8, _ width: UInt8 = 0) {
        self.kind = kind
        self.number = number
        self.width = width
    }
}
