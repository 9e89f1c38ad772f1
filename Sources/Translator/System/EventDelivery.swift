import CZydis
import X86

// Delivery of exceptions and interrupts through the interrupt vector table or the interrupt descriptor table.
//
// Each mode first checks everything that can fault, then writes the stack frame (which is checked as a whole), then
// changes registers: delivery can be repeated from its start until the registers change.

extension Processor {
    /// Delivers `event`; `state.rip` is the address to return to.
    ///
    /// - Throws: an exception raised on the way, with the EXT bit of its error code set as the event demands. Registers
    ///   are then unchanged, except CR2 and DR6, unless a task switch had already taken place.
    /// > Source: APM volume 2, sections 8.6 to 8.9; Intel SDM volume 3, sections 6.12 and 6.14.
    public func deliver(_ event: PendingEvent) throws(GuestFault) {
        var rip = state.rip
        // A #BP that a client injects is that of the INT3 at RIP.
        if event.kind == .exception, event.vector == 3 {
            do throws(GuestFault) {
                let i = try decodeCurrent()
                if i.mnemonic == ZYDIS_MNEMONIC_INT3 { rip = nextRIP(i) }
            } catch {
                if case .hostMemory = error { throw error }
            }
        }
        try deliver(event, returningTo: rip)
    }

    /// Delivers `event`, on which the exceptions that delivery itself raises are built: double and triple faults.
    ///
    /// - Returns: nil when an event has been delivered (`event` or what it escalated to); otherwise the event that remains
    ///   is in `system.pendingEvent`, except after a shutdown.
    public func deliverWithEscalation(_ event: PendingEvent) -> RunResult? {
        var current = event
        while true {
            do throws(GuestFault) {
                try deliver(current)
                return nil
            } catch {
                switch error {
                case .exception(let second):
                    commitClientAccesses()
                    switch ExceptionClass(current).followed(by: ExceptionClass(exceptionVector: second.vector)) {
                    case .second: current = PendingEvent(second)
                    case .doubleFault:
                        apply(payloadOf: PendingEvent(second))
                        current = PendingEvent(.doubleFault)
                    case .shutdown: return .shutdown
                    }
                case .needsClient:
                    system.pendingEvent = current
                    return askClient()
                case .hostMemory(let address):
                    clientAnswers.rewind()
                    system.pendingEvent = current
                    return .hostMemory(address)
                case .notExecutable, .breakpoint:
                    system.pendingEvent = current
                    return .emulationFailure
                case .shutdown:
                    return .shutdown
                }
            }
        }
    }

    /// Delivers `event` with `rip` as the address to return to.
    func deliver(_ event: PendingEvent, returningTo rip: UInt64) throws(GuestFault) {
        apply(payloadOf: event)
        do {
            if !system.isProtectedMode {
                try deliverInRealMode(event.vector, rip)
            } else if system.isLongModeActive {
                try deliverInLongMode(event, rip)
            } else {
                try deliverInProtectedMode(event, rip)
            }
        } catch {
            throw event.isExternal ? error.duringExternalEvent : error
        }
        if event.kind == .nonMaskableInterrupt { system.nmiBlocked = true }
        // General detection is off in the handler of a debug exception.
        if event.kind == .exception && event.vector == 1 { system.dr7 &= ~DebugRegister.generalDetect }
        system.interruptShadow = false
        system.activity = .running
        modeDidChange()
    }

    /// Gives CR2 or DR6 what the pending exception has for them, ahead of its delivery.
    public func applyPendingPayload() {
        guard let event = system.pendingEvent else { return }
        apply(payloadOf: event)
        system.pendingEvent?.payload = nil
    }

    private func apply(payloadOf event: PendingEvent) {
        guard event.kind == .exception, let payload = event.payload else { return }
        if event.vector == 14 { system.cr2 = payload }
        if event.vector == 1 {
            system.dr6 =
                system.dr6 & ~DebugRegister.breakpoints6 | DebugRegister.fixed6 | payload
                & DebugRegister.writable6
        }
    }

    // MARK: Real mode

    private func deliverInRealMode(_ vector: UInt8, _ rip: UInt64) throws(GuestFault) {
        let entry = UInt64(vector) * 4
        if entry + 3 > system.idtr.limit { throw .generalProtection(UInt32(vector) * 8 + 2) }
        let address = systemAddress(system.idtr.base &+ entry)
        let target = try read(address, as: UInt32.self, .system)
        try enterRealHandler(target, flags: state.rflags, rip)
        state.systemFlags &= ~(RFlags.interrupt | RFlags.trap | RFlags.alignmentCheck | RFlags.resume)
    }

