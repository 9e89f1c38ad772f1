import CHost
import KVMInterface
import SystemPackage
import Testing

/// Small guests, run on the kernel's KVM and in user space: the same exits in the same order, the same registers, the same
/// memory.
@Suite(.serialized, .enabled(if: KernelDevice.isUsable, Comment(rawValue: KernelDevice.missing)))
struct GuestCorpusTests {
    @Test(arguments: Guest.all) func sameOnBoth(guest: Guest) throws { try compare(guest) }

    /// Vectors, breakpoints, extended state and user mode.
    @Test(
        .enabled(if: KernelDevice.isNative, Comment(rawValue: KernelDevice.notNative)), arguments: Guest.native)
    func sameOnBothNatively(guest: Guest) throws { try compare(guest) }

    private func compare(_ guest: Guest) throws {
        let user = try Account(of: guest, on: .user)
        let kernel = try Account(of: guest, on: .kernel)
        #expect(user.exits == kernel.exits)
        // After a shutdown the registers are whatever the processor left, or those of a reset.
        if guest.end != "shutdown" { #expect(user.state == kernel.state) }
        #expect(user.memory == kernel.memory)
        #expect(user.exits.last == guest.end, "\(user.exits)")
    }
}

/// What a guest did.
private struct Account {
    var exits: [String] = []
    var state: [String] = []
    /// A sum of all guest memory.
    var memory: UInt64 = 0

    private static var exitLimit: Int { 64 }

    init(of guest: Guest, on core: Core) throws {
        let machine = try TestMachine(core.make(), code: guest.code, mode: guest.mode)
        var isOver = false
        while !isOver, exits.count < Self.exitLimit {
            let exit = try machine.run()
            switch exit {
            case .io(let access):
                // Whether a string comes in one exit or in several is left to the core.
                for start in stride(from: 0, to: access.data.count, by: access.byteCount) {
                    let element = UnsafeMutableRawBufferPointer(
                        rebasing: access.data[start..<start + access.byteCount])
                    add("io", UInt64(access.port), access.isWrite, element)
                }
            case .mmio(let access): add("mmio", access.address, access.isWrite, access.data)
            case .internalError(let suberror, _):
                exits.append("internal error \(suberror)")
                isOver = true
            default:
                exits.append("\(exit)")
                isOver = true
            }
        }
        try describeState(of: machine.vcpu)
        memory = machine.memory.reduce(14_695_981_039_346_656_037) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 }
    }

    /// Notes an access and answers it. What devices answer depends on how often they were asked only.
    private mutating func add(
        _ kind: String, _ address: UInt64, _ isWrite: Bool, _ data: UnsafeMutableRawBufferPointer
    ) {
        let place = "\(kind) \(String(address, radix: 16)) \(data.count)"
        exits.append(isWrite ? place + data.map { " " + String($0, radix: 16) }.joined() : place)
        if isWrite { return }
        for index in data.indices { data[index] = UInt8(truncatingIfNeeded: exits.count &* 16 &+ index) }
    }

    private mutating func describeState(of vcpu: VCPU) throws {
        let general = try vcpu.registers()
        for child in Mirror(reflecting: general).children {
            guard let value = child.value as? UInt64 else { continue }
            state.append("\(child.label ?? "") \(String(value, radix: 16))")
        }
        let special = try vcpu.specialRegisters()
        for (name, value) in [
            ("cr0", special.cr0), ("cr2", special.cr2), ("cr3", special.cr3), ("cr4", special.cr4),
            ("cr8", special.cr8), ("efer", special.efer), ("gdt", special.gdt.base), ("idt", special.idt.base)
        ] {
            state.append("\(name) \(String(value, radix: 16))")
        }
        for (name, segment) in [
            ("cs", special.cs), ("ds", special.ds), ("es", special.es), ("ss", special.ss), ("fs", special.fs),
            ("gs", special.gs)
        ] {
            state.append("\(name) \(String(segment.selector, radix: 16)) \(String(segment.base, radix: 16))")
        }
        state.append("limits \(special.gdt.limit) \(special.idt.limit)")
    }
}
