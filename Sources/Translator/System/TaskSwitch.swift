import X86

// Hardware task switches, which legacy protected mode has.
//
// Everything that belongs to the old task is checked before anything is written. From then on the new task runs, and
// what fails while its segments are loaded is an exception of the new task.

/// What makes the processor switch tasks.
enum TaskSwitchCause {
    /// CALL, an interrupt or an exception: the new task is nested and links back.
    case call
    case jump
    /// IRET with NT set.
    case interruptReturn
}

extension Processor {
    /// Switches to the task that a task gate names.
    func switchTask(
        throughGate selector: UInt16, _ cause: TaskSwitchCause, returningTo rip: UInt64, flags: UInt64,
        errorCode: UInt32? = nil
    ) throws(GuestFault) {
        let code = Selector.index(selector)
        guard !Selector.isLocal(selector), let descriptor = try descriptor(selector) else {
            throw .generalProtection(code)
        }
        try switchTask(
            toAvailable: selector, descriptor, cause, returningTo: rip, flags: flags, errorCode: errorCode)
    }

    /// Switches to a task whose state must not be busy.
    func switchTask(
        toAvailable selector: UInt16, _ descriptor: SegmentDescriptor, _ cause: TaskSwitchCause,
        returningTo rip: UInt64, flags: UInt64, errorCode: UInt32? = nil
    ) throws(GuestFault) {
        let code = Selector.index(selector)
        let type = descriptor.systemType
        guard type == .availableTaskState32 || type == .availableTaskState16 else { throw .generalProtection(code) }
        if !descriptor.isPresent { throw .exception(.segmentNotPresent(code)) }
        try switchTask(to: selector, descriptor, cause, returningTo: rip, flags: flags, errorCode: errorCode)
    }

    /// Returns to the task that the current one is nested in.
    func returnFromTask(returningTo rip: UInt64) throws(GuestFault) {
        let selector = try read(systemAddress(system.tr.base), as: UInt16.self, .system)
        let code = Selector.index(selector)
        guard !Selector.isLocal(selector), let descriptor = try descriptor(selector),
            descriptor.systemType == .busyTaskState32 || descriptor.systemType == .busyTaskState16
        else { throw .exception(.invalidTSS(code)) }
        if !descriptor.isPresent { throw .exception(.segmentNotPresent(code)) }
        try switchTask(to: selector, descriptor, .interruptReturn, returningTo: rip, flags: state.rflags)
    }

    private func switchTask(
        to selector: UInt16, _ descriptor: SegmentDescriptor, _ cause: TaskSwitchCause,
        returningTo rip: UInt64, flags: UInt64, errorCode: UInt32? = nil
    ) throws(GuestFault) {
        var segment = descriptor.segment(selector: selector)
        let old = system.tr
        let oldLayout = old.isWideTaskState ? TaskState.layout32 : TaskState.layout16
        let newLayout = segment.isWideTaskState ? TaskState.layout32 : TaskState.layout16
        if segment.limit < newLayout.minimumLimit { throw .exception(.invalidTSS(Selector.index(selector))) }
        if old.isUnusable || old.limit < oldLayout.minimumLimit {
            throw .exception(.invalidTSS(Selector.index(old.selector)))
        }
        let task = try readTask(newLayout, at: segment.base)
        let savedEnd = oldLayout.segments + oldLayout.segmentStride * UInt64(oldLayout.segmentCount)
        try probeWrite(
            systemAddress(old.base &+ oldLayout.instructionPointer),
            byteCount: Int(savedEnd - oldLayout.instructionPointer), .system)
        if cause == .call { try probeWrite(systemAddress(segment.base), byteCount: 2, .system) }
        try probeDescriptor(old.selector)
        try probeDescriptor(selector)

        try saveTask(
            oldLayout, at: old.base, rip: rip, flags: cause == .interruptReturn ? flags & ~RFlags.nestedTask : flags)
        if cause != .call { try setBusy(old.selector, false) }
        if cause != .interruptReturn { try setBusy(selector, true) }
        if cause == .call { try write(systemAddress(segment.base), old.selector, .system) }

        segment.attributes |= 2
        system.tr = segment
        enter(task, newLayout, isNested: cause == .call)
        try loadSegments(of: task)
        if let errorCode { try push(UInt64(errorCode), byteCount: newLayout.registerByteCount) }
        if task.hasDebugTrap { throw .exception(.debug(DebugRegister.taskSwitch)) }
    }

    /// What a task switch takes from the new task's state.
    private struct Task {
        var cr3: UInt64 = 0
        var instructionPointer: UInt64 = 0
        var flags: UInt64 = 0
        var registers = InlineArray<8, UInt64>(repeating: 0)
        /// ES, CS, SS, DS, FS, GS.
        var selectors = InlineArray<6, UInt16>(repeating: 0)
        var localTable: UInt16 = 0
        var hasDebugTrap = false
    }