    /// Pushes FLAGS, CS and IP and goes to `target`, segment and offset from a vector table.
    func enterRealHandler(_ target: UInt32, flags: UInt64, _ rip: UInt64) throws(GuestFault) {
        var frame = StackFrame(slotByteCount: 2)
        frame.push(flags)
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        let stack = currentStack
        let top = try write(frame, to: stack, at: state[.rsp], .current)
        state[.rsp] = stack.replacing(state[.rsp], with: top)
        setSegment(.cs, plainSegment(.cs, selector: UInt16(target >> 16)))
        state.rip = UInt64(target & 0xFFFF)
    }

    // MARK: Long mode

    private func deliverInLongMode(_ event: PendingEvent, _ rip: UInt64) throws(GuestFault) {
        let entry = UInt64(event.vector) * 16
        let gateCode = UInt32(event.vector) * 8 + 2
        if entry + 15 > system.idtr.limit { throw .generalProtection(gateCode) }
        let address = system.idtr.base &+ entry
        let gate = GateDescriptor(
            low: try read(address, as: UInt64.self, .system), high: try read(address &+ 8, as: UInt64.self, .system))
        guard let kind = gate.kind, kind == .interrupt || kind == .trap else { throw .generalProtection(gateCode) }
        if event.isSoftware && gate.privilegeLevel < cpl { throw .generalProtection(gateCode) }
        if !gate.isPresent { throw .exception(.segmentNotPresent(gateCode)) }
        let code = try handlerCode(gate.selector)
        let selectorCode = Selector.index(gate.selector)
        if !code.isLong || code.isDefault32 { throw .generalProtection(selectorCode) }
        if !code.isPresent { throw .exception(.segmentNotPresent(selectorCode)) }
        let level = code.isConformingCode ? cpl : code.privilegeLevel

        var pointer = state[.rsp]
        if gate.interruptStack != 0 {
            pointer = try readTaskState64(TaskState.interruptStackOffset(gate.interruptStack))
        } else if level < cpl {
            pointer = try readTaskState64(TaskState.stackPointerOffset64(privilegeLevel: level))
        }
        pointer &= ~0xF

        var frame = StackFrame(slotByteCount: 8)
        frame.push(UInt64(system.ss.selector))
        frame.push(state[.rsp])
        frame.push(event.flagsImage(of: state.rflags))
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        if let errorCode = event.errorCode { frame.push(UInt64(errorCode)) }
        if !isCanonical(pointer &- 1) || !isCanonical(pointer &- UInt64(frame.byteCount)) { throw .exception(.stack()) }
        if !isCanonical(gate.offset) { throw .generalProtection() }
        try markAccessed(gate.selector, code)
        let top = try write(frame, to: .flat64, at: pointer, stackPrivilege(of: level))

        state[.rsp] = top
        if level != cpl {
            setSegment(.ss, .null(selector: UInt16(level), privilegeLevel: level))
        }
        enterHandler(code, selector: gate.selector, level, gate.offset, kind)
    }

    /// A field of the 64-bit task state.
    func readTaskState64(_ offset: UInt64) throws(GuestFault) -> UInt64 {
        if system.tr.isUnusable || offset + 7 > system.tr.limit {
            throw .exception(.invalidTSS(Selector.index(system.tr.selector)))
        }
        return try read(system.tr.base &+ offset, as: UInt64.self, .system)
    }

    // MARK: Protected mode

    private func deliverInProtectedMode(_ event: PendingEvent, _ rip: UInt64) throws(GuestFault) {
        let entry = UInt64(event.vector) * 8
        let gateCode = UInt32(event.vector) * 8 + 2
        if entry + 7 > system.idtr.limit { throw .generalProtection(gateCode) }
        let gate = GateDescriptor(low: try read(systemAddress(system.idtr.base &+ entry), as: UInt64.self, .system))
        guard let kind = gate.kind, kind != .call, kind != .call16 else { throw .generalProtection(gateCode) }
        if event.isSoftware && gate.privilegeLevel < cpl { throw .generalProtection(gateCode) }
        if !gate.isPresent { throw .exception(.segmentNotPresent(gateCode)) }
        if kind == .task {
            return try switchTask(
                throughGate: gate.selector, .call, returningTo: rip, flags: event.flagsImage(of: state.rflags),
                errorCode: event.errorCode)
        }
        let code = try handlerCode(gate.selector)
        let selectorCode = Selector.index(gate.selector)
        if !code.isPresent { throw .exception(.segmentNotPresent(selectorCode)) }
        let level = code.isConformingCode ? cpl : code.privilegeLevel
        // Virtual-8086 mode is left for privilege level 0 only.
        if isVirtual8086 && level != 0 { throw .generalProtection(selectorCode) }

        var frame = StackFrame(slotByteCount: kind.is16Bit ? 2 : 4)
        var inner: (segment: Segment, pointer: UInt64)?
        if level < cpl {
            inner = try innerStack(privilegeLevel: level)
            if isVirtual8086 {
                for register in [SegmentRegister.gs, .fs, .ds, .es] { frame.push(UInt64(system[register].selector)) }
            }
            frame.push(UInt64(system.ss.selector))
            frame.push(state[.rsp])
        }
        frame.push(event.flagsImage(of: state.rflags))
        frame.push(UInt64(system.cs.selector))
        frame.push(rip)
        if let errorCode = event.errorCode { frame.push(UInt64(errorCode)) }
        if gate.offset > UInt64(code.limit) { throw .generalProtection() }
        try markAccessed(gate.selector, code)
        let stack = inner.map { StackGeometry(legacy: $0.segment) } ?? currentStack
        let top = try write(
            frame, to: stack, at: inner?.pointer ?? state[.rsp], stackPrivilege(of: level),
            selector: inner.map { $0.segment.selector & ~3 } ?? 0)

        state[.rsp] = stack.replacing(inner?.pointer ?? state[.rsp], with: top)
        if let inner { setSegment(.ss, inner.segment) }
        if isVirtual8086 {
            for register in [SegmentRegister.gs, .fs, .ds, .es] { setSegment(register, .null(selector: 0)) }
        }
        enterHandler(code, selector: gate.selector, level, gate.offset, kind)
    }

