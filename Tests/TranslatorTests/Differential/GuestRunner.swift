import Glibc
import Translator
import X86

/// Runs test cases through the translator, as user code of a minimal guest: every exception goes to a kernel that halts.
final class GuestRunner {
    private let images: MemoryImages
    private let machine: BareMachine
    private var processor: Processor { machine.processor }

    /// Guest physical addresses. Kernel structures are mapped at the same linear addresses, for the supervisor only.
    private enum Physical {
        static var tables: Int { 0x1000 }
        static var gdt: Int { 0x8000 }
        static var idt: Int { 0x9000 }
        static var taskState: Int { 0xA000 }
        /// 256 HLT instructions: one handler for each vector.
        static var handlers: Int { 0xB000 }
        static var stackTop: Int { 0xD000 }
        static var code: Int { 0x20000 }
        static var data: Int { 0x30000 }
        static var stack: Int { 0x40000 }
    }

    private enum Selector {
        static var kernelCode: UInt16 { 0x08 }
        static var kernelData: UInt16 { 0x10 }
        static var user32Code: UInt16 { 0x1B }
        static var userData: UInt16 { 0x23 }
        static var userCode: UInt16 { 0x2B }
        static var taskState: UInt16 { 0x30 }
    }

    init(images: MemoryImages) throws {
        self.images = images
        machine = try BareMachine(byteCount: 1 << 20)
        writePageTables()
        writeDescriptors()
        memset(machine.ram + Physical.handlers, 0xF4, 256)
        processor.system.cr3 = UInt64(Physical.tables)
        processor.system.cr4 =
            CR4.physicalAddressExtension | CR4.fxsave | CR4.simdExceptions | CR4.xsave | CR4.fsgsbase
            | CR4.userModeInstructionPrevention
        processor.system.cr0 =
            CR0.protection | CR0.paging | CR0.writeProtect | CR0.numericError | CR0.monitorCoprocessor
        processor.system.efer = EFER.longModeEnable | EFER.longModeActive | EFER.noExecute
        processor.system.xcr0 = 7
        processor.system.gdtr = DescriptorTableRegister(base: UInt64(Physical.gdt), limit: 0x3F)
        processor.system.idtr = DescriptorTableRegister(base: UInt64(Physical.idt), limit: 0xFFF)
        processor.system.tr = Segment(
            selector: Selector.taskState, base: UInt64(Physical.taskState), limit: 0x67, attributes: 0x8B)
    }

    private func store(_ value: UInt64, at physical: Int) {
        machine.ram.storeBytes(of: value, toByteOffset: physical, as: UInt64.self)
    }

    private func writePageTables() {
        var nextTable = Physical.tables + 0x1000
        /// The table below entry `index` of `table`, made if there is none.
        func table(below table: Int, _ index: Int) -> Int {
            let entry = machine.ram.load(fromByteOffset: table + index * 8, as: UInt64.self)
            if entry != 0 { return Int(entry & ~0xFFF) }
            defer { nextTable += 0x1000 }
            store(UInt64(nextTable) | 7, at: table + index * 8)
            return nextTable
        }
        func map(_ linear: UInt64, _ physical: Int, pages: Int) {
            for page in 0..<pages {
                let address = linear + UInt64(page << 12)
                var level = Physical.tables
                for shift in [39, 30, 21] { level = table(below: level, Int(address >> UInt64(shift)) & 511) }
                store(UInt64(physical + page << 12) | 7, at: level + Int(address >> 12 & 511) * 8)
            }
        }
        map(TestArea.code, Physical.code, pages: TestArea.codePages)
        map(TestArea.data, Physical.data, pages: TestArea.dataPages)
        map(TestArea.dataAlias, Physical.data, pages: TestArea.dataPages)
        map(TestArea.stack, Physical.stack, pages: TestArea.stackPages)
        // The kernel: one large page at zero.
        let directory = table(below: table(below: Physical.tables, 0), 0)
        store(0x83, at: directory)
        precondition(nextTable <= Physical.gdt)
    }

