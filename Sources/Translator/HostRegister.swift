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
package struct HostRegister: Equatable, Sendable {
    package let number: UInt8

    package init(number: UInt8) { self.number = number }

    package static let rax = HostRegister(number: 0)
    package static let rcx = HostRegister(number: 1)
    package static let rdx = HostRegister(number: 2)
    package static let rbx = HostRegister(number: 3)
    package static let rsp = HostRegister(number: 4)
    package static let rbp = HostRegister(number: 5)
    package static let rsi = HostRegister(number: 6)
    package static let rdi = HostRegister(number: 7)
    package static let r8 = HostRegister(number: 8)
    package static let r9 = HostRegister(number: 9)
    package static let r10 = HostRegister(number: 10)
    package static let r11 = HostRegister(number: 11)
    package static let r12 = HostRegister(number: 12)
    package static let r13 = HostRegister(number: 13)
    package static let r14 = HostRegister(number: 14)
    package static let r15 = HostRegister(number: 15)

    /// The scratch register that holds addresses.
    package static let address = rsi
    /// The scratch register that holds everything else.
    package static let scratch = rcx
    /// Where guest RSP lives.
    package static let stack = r10
    /// Where guest RCX lives.
    package static let counter = r9

    /// The register that holds guest register `guest`, or nil if it lives in memory.
    package static func holding(_ guest: UInt8) -> HostRegister? {
        switch guest & 15 {
        case 1: r9
        case 4: r10
        case 6: r11
        case 9, 10, 11: nil
        default: HostRegister(number: guest & 15)
        }
    }

    /// The guest registers that live in host registers, in guest order.
    package static let mapped: [(guest: UInt8, host: HostRegister)] = (0..<16).compactMap { guest in
        holding(UInt8(guest)).map { (UInt8(guest), $0) }
    }
}
