import Testing
import X86
import Translator

@Test func sumLoop() throws {
    let m = try BareMachine()
    m.enterLongMode(at: 0x8000, stack: 0x7000)
    // xor eax,eax; mov ecx,10; l: add eax,ecx; push rax; pop r9; call f; dec ecx; jnz l; hlt ; f: mov [0x9000+rcx*8], r9; ret
    m.load([0x31,0xC0, 0xB9,10,0,0,0, 0x01,0xC8, 0x50, 0x41,0x59, 0xE8,5,0,0,0, 0xFF,0xC9, 0x75,0xF2, 0xF4,
            0x4C,0x89,0x0C,0xCD,0,0x90,0,0, 0xC3], at: 0x8000)
    let r = m.processor.run()
    print(r, m.processor.state[.rax], String(m.processor.state.rip, radix: 16), m.processor.state[.rcx], m.processor.state[.rsp], m.processor.state[.r9])
    #expect(m.processor.state[.rax] == 55)
    #expect((m.ram + 0x9000 + 8).load(as: UInt64.self) == 55)
    #expect((m.ram + 0x9000 + 80).load(as: UInt64.self) == 10)
}
