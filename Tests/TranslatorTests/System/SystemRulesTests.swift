import Testing
import Translator
import X86

@Suite struct SystemRulesTests {
    @Test func segmentDescriptor() {
        let descriptor = SegmentDescriptor(0x12CF_9B34_5678_FEDC)
        #expect(descriptor.base == 0x1234_5678)
        #expect(descriptor.limit == 0xFFED_CFFF)
        #expect(descriptor.isCode && !descriptor.isConformingCode && descriptor.isReadable && descriptor.isAccessed)
        #expect(descriptor.isDefault32 && !descriptor.isLong && descriptor.isPresent)
        #expect(descriptor.privilegeLevel == 0)
        let segment = SegmentDescriptor(0x12CF_FA34_5678_FEDC).segment(selector: 0x1B)
        #expect(segment == Segment(selector: 0x1B, base: 0x1234_5678, limit: 0xFFED_CFFF, attributes: 0xC0FB))
        #expect(segment.privilegeLevel == 3)
        let small = SegmentDescriptor(0x0000_8900_3000_0067)
        #expect(small.limit == 0x67 && small.systemType == .availableTaskState32 && !small.isReadable)
        #expect(SegmentDescriptor(0x0000_9600_0000_0000).isWritableData, "expand-down data")
        #expect(!SegmentDescriptor(0x0000_9A00_0000_0000).isWritableData)
    }

    @Test func gateDescriptor() {
        let gate = GateDescriptor(low: 0x8765_EF03_0008_4321, high: 0xFFFF_FFFF)
        #expect(gate.kind == .trap && gate.offset == 0xFFFF_FFFF_8765_4321 && gate.selector == 8)
        #expect(gate.interruptStack == 3 && gate.privilegeLevel == 3 && gate.isPresent)
        let old = GateDescriptor(low: 0x8765_8604_0008_4321)
        #expect(old.kind == .interrupt16 && old.offset == 0x4321)
        #expect(GateDescriptor(low: 0x0000_EC05_0040_0000).parameterCount == 5)
        #expect(GateDescriptor(low: 0, high: 0x1F00 << 32).upperType == 0x1F)
        #expect(GateDescriptor(low: 0x0000_9E00_0000_0000).kind == nil, "a segment is no gate")
    }

    @Test func taskStateOffsets() {
        #expect(TaskState.stackOffset(privilegeLevel: 2, isWide: true) == 0x14)
        #expect(TaskState.stackOffset(privilegeLevel: 2, isWide: false) == 0x0A)
        #expect(TaskState.stackPointerOffset64(privilegeLevel: 1) == 0x0C)
        #expect(TaskState.interruptStackOffset(7) == 0x54)
    }

    /// Intel SDM volume 3, table 6-5.
    @Test func escalation() {
        let table: [(UInt8, UInt8, Escalation)] = [
            (6, 13, .second), (6, 14, .second), (1, 12, .second),
            (13, 6, .second), (13, 13, .doubleFault), (0, 11, .doubleFault), (10, 14, .second),
            (14, 6, .second), (14, 13, .doubleFault), (14, 14, .doubleFault), (14, 10, .doubleFault),
            (8, 13, .shutdown), (8, 14, .shutdown), (8, 8, .shutdown)
        ]
        for (first, second, expected) in table {
            let first = ExceptionClass(PendingEvent(kind: .exception, vector: first))
            #expect(first.followed(by: ExceptionClass(exceptionVector: second)) == expected)
        }
        for kind in [PendingEvent.Kind.externalInterrupt, .nonMaskableInterrupt, .softwareInterrupt] {
            #expect(ExceptionClass(PendingEvent(kind: kind, vector: 13)) == .benign)
        }
    }

    @Test func savedFlags() {
        for (vector, isSet) in [(1, false), (3, false), (6, true), (8, false), (13, true), (14, true)] {
            let image = PendingEvent(kind: .exception, vector: UInt8(vector)).flagsImage(of: 2)
            #expect((image & RFlags.resume != 0) == isSet)
        }
        #expect(PendingEvent(kind: .externalInterrupt, vector: 14).flagsImage(of: 2) == 2)
    }

