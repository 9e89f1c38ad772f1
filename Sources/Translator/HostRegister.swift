import X86

/// A general-purpose register of the host, numbered as instructions encode it.
///
/// Translated code keeps 13 guest registers in host registers and three in memory:
///
/// | guest | host |
/// |---|---|
/// | rax rdx rbx rbp rdi r8 r12–r15 | the same |
/// | rcx | r9 |
/// | rsp | r10 |
/// | rsi | r11 |
/// | r9 r10 r11 | their slots in ``CPUState`` |
///
/// Host rcx and rsi are scratch: `pext` and `jrcxz` want rcx, and the second scratch register must be a legacy one, because
/// an instruction that names AH…BH cannot carry a REX prefix. Host rsp stays the host's stack.
struct HostRegister: Equatable {
    let number: UInt8

    static let rax = HostRegister(number: 0)
    static let rcx = HostRegister(number: 1)
    static let rdx = HostRegister(number: 2)
    static let rbx = HostRegister(number: 3)
    static let rsp = HostRegister(number: 4)
    static let rbp = HostRegister(number: 5)
    static let rsi = HostRegister(number: 6)
    static let rdi = HostRegister(number: 7)
    static let r8 = HostRegister(number: 8)
    static let r9 = HostRegister(number: 9)
    static let r10 = HostRegister(number: 10)
    static let r11 = HostRegister(number: 11)
    static let r12 = HostRegister(number: 12)
    static let r13 = HostRegister(number: 13)
    static let r14 = HostRegister(number: 14)
    static let r15 = HostRegister(number: 15)

    /// The scratch register that holds addresses.
    static let address = rsi
    /// The scratch register that holds everything else.
    static let scratch = rcx
    /// Where guest RSP lives.
    static let stack = r10
    /// Where guest RCX lives.
    static let counter = r9

    /// The register that holds guest register `guest`, or nil if it lives in memory.
    static func holding(_ guest: UInt8) -> HostRegister? {
        switch guest & 15 {
        case 1: r9
        case 4: r10
        case 6: r11
        case 9, 10, 11: nil
        default: HostRegister(number: guest & 15)
        }
    }

    /// The guest registers that live in host registers, in guest order.
    static let mapped: [(guest: UInt8, host: HostRegister)] = (0..<16).compactMap { guest in
        holding(UInt8(guest)).map { (UInt8(guest), $0) }
    }
}
