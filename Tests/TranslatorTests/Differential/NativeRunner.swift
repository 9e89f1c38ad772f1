import CHost
import Glibc

/// Runs test cases on the host's processor.
///
/// A batch runs in a forked child, so that neither its signal handlers nor a test that goes astray touch the process
/// that runs the translator. The child maps ``TestArea`` and enters each case through a small routine that loads all
/// registers from a fixed page; the case ends with a jump to the routine that stores them. Signals are taken on an
/// alternate stack, because the stack pointer belongs to the test; the handler notes the trap and continues at the storing
/// routine.
///
/// After the fork the child calls nothing that takes a lock or allocates.
final class NativeRunner {
    private let images: MemoryImages
    /// The number of the case that is running, for a child that dies.
    private let progress: UnsafeMutablePointer<Int>

    /// Fixed places in the control pages.
    private enum Control {
        static var registers: UInt64 { TestArea.control }
        static var exitPointer: UInt64 { TestArea.control + 0x800 }
        static var hostStack: UInt64 { TestArea.control + 0x808 }
        static var hostMXCSR: UInt64 { TestArea.control + 0x810 }
        static var entryRoutine: UInt64 { TestArea.control + 0x1000 }
        static var narrowEntryRoutine: UInt64 { TestArea.control + 0x1400 }
        static var exitRoutine: UInt64 { TestArea.control + 0x1800 }
        /// Far from what stack pointers of cases are: the kernel takes one that points there for that of a handler.
        static var signalStack: UInt64 { 0x2A5B_0000_0000 }
        static var signalStackByteCount: Int { 0x2000 }
    }

    init(images: MemoryImages) {
        self.images = images
        progress = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
            .assumingMemoryBound(to: Int.self)
    }

    deinit { munmap(progress, 4096) }

    /// How a batch ended before its last case.
    struct Accident: Error, CustomStringConvertible {
        var caseNumber: Int
        var status: Int32
        var description: String { "native run of case \(caseNumber) in the batch ended with status \(status)" }
    }

    /// Whether the host's kernel lets a program run 32-bit code.
    static let runsNarrowCode: Bool = {
        let area = mmap(nil, CaseSlot.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        guard let area, area != MAP_FAILED else { return false }
        defer { munmap(area, CaseSlot.byteCount) }
        let slot = CaseSlot(base: area)
        slot.isNarrow = true
        slot.input.entry = TestArea.code
        slot.input.flags = 0x202
        slot.input.fxsave.storeBytes(of: 0x37F, as: UInt16.self)
        slot.input.mxcsr = 0x1F80
        let code = ending(at: TestArea.code, isNarrow: true)
        slot.codeByteCount = code.count
        code.withUnsafeBytes { slot.code.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: code.count) }
        let runner = NativeRunner(images: MemoryImages(seed: 0))
        return (try? runner.run([slot])) != nil && slot.output.vector == RegisterBlock.completed
    }()

    /// What a case's code has to end with when it starts at `address`: a jump to the storing routine.
    static func ending(at address: UInt64, isNarrow: Bool) -> [UInt8] {
        var assembler = Assembler(origin: address)
        if isNarrow {
            // jmp far to the 64-bit segment.
            assembler.emit(0xEA)
            assembler.int32(Int32(Control.exitRoutine))
            assembler.emit(0x33, 0x00)
        } else {
            assembler.ripRelative([0xFF], reg: 4, Control.exitPointer)
        }
        return assembler.bytes
    }

    /// Runs `slots`, which lie in memory shared with children.
    func run(_ slots: [CaseSlot]) throws {
        // SAFETY: the C function of this name, which the module map hides because of its effects on Swift's runtime; the
        // child only touches raw memory and then leaves with _exit().
        let fork = unsafeBitCast(dlsym(nil, "fork"), to: (@convention(c) () -> Int32).self)
        progress.pointee = 0
        let child = fork()
        if child == 0 {
            // Worker threads of the runtime block signals, which a child inherits. A case that does not end is an accident.
            var none = sigset_t()
            sigemptyset(&none)
            sigprocmask(SIG_SETMASK, &none, nil)
            signal(SIGALRM, SIG_DFL)
            alarm(30)
            Self.prepare()
            for (number, slot) in slots.enumerated() {
                progress.pointee = number
                runOne(slot)
            }
            _exit(0)
        }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 && errno == EINTR {}
        if status != 0 { throw Accident(caseNumber: progress.pointee, status: status) }
    }