    private func readTask(_ layout: TaskState.Layout, at base: UInt64) throws(GuestFault) -> Task {
        var task = Task()
        let size = layout.registerByteCount
        if let offset = layout.cr3 { task.cr3 = try readMemory(systemAddress(base &+ offset), byteCount: 4, .system) }
        task.instructionPointer = try readMemory(
            systemAddress(base &+ layout.instructionPointer), byteCount: size, .system)
        task.flags = try readMemory(systemAddress(base &+ layout.flags), byteCount: size, .system)
        for index in 0..<8 {
            let address = systemAddress(base &+ layout.generalRegisters &+ UInt64(index * size))
            task.registers[index] = try readMemory(address, byteCount: size, .system)
        }
        for index in 0..<layout.segmentCount {
            let address = systemAddress(base &+ layout.segments &+ UInt64(index) * layout.segmentStride)
            task.selectors[index] = try read(address, as: UInt16.self, .system)
        }
        task.localTable = try read(systemAddress(base &+ layout.localDescriptorTable), as: UInt16.self, .system)
        if let offset = layout.debugTrap {
            task.hasDebugTrap = try read(systemAddress(base &+ offset), as: UInt16.self, .system) & 1 != 0
        }
        return task
    }

    private func saveTask(
        _ layout: TaskState.Layout, at base: UInt64, rip: UInt64, flags: UInt64
    ) throws(GuestFault) {
        let size = layout.registerByteCount
        try writeMemory(systemAddress(base &+ layout.instructionPointer), rip, byteCount: size, .system)
        try writeMemory(systemAddress(base &+ layout.flags), flags, byteCount: size, .system)
        for index in 0..<8 {
            let address = systemAddress(base &+ layout.generalRegisters &+ UInt64(index * size))
            try writeMemory(address, state[GeneralRegister(index: index)], byteCount: size, .system)
        }
        for register in SegmentRegister.allCases.prefix(layout.segmentCount) {
            let address = systemAddress(base &+ layout.segments &+ UInt64(register.index) * layout.segmentStride)
            try write(address, system[register].selector, .system)
        }
    }

    /// Gives the registers the new task's values. Segments are unusable until they are loaded.
    private func enter(_ task: Task, _ layout: TaskState.Layout, isNested: Bool) {
        let isWide = layout.registerByteCount == 4
        system.cr0 |= CR0.taskSwitched
        system.dr7 &= ~DebugRegister.localEnables
        if isWide && system.isPagingEnabled {
            system.cr3 = task.cr3
            flushTLB(.contextSwitch(preserving: false))
        }
        state.rip = task.instructionPointer
        for index in 0..<8 {
            writeGeneral(GeneralRegister(index: index), task.registers[index], byteCount: layout.registerByteCount)
        }
        state.rflags = isNested ? task.flags | RFlags.nestedTask : task.flags
        system.ldtr = .null(selector: task.localTable)
        if isVirtual8086 {
            system.cpl = 3
            for register in SegmentRegister.allCases {
                setSegment(register, .virtual8086(selector: task.selectors[register.index]))
            }
        } else {
            system.cpl = Selector.privilegeLevel(task.selectors[SegmentRegister.cs.index])
            for register in SegmentRegister.allCases {
                setSegment(register, .null(selector: task.selectors[register.index], privilegeLevel: system.cpl))
            }
        }
        system.interruptShadow = false
        system.activity = .running
        modeDidChange()
    }

    /// Loads LDTR and the segment registers of the task that has just been entered.
    private func loadSegments(of task: Task) throws(GuestFault) {
        system.ldtr = try localTable(task.localTable) { code in .exception(.invalidTSS(code)) }
        if isVirtual8086 {
            if task.instructionPointer > 0xFFFF { throw .generalProtection() }
            return
        }
        let codeSelector = task.selectors[SegmentRegister.cs.index]
        let code = try descriptor(codeSelector)
        let rpl = Selector.privilegeLevel(codeSelector)
        guard let code, code.isCode,
            code.isConformingCode ? code.privilegeLevel <= rpl : code.privilegeLevel == rpl
        else { throw .exception(.invalidTSS(Selector.index(codeSelector))) }
        try load(.cs, codeSelector, code)

        let stackSelector = task.selectors[SegmentRegister.ss.index]
        guard let stack = try descriptor(stackSelector), stack.isWritableData, stack.privilegeLevel == cpl,
            Selector.privilegeLevel(stackSelector) == cpl
        else { throw .exception(.invalidTSS(Selector.index(stackSelector))) }
        try load(.ss, stackSelector, stack)

        for register in [SegmentRegister.es, .ds, .fs, .gs] {
            let selector = task.selectors[register.index]
            if Selector.isNull(selector) {
                setSegment(register, .null(selector: selector))
                continue
            }
            guard let data = try descriptor(selector), data.isReadable,
                data.isConformingCode
                    || data.privilegeLevel >= cpl && data.privilegeLevel >= Selector.privilegeLevel(selector)
            else { throw .exception(.invalidTSS(Selector.index(selector))) }
            try load(register, selector, data)
        }
        modeDidChange()
        if task.instructionPointer > UInt64(code.limit) { throw .generalProtection() }
    }

    private func load(
        _ register: SegmentRegister, _ selector: UInt16, _ descriptor: SegmentDescriptor
    ) throws(GuestFault) {
        if !descriptor.isPresent {
            let code = Selector.index(selector)
            throw .exception(register == .ss ? .stack(code) : .segmentNotPresent(code))
        }
        try markAccessed(selector, descriptor)
        setSegment(register, descriptor.segment(selector: selector))
    }

    /// Checks that the type of the descriptor `selector` names can be changed.
    private func probeDescriptor(_ selector: UInt16) throws(GuestFault) {
        guard let address = descriptorAddress(selector) else { return }
        try probeWrite(systemAddress(address &+ 5), byteCount: 1, .system)
    }
}