    private func writeDescriptors() {
        let descriptors: [UInt64] = [
            0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF,
            0x00AF_FB00_0000_FFFF, 0x0000_8B00_0000_0067 | UInt64(Physical.taskState) << 16, 0
        ]
        for (i, descriptor) in descriptors.enumerated() { store(descriptor, at: Physical.gdt + i * 8) }
        store(UInt64(Physical.stackTop), at: Physical.taskState + 4)
        // No permission map for ports.
        machine.ram.storeBytes(of: 0x68, toByteOffset: Physical.taskState + 0x66, as: UInt16.self)
        for vector in 0..<256 {
            let handler = UInt64(Physical.handlers + vector)
            // INT3 and INTO are for user code, too.
            let access: UInt64 = vector == 3 || vector == 4 ? 0xEE00 : 0x8E00
            let low = handler & 0xFFFF | UInt64(Selector.kernelCode) << 16 | access << 32 | (handler >> 16) << 48
            store(low, at: Physical.idt + vector * 16)
            store(0, at: Physical.idt + vector * 16 + 8)
        }
    }

    /// What a case's code has to end with: an instruction that user code must not execute.
    static let ending: [UInt8] = [0xF4]

    /// Runs `slot`, whose code ends at `end`.
    func run(_ slot: CaseSlot, end: UInt64) throws {
        let dataBytes = TestArea.dataPages << 12
        let stackBytes = TestArea.stackPages << 12
        let image = images[slot.image]
        memcpy(machine.ram + Physical.data, image, dataBytes)
        memcpy(machine.ram + Physical.stack, image + dataBytes, stackBytes)
        enterUserMode(slot.isNarrow)
        try processor.writeBytes(
            TestArea.code + UInt64(slot.codeOffset),
            from: UnsafeRawBufferPointer(start: slot.code, count: slot.codeByteCount), .system)
        loadRegisters(slot.input)
        let result = processor.run()
        storeRegisters(slot.output, result, end: end)
        memcpy(slot.memory, machine.ram + Physical.data, dataBytes)
        memcpy(slot.memory + dataBytes, machine.ram + Physical.stack, stackBytes)
    }

    private func enterUserMode(_ isNarrow: Bool) {
        processor.system.activity = .running
        processor.system.pendingEvent = nil
        processor.system.cpl = 3
        processor.system.cs = Segment(
            selector: isNarrow ? Selector.user32Code : Selector.userCode, base: 0, limit: ~0,
            attributes: isNarrow ? 0xCFFB : 0xAFFB)
        let data = Segment(selector: Selector.userData, base: 0, limit: ~0, attributes: 0xCFF3)
        for register in [SegmentRegister.ss, .ds, .es, .fs, .gs] { processor.system[register] = data }
        for register in SegmentRegister.allCases { processor.state.setSegmentBase(register, 0) }
        if !isNarrow {
            processor.system.gs.base = TestArea.gsBase
            processor.state.setSegmentBase(.gs, TestArea.gsBase)
        }
    }

    private func loadRegisters(_ block: RegisterBlock) {
        let state = processor.state
        for register in GeneralRegister.allCases { state[register] = block[register.index] }
        state.rflags = block.flags | RFlags.interrupt
        state.rip = block.entry
        for i in 0..<16 { memcpy(state.vectorRegister(i), block.vectorRegister(i), 32) }
        memcpy(state.fxsaveArea, block.fxsave, 512)
        processor.modeDidChange()
    }

    private func storeRegisters(_ block: RegisterBlock, _ result: RunResult, end: UInt64) {
        let state = processor.state
        for register in GeneralRegister.allCases { block[register.index] = state[register] }
        for i in 0..<16 { memcpy(block.vectorRegister(i), state.vectorRegister(i), 32) }
        memcpy(block.fxsave, state.fxsaveArea, 512)
        block.errorCode = 0
        block.faultAddress = processor.system.cr2
        guard result == .halted, state.rip > UInt64(Physical.handlers), state.rip <= UInt64(Physical.handlers + 256)
        else {
            block.vector = RegisterBlock.unfinished
            block.instructionPointer = state.rip
            block.flags = state.rflags
            return
        }
        var vector = state.rip - UInt64(Physical.handlers) - 1
        var frame = Int(state[.rsp])
        func pop() -> UInt64 {
            defer { frame += 8 }
            return machine.ram.load(fromByteOffset: frame, as: UInt64.self)
        }
        if [8, 10, 11, 12, 13, 14, 17].contains(vector) { block.errorCode = pop() }
        block.instructionPointer = pop()
        _ = pop()
        block.flags = pop()
        block[GeneralRegister.rsp.index] = pop()
        if vector == 13 && block.instructionPointer == end { vector = RegisterBlock.completed }
        block.vector = vector
    }
}