    // MARK: Shared by the modes with descriptors

    /// The code segment of a gate: no more privileged than possible, but not yet checked for presence.
    private func handlerCode(_ selector: UInt16) throws(GuestFault) -> SegmentDescriptor {
        let code = Selector.index(selector)
        guard let descriptor = try descriptor(selector), descriptor.isCode, descriptor.privilegeLevel <= cpl else {
            throw .generalProtection(code)
        }
        return descriptor
    }

    private func enterHandler(
        _ code: SegmentDescriptor, selector: UInt16, _ level: UInt8, _ offset: UInt64, _ kind: GateDescriptor.Kind
    ) {
        setSegment(.cs, code.segment(selector: selector & ~3 | UInt16(level)))
        system.cpl = level
        state.rip = offset
        var cleared = RFlags.trap | RFlags.nestedTask | RFlags.resume | RFlags.virtual8086
        if kind.disablesInterrupts { cleared |= RFlags.interrupt }
        state.systemFlags &= ~cleared
    }

    /// How the stack of privilege level `level` is accessed now.
    func stackPrivilege(of level: UInt8) -> AccessPrivilege { cpl == 3 && level < 3 ? .system : .current }

    /// The stack that the legacy task state holds for an inner privilege level.
    func innerStack(privilegeLevel: UInt8) throws(GuestFault) -> (segment: Segment, pointer: UInt64) {
        let isWide = system.tr.isWideTaskState
        let offset = TaskState.stackOffset(privilegeLevel: privilegeLevel, isWide: isWide)
        if system.tr.isUnusable || offset + (isWide ? 5 : 3) > system.tr.limit {
            throw .exception(.invalidTSS(Selector.index(system.tr.selector)))
        }
        let address = systemAddress(system.tr.base &+ offset)
        let pointer = try readMemory(address, byteCount: isWide ? 4 : 2, .system)
        let selector = try read(systemAddress(address &+ (isWide ? 4 : 2)), as: UInt16.self, .system)
        let code = Selector.index(selector)
        guard let descriptor = try descriptor(selector), Selector.privilegeLevel(selector) == privilegeLevel,
            descriptor.privilegeLevel == privilegeLevel, descriptor.isWritableData
        else { throw .exception(.invalidTSS(code)) }
        if !descriptor.isPresent { throw .exception(.stack(code)) }
        try markAccessed(selector, descriptor)
        return (descriptor.segment(selector: selector), pointer)
    }
}

extension PendingEvent {
    /// INT n, INT3 or INTO: the gate's privilege level counts.
    package var isSoftware: Bool { kind == .softwareInterrupt || kind == .softwareException }

    /// Exceptions during delivery carry the EXT bit.
    var isExternal: Bool { !isSoftware }

    /// RFLAGS as delivery saves them: RF is set for faults, so that the instruction is not stopped again by its own
    /// instruction breakpoint.
    package func flagsImage(of flags: UInt64) -> UInt64 {
        guard kind == .exception else { return flags }
        switch vector {
        // Debug exceptions manage RF themselves; the others are traps, aborts or interrupts.
        case 1, 2, 3, 4, 8, 18: return flags
        default: return flags | RFlags.resume
        }
    }
}

extension GuestFault {
    /// The same fault with the EXT bit in its error code, if that names a selector.
    var duringExternalEvent: GuestFault {
        guard case .exception(var exception) = self, (10...13).contains(exception.vector) else { return self }
        exception.errorCode = (exception.errorCode ?? 0) | 1
        return .exception(exception)
    }
}
