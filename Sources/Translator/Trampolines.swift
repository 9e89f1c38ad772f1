import X86

/// The routines between Swift and translated code, at the start of the code buffer.
///
/// Blocks push a word that tells why they leave, and jump to `exit`, or call `fill`, in the same buffer.
struct Trampolines {
    /// `(code)`, with GS base at the active partition: loads the guest's registers and jumps to `code`; returns when the
    /// guest leaves.
    let enter: UInt64
    /// Where a block that leaves jumps to, the exit word on the stack: saves the guest's registers and returns from `enter`.
    let exit: UInt64
    /// Called by a block whose software-TLB lookup missed; see `fill`.
    let fill: UInt64
    /// Where the signal handler redirects a faulting block.
    let fault: UInt64
    /// Loads the guest's MXCSR, keeping the host's; and the reverse.
    let loadControl: UInt64
    let saveControl: UInt64
    /// Stores the current MXCSR in the state; and loads it from there.
    let storeMXCSR: UInt64
    let reloadMXCSR: UInt64
    /// Moves the guest's x87 registers from the state to the host; and the reverse, through the scratch image.
    let loadX87: UInt64
    let saveX87: UInt64
    let byteCount: Int

    /// Slots of the routine pointers in the state page.
    enum Slot: Int {
        case fillHandler

        var offset: Int { CPUState.routinesOffset + rawValue * 8 }
    }

    /// What `exitValue` carries in its top four bits.
    enum Exit: UInt32 {
        case none, attention, instruction, link, jumpMiss, needsX87, memory, fault, bounceDone
    }

    static var exitShift: UInt32 { 28 }
    static var exitValueMask: UInt32 { (1 << 28) - 1 }

    /// Scratch FXSAVE image, in the state page behind the bounce buffer.
    static var fxsaveScratchOffset: Int { 0x800 }

    init(into buffer: CodeBuffer) {
        var e = buffer.emitter(from: 0)
        let start = e.address

        enter = e.address
        for register in [HostRegister.rbx, .rbp, .r12, .r13, .r14, .r15] { e.push(register) }
        e.bytes(0x48, 0x83, 0xEC, 0x08)  // sub rsp, 8
        e.store(.rsp, .state(CPUState.hostStackPointerOffset))
        e.store(.rdi, .state(CPUState.temporariesOffset))
        Self.loadVectors(&e)
        e.loadFlags()
        Self.loadGeneral(&e)
        e.jump(through: .state(CPUState.temporariesOffset))

        e.align(16)
        fault = e.address
        e.store(Int32(bitPattern: Exit.fault.rawValue << Self.exitShift), .state(CPUState.exitValueOffset), wide: false)
        let save = e.jump()
        exit = e.address
        e.bytes(0x65, 0x8F)  // pop gs:[exitValue]
        e.modRM(reg: 0, .state(CPUState.exitValueOffset))
        e.bind(save)
        Self.storeGeneral(&e)
        e.saveFlags()
        Self.storeVectors(&e)
        let leave = e.address
        e.load(.rsp, .state(CPUState.hostStackPointerOffset))
        e.bytes(0x48, 0x83, 0xC4, 0x08)  // add rsp, 8
        for register in [HostRegister.r15, .r14, .r13, .r12, .rbp, .rbx] { e.pop(register) }
        e.ret()

        // The handler gets the state page and answers 0 to go on. rsi (the address) survives. The caller has pushed the
        // descriptor of the access, so with the return address the stack is aligned.
        e.align(16)
        fill = e.address
        Self.storeGeneral(&e)
        e.load(.rcx, .at(.rsp, 8))
        e.store(.rcx, .state(CPUState.exitValueOffset))
        e.saveFlags()
        e.store(.rsi, .state(CPUState.temporariesOffset))
        Self.storeVectors(&e)
        e.load(.rdi, .state(CPUState.selfOffset))
        e.call(through: .state(Slot.fillHandler.offset))
        e.bytes(0x85, 0xC0)  // test eax, eax
        let abandon = e.jump(condition: 5)
        Self.loadVectors(&e)
        e.loadFlags()
        Self.loadGeneral(&e)
        e.load(.rsi, .state(CPUState.temporariesOffset))
        e.bytes(0xC2, 0x08, 0x00)  // ret 8
        e.bind(abandon)
        e.store(
            Int32(bitPattern: Exit.memory.rawValue << Self.exitShift), .state(CPUState.exitValueOffset), wide: false)
        e.jump(to: leave)

        e.align(16)
        let mxcsr = Emitter.Memory.state(CPUState.fxsaveOffset + 24)
        let hostMXCSR = Emitter.Memory.state(CPUState.hostControlOffset)
        loadControl = e.address
        Self.control(&e, 3, hostMXCSR)
        Self.control(&e, 2, mxcsr)
        e.ret()
        saveControl = e.address
        Self.control(&e, 3, mxcsr)
        Self.control(&e, 2, hostMXCSR)
        e.ret()
        storeMXCSR = e.address
        Self.control(&e, 3, mxcsr)
        e.ret()
        reloadMXCSR = e.address
        Self.control(&e, 2, mxcsr)
        e.ret()
        loadX87 = e.address
        Self.control(&e, 3, mxcsr)
        e.bytes(0x65, 0x48, 0x0F, 0xAE)  // fxrstor64
        e.modRM(reg: 1, .state(CPUState.fxsaveOffset))
        e.ret()
        saveX87 = e.address
        e.bytes(0x65, 0x48, 0x0F, 0xAE)  // fxsave64
        e.modRM(reg: 0, .state(Self.fxsaveScratchOffset))
        e.bytes(0xDB, 0xE3)  // fninit
        e.ret()
        e.align(64)
        byteCount = Int(e.address - start)
        precondition(!e.hasOverflowed)
    }

    /// ldmxcsr (2) or stmxcsr (3).
    private static func control(_ e: inout Emitter, _ operation: UInt8, _ memory: Emitter.Memory) {
        e.bytes(0x65, 0x0F, 0xAE)
        e.modRM(reg: operation, memory)
    }

    private static func loadGeneral(_ e: inout Emitter) {
        for (guest, host) in HostRegister.mapped {
            e.load(host, .state(CPUState.generalRegistersOffset + Int(guest) * 8))
        }
    }

    private static func storeGeneral(_ e: inout Emitter) {
        for (guest, host) in HostRegister.mapped {
            e.store(host, .state(CPUState.generalRegistersOffset + Int(guest) * 8))
        }
    }

    private static func loadVectors(_ e: inout Emitter) {
        for i in 0..<16 { e.loadVector(UInt8(i), .state(CPUState.vectorRegistersOffset + i * 32)) }
    }

    private static func storeVectors(_ e: inout Emitter) {
        for i in 0..<16 { e.storeVector(UInt8(i), .state(CPUState.vectorRegistersOffset + i * 32)) }
    }

    /// Stores the routine pointers where translated code finds them.
    func install(in state: CPUState, fillHandler: UInt64) {
        state.base.storeBytes(of: fillHandler, toByteOffset: Slot.fillHandler.offset, as: UInt64.self)
    }
}