    @Test func controlRegisterRules() {
        typealias Rules = ControlRegisterRules
        #expect(Rules.isValidCR0(0x8000_0001) && !Rules.isValidCR0(0x8000_0000))
        #expect(Rules.isValidCR0(0x6000_0010) && !Rules.isValidCR0(0x2000_0010) && !Rules.isValidCR0(1 << 32))
        #expect(Rules.effectiveCR0(0x1FFF_FFFF) == 0x0005_003F)
        let paged = CR0.paging | CR0.protection
        func allows(_ new: UInt64, _ old: UInt64, _ cr4: UInt64, _ efer: UInt64, _ isLong: Bool) -> Bool {
            Rules.allowsCR0(new, over: old, cr4: cr4, efer: efer, hasLongCode: isLong)
        }
        #expect(allows(paged, 1, 0, 0, false))
        #expect(!allows(paged, 1, 0, EFER.longModeEnable, false))
        #expect(allows(paged, 1, 0x20, EFER.longModeEnable, false))
        #expect(!allows(paged, 1, 0x20, EFER.longModeEnable, true))
        #expect(!allows(1, paged, 0x20, 0x500, true))
        #expect(allows(1, paged, 0x20, 0x500, false))
        #expect(!allows(1, paged, 0x2_0020, 0x500, false))
        #expect(Rules.cr4Bits(leaf1ECX: 0, leaf1EDX: 0, leaf7EBX: 0, leaf7ECX: 0) == 0x140)
        #expect(Rules.cr4Bits(leaf1ECX: ~0, leaf1EDX: ~0, leaf7EBX: ~0, leaf7ECX: ~0) == 0x37_0FFF)
        #expect(Rules.allowsEFER(0x901, over: 0, allowed: 0x901, cr0: 1))
        #expect(!Rules.allowsEFER(0x901, over: 0, allowed: 0x101, cr0: 1))
        #expect(!Rules.allowsEFER(0x901, over: 0x801, allowed: 0x901, cr0: paged))
        for (value, isValid) in [(1, true), (3, true), (7, true), (5, false), (2, false), (0xE7, true), (0x67, false)] {
            #expect(Rules.isValidXCR0(UInt64(value), supported: 0xE7) == isValid)
        }
        #expect(!Rules.isValidXCR0(7, supported: 3))
    }

    @Test func interruptReturnFlags() {
        func flags(_ image: UInt64, over old: UInt64, _ size: Int, cpl: UInt8, iopl: UInt8 = 0) -> UInt64 {
            InterruptReturn.flags(
                image, over: old, slotByteCount: size, cpl: cpl, ioPrivilegeLevel: iopl, mayChangeVirtual: true)
        }
        #expect(flags(~0, over: 2, 8, cpl: 0) & RFlags.all == RFlags.all & ~RFlags.virtual8086)
        #expect(flags(~0, over: 2, 8, cpl: 3) & (RFlags.ioPrivilege | RFlags.interrupt) == 0)
        #expect(flags(0, over: 0x3202, 8, cpl: 3, iopl: 3) == 0x3002)
        #expect(flags(~0, over: 2, 2, cpl: 0) >> 16 == 0)
    }

    @Test func stackGeometry() {
        let narrow = StackGeometry(mask: 0xFFFF, base: 0x1_0000)
        #expect(narrow.linearAddress(0x1_2345) == 0x1_2345)
        #expect(narrow.replacing(0x1122_3344, with: 0x1_FFFE) == 0x1122_FFFE)
        let wide = StackGeometry(mask: 0xFFFF_FFFF, base: 0xFFFF_FFF0)
        #expect(wide.linearAddress(0x20) == 0x10)
        #expect(wide.replacing(~0, with: 0x1_0000_0000) == 0)
        #expect(StackGeometry.flat64.linearAddress(~7) == ~7)
    }

    @Test func operandForms() throws {
        let m = try SystemMachine()
        try m.enterLongMode()
        m.state[.rbx] = 0xA000
        m.store(~0 as UInt64, at: 0xA000)
        // Memory takes 16 bits of a selector whatever the operand size, registers all of it.
        #expect(m.execute("mov [rbx], cs", 0x48, 0x8C, 0x0B) == nil)
        #expect(m.load(0xA000) as UInt64 == 0xFFFF_FFFF_FFFF_0008)
        m.state[.rcx] = ~0
        #expect(m.execute("mov cx, cs", 0x66, 0x8C, 0xC9) == nil)
        #expect(m.state[.rcx] == 0xFFFF_FFFF_FFFF_0008)
        #expect(m.execute("mov ecx, cs", 0x8C, 0xC9) == nil)
        #expect(m.state[.rcx] == 8)
        #expect(try m.decode(0xCB).operandWidth == 32 && m.decode(0x48, 0xCB).operandWidth == 64)
        #expect(try m.decode(0x0F, 0xA0).operandWidth == 64 && m.decode(0x0F, 0x07).operandWidth == 32)
    }
}
