import Testing
import Translator
import X86

/// System calls in translated code: both ways, and what the registers that Swift keeps say afterwards.
@Suite struct SystemCallTests {
    private static var userCode: Int { 0xA000 }
    private static var kernelCode: Int { 0x9000 }

    private func machine(user: [UInt8], kernel: [UInt8]) throws -> BareMachine {
        let machine = try BareMachine()
        machine.enterLongMode(at: UInt64(Self.userCode), stack: 0x7000)
        machine.load(user, at: Self.userCode)
        machine.load(kernel, at: Self.kernelCode)
        let processor = machine.processor
        processor.system.efer |= EFER.syscall
        processor.system.star = 0x001B_0008 << 32
        processor.system.lstar = UInt64(Self.kernelCode)
        processor.system.syscallMask = 0x25_7FD5
        processor.system.kernelGSBase = 0x1111_0000
        processor.setBase(.gs, 0x2222_0000)
        return machine
    }

    private func enterUserMode(_ machine: BareMachine) {
        machine.processor.system.cs = Segment(selector: 0x3B, base: 0, limit: ~0, attributes: 0xA0FB)
        machine.processor.system.ss = Segment(selector: 0x33, base: 0, limit: ~0, attributes: 0xC0F3)
        machine.processor.system.cpl = 3
        machine.processor.modeDidChange()
    }

    /// swapgs; mov r12,cr2; inc rbx; cmp rbx,COUNT; jae l; swapgs; sysretq; l: hlt
    private func kernel(count: UInt8) -> [UInt8] {
        [
            0x0F, 0x01, 0xF8, 0x41, 0x0F, 0x20, 0xD4, 0x48, 0xFF, 0xC3, 0x48, 0x83, 0xFB, count, 0x73, 0x06, 0x0F, 0x01,
            0xF8, 0x48, 0x0F, 0x07, 0xF4
        ]
    }

    /// l: stc; syscall; adc r13,0; jmp l
    private static let user: [UInt8] = [0xF9, 0x0F, 0x05, 0x49, 0x83, 0xD5, 0x00, 0xEB, 0xF7]

    @Test func thereAndBack() throws {
        let machine = try machine(user: Self.user, kernel: kernel(count: 100))
        let processor = machine.processor
        enterUserMode(machine)
        processor.system.cr2 = 0x1234
        processor.state.rflags = 0x20_0202
        #expect(processor.run() == .halted)
        let system = processor.system
        #expect(system.cpl == 0 && system.cs.selector == 8 && system.ss.selector == 0x10 && system.cs.isLong)
        #expect(system.gs.base == 0x1111_0000 && system.kernelGSBase == 0x2222_0000)
        #expect(processor.state.segmentBase(.gs) == 0x1111_0000)
        #expect(processor.state[.rbx] == 100 && processor.state[.r12] == 0x1234)
        // CF comes back with SYSRET.
        #expect(processor.state[.r13] == 99)
        #expect(processor.state[.rcx] == UInt64(Self.userCode + 3))
        #expect(processor.state[.r11] & ~(RFlags.arithmetic & ~1) == 0x20_0203)
        #expect(processor.state.rflags & ~RFlags.arithmetic == 2)
        #expect(processor.state.rip == UInt64(Self.kernelCode + 23))
    }

    /// The same with a mask that translated code leaves to Swift.
    @Test func whatTheMaskMustClear() throws {
        let machine = try machine(user: Self.user, kernel: kernel(count: 10))
        let processor = machine.processor
        enterUserMode(machine)
        processor.system.syscallMask = 0x200
        #expect(processor.run() == .halted)
        #expect(processor.state[.rbx] == 10 && processor.state[.r13] == 9 && processor.system.cpl == 0)
        #expect(processor.system.gs.base == 0x1111_0000)
    }

    @Test func interruptedInUserMode() throws {
        let machine = try machine(user: Self.user, kernel: kernel(count: 100))
        let processor = machine.processor
        enterUserMode(machine)
        // The third pass through user code finds memory that is not there: no IDT, so it shuts down at CPL 3.
        machine.load([0xF9, 0x0F, 0x05, 0x83, 0xFB, 0x03, 0x75, 0xF8, 0x8B, 0x04, 0x25, 0, 0, 0, 0x7F], at: Self.userCode)
        #expect(processor.run() == .shutdown)
        #expect(processor.system.cpl == 3 && processor.system.cs.selector == 0x2B && processor.system.ss.selector == 0x23)
        #expect(processor.system.gs.base == 0x2222_0000 && processor.system.kernelGSBase == 0x1111_0000)
        #expect(processor.state.rip == UInt64(Self.userCode + 8) && processor.state[.rbx] == 3)
    }

    @Test func withoutTheFeature() throws {
        let machine = try machine(user: Self.user, kernel: kernel(count: 100))
        enterUserMode(machine)
        machine.processor.system.efer &= ~EFER.syscall
        #expect(machine.processor.run() == .shutdown)
        #expect(machine.processor.system.cpl == 3 && machine.processor.state.rip == UInt64(Self.userCode + 1))
    }

    /// User code that jumps to the kernel's code with upper bits that turn its mode's tag into the kernel's.
    @Test(arguments: [[0xFF, 0xE0], [0xFF, 0xD0], [0x50, 0xC3]] as [[UInt8]])
    func nonCanonicalTargets(jump: [UInt8]) throws {
        // mov [B000h],rax; hlt
        let machine = try machine(user: jump, kernel: [0x48, 0x89, 0x04, 0x25, 0x00, 0xB0, 0, 0, 0xF4])
        let processor = machine.processor
        let (code, stack) = (processor.system.cs, processor.system.ss)
        for distance in -300...300 where distance != 0 {
            processor.system.cs = code
            processor.system.ss = stack
            processor.system.cpl = 0
            processor.modeDidChange()
            processor.state.rip = UInt64(Self.kernelCode)
            #expect(processor.run() == .halted)
            machine.store(7, at: 0xB000)
            processor.system.activity = .running
            enterUserMode(machine)
            processor.state.rip = UInt64(Self.userCode)
            processor.state[.rsp] = 0x7000
            processor.state[.rax] = UInt64(bitPattern: Int64(distance) << 48) &+ UInt64(Self.kernelCode)
            #expect(processor.run() == .shutdown)
            #expect(machine.word(at: 0xB000) == 7)
        }
    }
}
