import Testing
import Translator
import X86

@Suite struct SystemRealModeTests {
    @Test func interruptAndReturn() throws {
        let m = try SystemMachine()
        m.processor.system.idtr = DescriptorTableRegister(base: 0, limit: 0x3FF)
        m.store(0x1234_5678 as UInt32, at: 0x21 * 4)
        m.processor.setSegment(.cs, .realMode(selector: 0x100, isCode: true))
        m.processor.setSegment(.ss, .realMode(selector: 0x900, isCode: false))
        m.state.rip = 0x50
        // The frame wraps around at the end of the 64 KiB stack; the upper half of ESP stays.
        m.state[.rsp] = 0xABCD_0002
        m.state.rflags = 0x3303
        #expect(m.execute("int 21h", 0xCD, 0x21) == nil)
        #expect(m.state.rip == 0x5678)
        #expect(m.processor.system.cs.base == 0x12340)
        #expect(m.state[.rsp] == 0xABCD_FFFC)
        #expect(m.state.rflags == 0x3003)
        #expect(m.load(0x9000) as UInt16 == 0x3303)
        #expect(m.slots(2, of: UInt16.self, at: 0x18FFC) == [0x52, 0x100])
        #expect(m.execute("iret", 0xCF) == nil)
        #expect(m.state.rip == 0x52)
        #expect(m.processor.system.cs.base == 0x1000)
        #expect(m.state[.rsp] == 0xABCD_0002)
        #expect(m.state.rflags == 0x3303)
    }

    @Test func farCallAndReturn() throws {
        let m = try SystemMachine()
        m.state.rip = 0x52
        m.state[.rsp] = 0x8000
        #expect(m.execute("call 2000h:1234h", 0x9A, 0x34, 0x12, 0, 0x20) == nil)
        #expect(m.state.rip == 0x1234)
        #expect(m.processor.system.cs.base == 0x20000)
        #expect(m.execute("retf 4", 0xCA, 4, 0) == nil)
        #expect(m.state.rip == 0x57)
        #expect(m.processor.system.cs.selector == 0)
        #expect(m.state[.rsp] == 0x8004)
    }

    @Test func segmentLoadsKeepTheLimit() throws {
        let m = try SystemMachine()
        m.processor.system.ds.limit = 0xFFFF_FFFF
        m.state[.rax] = 0x7777
        #expect(m.execute("mov ds, ax", 0x8E, 0xD8) == nil)
        #expect(m.processor.system.ds.limit == 0xFFFF_FFFF)
        #expect(m.processor.system.ds.base == 0x77770)
        #expect(m.state.segmentBase(.ds) == 0x77770)
        m.state[.rsp] = 0x8000
        #expect(m.execute("push ds", 0x1E) == nil)
        #expect(m.execute("pop es", 0x07) == nil)
        #expect(m.processor.system.es.base == 0x77770)
        #expect(m.state[.rsp] == 0x8000)
    }

    @Test func farPointersAndTables() throws {
        let m = try SystemMachine()
        m.store(0x77 as UInt16, at: 0x600)
        m.store(0xAABB_CCDD as UInt32, at: 0x602)
        #expect(m.execute("lgdt [600h]", 0x0F, 0x01, 0x16, 0x00, 0x06) == nil)
        #expect(m.processor.system.gdtr == DescriptorTableRegister(base: 0xBB_CCDD, limit: 0x77))
        #expect(m.execute("lgdtd [600h]", 0x66, 0x0F, 0x01, 0x16, 0x00, 0x06) == nil)
        #expect(m.processor.system.gdtr == DescriptorTableRegister(base: 0xAABB_CCDD, limit: 0x77))
        m.store(0x5555_1111 as UInt32, at: 0x620)
        #expect(m.execute("lds si, [620h]", 0xC5, 0x36, 0x20, 0x06) == nil)
        #expect(m.state[.rsi] == 0x1111)
        #expect(m.processor.system.ds.base == 0x55550)
        // These need descriptors.
        #expect(m.execute("lldt ax", 0x0F, 0x00, 0xD0) == .invalidOpcode)
        #expect(m.execute("str ax", 0x0F, 0x00, 0xC8) == .invalidOpcode)
        #expect(m.execute("lar ax, ax", 0x0F, 0x02, 0xC0) == .invalidOpcode)
    }

    @Test func boundAndOverflow() throws {
        let m = try SystemMachine()
        m.store(slots: [0xFFFE, 5] as [UInt16], at: 0x9000)
        m.state[.rbx] = 0x9000
        for (index, isInside) in [(0xFFFD, false), (0xFFFE, true), (0, true), (5, true), (6, false)] {
            m.state[.rax] = UInt64(index)
            #expect(m.execute("bound ax, [bx]", 0x62, 0x07) == (isInside ? nil : .exception(.boundRange)))
        }
        m.processor.system.idtr = DescriptorTableRegister(base: 0, limit: 0x3FF)
        m.store(0x0007_0042 as UInt32, at: 16)
        m.state[.rsp] = 0x8000
        m.state.rip = 0x10
        m.state.rflags = 2
        #expect(m.execute("into", 0xCE) == nil)
        #expect(m.state.rip == 0x11)
        m.state.rflags = 0x802
        #expect(m.execute("into", 0xCE) == nil)
        #expect(m.state.rip == 0x42)
        #expect(m.processor.system.cs.base == 0x70)
    }

    @Test func shutdownWithoutVectors() throws {
        let m = try SystemMachine()
        m.processor.system.idtr.limit = 0
        #expect(m.processor.deliverWithEscalation(PendingEvent(.invalidOpcode)) == .shutdown)
    }

    @Test func interruptFlagAndHalt() throws {
        let m = try SystemMachine()
        #expect(m.execute("sti", 0xFB) == nil)
        #expect(m.state.systemFlags & RFlags.interrupt != 0)
        #expect(m.processor.system.interruptShadow)
        m.processor.system.interruptShadow = false
        #expect(m.execute("sti", 0xFB) == nil)
        #expect(!m.processor.system.interruptShadow, "only a change of IF delays interrupts")
        #expect(m.execute("hlt", 0xF4) == nil)
        #expect(m.processor.system.activity == .halted)
        #expect(m.execute("cli", 0xFA) == nil)
        #expect(m.state.systemFlags & RFlags.interrupt == 0)
    }
}