    private static func pointer(_ address: UInt64) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
    }

    /// Linux' segments for user code.
    private static var codeSelector: UInt64 { 0x33 }
    private static var narrowCodeSelector: UInt64 { 0x23 }
    private static var dataSelector: UInt8 { 0x2B }

    // MARK: In the child

    private static func prepare() {
        func map(_ address: UInt64, _ pages: Int, _ protection: Int32, _ flags: Int32, _ file: Int32, _ offset: Int = 0)
        {
            let fixedNoReplace: Int32 = 0x100000
            let place = mmap(pointer(address), pages << 12, protection, flags | fixedNoReplace, file, offset)
            if place != pointer(address) { _exit(99) }
        }
        let anonymous = MAP_PRIVATE | MAP_ANONYMOUS
        map(TestArea.code, TestArea.codePages, PROT_READ | PROT_WRITE | PROT_EXEC, anonymous, -1)
        map(TestArea.control, TestArea.controlPages, PROT_READ | PROT_WRITE | PROT_EXEC, anonymous, -1)
        map(TestArea.stack, TestArea.stackPages, PROT_READ | PROT_WRITE, anonymous, -1)
        map(Control.signalStack, Control.signalStackByteCount >> 12, PROT_READ | PROT_WRITE, anonymous, -1)
        let file = martlet_memfd_create("martlet-test-data", 0)
        if file < 0 || ftruncate(file, TestArea.dataPages << 12) != 0 { _exit(98) }
        map(TestArea.data, TestArea.dataPages, PROT_READ | PROT_WRITE, MAP_SHARED, file)
        map(TestArea.dataAlias, TestArea.dataPages, PROT_READ | PROT_WRITE, MAP_SHARED, file)
        writeRoutines()
        martlet_set_gs_base_by_call(TestArea.gsBase)

        var stack = stack_t()
        stack.ss_sp = pointer(Control.signalStack)
        stack.ss_size = Control.signalStackByteCount
        sigaltstack(&stack, nil)
        for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP] {
            var action = sigaction()
            action.__sigaction_handler.sa_sigaction = { signal, _, context in NativeRunner.handle(signal, context) }
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | Int32(bitPattern: UInt32(SA_NODEFER))
            sigaction(signal, &action, nil)
        }
    }

    private static func handle(_ signal: Int32, _ context: UnsafeMutableRawPointer?) {
        guard let context, let registers = martlet_context_registers(context) else { return }
        let pc = registers[Int(MARTLET_REG_RIP)]
        if pc >= Control.registers && pc < TestArea.control + UInt64(TestArea.controlPages << 12) || pc > 1 << 40 {
            // Not in the test.
            Glibc.signal(signal, SIG_DFL)
            return
        }
        let block = RegisterBlock(base: pointer(Control.registers))
        block.vector = registers[Int(MARTLET_REG_TRAPNO)]
        block.instructionPointer = pc
        block.errorCode = registers[Int(MARTLET_REG_ERR)]
        block.faultAddress = registers[Int(MARTLET_REG_CR2)]
        registers[Int(MARTLET_REG_RIP)] = Control.exitRoutine
        // CS of 64-bit user code, whatever the test ran in.
        registers[Int(MARTLET_REG_CSGSFS)] = registers[Int(MARTLET_REG_CSGSFS)] & ~0xFFFF | codeSelector
    }

    private func runOne(_ slot: CaseSlot) {
        let image = images[slot.image]
        let dataBytes = TestArea.dataPages << 12
        let stackBytes = TestArea.stackPages << 12
        memcpy(Self.pointer(TestArea.data), image, dataBytes)
        memcpy(Self.pointer(TestArea.stack), image + dataBytes, stackBytes)
        memcpy(Self.pointer(TestArea.code) + slot.codeOffset, slot.code, slot.codeByteCount)
        let registers = Self.pointer(Control.registers)
        memcpy(registers, slot.input.base, RegisterBlock.byteCount)
        RegisterBlock(base: registers).vector = RegisterBlock.unfinished
        var routine = Control.entryRoutine
        if slot.isNarrow {
            routine = Control.narrowEntryRoutine
            // A far pointer.
            RegisterBlock(base: registers).entry |= Self.narrowCodeSelector << 32
        }
        // SAFETY: the entry routines keep to the C calling convention.
        unsafeBitCast(UInt(routine), to: (@convention(c) () -> Void).self)()
        memcpy(slot.output.base, registers, RegisterBlock.byteCount)
        if slot.output.vector == RegisterBlock.unfinished { slot.output.vector = RegisterBlock.completed }
        memcpy(slot.memory, Self.pointer(TestArea.data), dataBytes)
        memcpy(slot.memory + dataBytes, Self.pointer(TestArea.stack), stackBytes)
    }

    // MARK: Routines

    private static func writeRoutines() {
        for isNarrow in [false, true] { write(entryRoutine(isNarrow: isNarrow)) }

        var exit = Assembler(origin: Control.exitRoutine)
        for i in 0..<16 { exit.moveGeneral(i, Control.registers + UInt64(i * 8), store: true) }
        exit.moveGeneral(4, Control.hostStack, store: false)
        exit.emit(0x9C)  // pushfq
        exit.ripRelative([0x8F], reg: 0, Control.registers + UInt64(RegisterBlock.flagsOffset))  // pop
        exit.emit(0x68, 0x02, 0x02, 0x00, 0x00, 0x9D)  // push 0x202; popfq
        for i in 0..<16 {
            exit.moveVector(i, Control.registers + UInt64(RegisterBlock.vectorRegistersOffset + i * 32), store: true)
        }
        // fxsave64
        exit.ripRelative([0x48, 0x0F, 0xAE], reg: 0, Control.registers + UInt64(RegisterBlock.fxsaveOffset))
        exit.emit(0xDB, 0xE3)  // fninit
        exit.ripRelative([0x0F, 0xAE], reg: 2, Control.hostMXCSR)  // ldmxcsr
        exit.emit(0xC5, 0xF8, 0x77)  // vzeroupper
        exit.emit(0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3)  // pop …, ret
        write(exit)
        pointer(Control.exitPointer).storeBytes(of: Control.exitRoutine, as: UInt64.self)
    }

    private static func entryRoutine(isNarrow: Bool) -> Assembler {
        var enter = Assembler(origin: isNarrow ? Control.narrowEntryRoutine : Control.entryRoutine)
        enter.emit(0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57)  // push rbx, rbp, r12, r13, r14, r15
        enter.moveGeneral(4, Control.hostStack, store: true)
        enter.ripRelative([0x0F, 0xAE], reg: 3, Control.hostMXCSR)  // stmxcsr
        // fxrstor64
        enter.ripRelative([0x48, 0x0F, 0xAE], reg: 1, Control.registers + UInt64(RegisterBlock.fxsaveOffset))
        for i in 0..<16 {
            enter.moveVector(i, Control.registers + UInt64(RegisterBlock.vectorRegistersOffset + i * 32), store: false)
        }
        // mov eax, selector; mov ds, eax; mov es, eax: 64-bit programs leave them null.
        if isNarrow { enter.emit(0xB8, dataSelector, 0, 0, 0, 0x8E, 0xD8, 0x8E, 0xC0) }
        enter.ripRelative([0xFF], reg: 6, Control.registers + UInt64(RegisterBlock.flagsOffset))  // push
        enter.emit(0x9D)  // popfq
        for i in 0..<16 { enter.moveGeneral(i, Control.registers + UInt64(i * 8), store: false) }
        // jmp, near or far
        enter.ripRelative([0xFF], reg: isNarrow ? 5 : 4, Control.registers + UInt64(RegisterBlock.entryOffset))
        return enter
    }

    private static func write(_ assembler: Assembler) {
        for (i, byte) in assembler.bytes.enumerated() {
            pointer(assembler.origin + UInt64(i)).storeBytes(of: byte, as: UInt8.self)
        }
    }
}
