import KVMInterface
import SystemPackage

extension VCPU {
    /// Gives the processor the registers with which it starts the guest.
    package func enter(_ state: BootState) throws(Errno) {
        var special = try specialRegisters()
        special.cs = SegmentState(state.cs)
        special.ds = SegmentState(state.data)
        special.es = SegmentState(state.data)
        special.ss = SegmentState(state.data)
        special.fs = SegmentState(state.extra)
        special.gs = SegmentState(state.extra)
        special.tr = SegmentState(state.tr)
        special.ldt = SegmentState(state.ldt)
        special.gdt.base = state.gdtBase
        special.gdt.limit = state.gdtLimit
        special.idt.base = state.idtBase
        special.idt.limit = state.idtLimit
        special.cr0 = state.cr0
        special.cr3 = state.cr3
        special.cr4 = state.cr4
        special.efer = state.efer
        try setSpecialRegisters(special)

        var general = GeneralRegisters()
        general.rip = state.rip
        general.rsp = state.rsp
        general.rbx = state.rbx
        general.rsi = state.rsi
        general.rflags = state.rflags
        try setRegisters(general)
    }
}

extension SegmentState {
    /// The hidden part of a segment register with the loader's descriptor in it.
    fileprivate init(_ segment: BootState.Segment) {
        let attributes = segment.attributes
        func bit(_ number: UInt16) -> UInt8 { UInt8(attributes >> number & 1) }
        self.init()
        base = segment.base
        limit = segment.limit
        selector = segment.selector
        type = UInt8(attributes & 0xF)
        s = bit(4)
        dpl = UInt8(attributes >> 5 & 3)
        present = bit(7)
        avl = bit(12)
        l = bit(13)
        db = bit(14)
        g = bit(15)
        unusable = present == 0 ? 1 : 0
    }
}
