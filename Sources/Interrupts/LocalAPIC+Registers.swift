import Synchronization

extension LocalAPIC {
    // MARK: Memory-mapped access (xAPIC mode)

    /// The offset of `address` in the register page; nil if the page is elsewhere or not mapped (disabled, x2APIC mode).
    public func pageOffset(of address: UInt64) -> UInt32? {
        guard base & (APICBase.enable | APICBase.x2APIC) == APICBase.enable else { return nil }
        let offset = address &- (base & ~0xFFF)
        return offset < 4096 ? UInt32(truncatingIfNeeded: offset) : nil
    }

    // MARK: Task priority in guest memory

    /// The word that guests find instead of the register: the task priority, the class of the vector in service, and the
    /// highest vector requested.
    public var taskPriorityWord: UInt32 {
        let serviced = UInt32(inService.highest ?? 0) & 0xF0
        return UInt32(taskPriorityRegister) | serviced << 8 | UInt32(requests.highest ?? 0) << 24
    }

    /// Takes over the task priority that the guest left in its word.
    public func setTaskPriority(fromWord word: UInt32) {
        taskPriorityRegister = UInt8(truncatingIfNeeded: word)
        updateProcessorPriority()
    }

    // MARK: The page

    /// Whether `address` lies where the register page is or would be.
    public func isAtPage(_ address: UInt64) -> Bool { address &- (base & ~0xFFF) < 4096 }

    /// Reads from the register page.
    ///
    /// Registers are 4 bytes at multiples of 16. Reads inside one register give its bytes; others are undefined in the
    /// architecture and give 0.
    /// - Parameter now: evaluated only where the register depends on the time.
    /// > Concurrency: the owner.
    public func readPage(offset: UInt32, byteCount: Int, now: @autoclosure () -> GuestTime) -> UInt64 {
        let byte = offset & 0xF
        guard byteCount > 0, byteCount <= 4, UInt64(byte) &+ UInt64(byteCount) <= 4 else { return 0 }
        guard let value = register(offset & 0xFF0, now: now()) else {
            _ = recordErrors(APICError.illegalRegister)
            return 0
        }
        return UInt64(value >> (byte * 8)) & ((1 << (UInt64(byteCount) * 8)) - 1)
    }

    /// Writes to the register page. Only aligned 4-byte writes have an effect.
    ///
    /// The priority may fall and interrupts may become pending: the caller looks at ``hasPendingInterrupt`` afterwards.
    /// > Concurrency: the owner.
    public func writePage(offset: UInt32, byteCount: Int, value: UInt64, now: @autoclosure () -> GuestTime) {
        guard byteCount == 4, offset & 0xF == 0, offset < 4096 else { return }
        let value = UInt32(truncatingIfNeeded: value)
        switch offset {
        case APICRegister.id:
            xAPICID = UInt8(truncatingIfNeeded: value >> 24)
            publishRouting()
        case APICRegister.logicalDestination:
            logicalID = UInt8(truncatingIfNeeded: value >> 24)
            publishRouting()
        case APICRegister.destinationFormat:
            destinationFormat = value | 0x0FFF_FFFF
            publishRouting()
        case APICRegister.commandHigh:
            commandHigh = value & 0xFF00_0000
        case APICRegister.command:
            writeCommand(low: value, destination: commandHigh >> 24)
        default:
            if setRegister(offset, value, now: now()) { return }
            // Writes to registers that can only be read are ignored; only those to no register are errors.
            if register(offset, now: now()) == nil { _ = recordErrors(APICError.illegalRegister) }
        }
    }

    // MARK: Model-specific registers

    /// Whether `readMSR` and `writeMSR` answer for `index`.
    public static func ownsMSR(_ index: UInt32) -> Bool {
        index == APICModelSpecificRegister.base || index == APICModelSpecificRegister.tscDeadline
            || APICModelSpecificRegister.x2APIC.contains(index)
    }

    /// Reads the APIC base, the TSC deadline or an x2APIC register; nil means general protection.
    /// > Concurrency: the owner.
    public func readMSR(_ index: UInt32, now: @autoclosure () -> GuestTime) -> UInt64? {
        if index == APICModelSpecificRegister.base { return base }
        if index == APICModelSpecificRegister.tscDeadline {
            return timerMode == .tscDeadline ? tscDeadline : 0
        }
        guard isX2APICEnabled, APICModelSpecificRegister.x2APIC.contains(index) else { return nil }
        let offset = (index & 0xFF) << 4
        switch offset {
        case APICRegister.command:
            return UInt64(commandHigh) << 32 | UInt64(commandLow)
        case APICRegister.commandHigh, APICRegister.destinationFormat, APICRegister.arbitrationPriority,
            APICRegister.remoteRead, APICRegister.endOfInterrupt:
            return nil
        default:
            return register(offset, now: now()).map(UInt64.init)
        }
    }

    /// Writes the APIC base, the TSC deadline or an x2APIC register; false means general protection.
    /// > Concurrency: the owner.
    public func writeMSR(_ index: UInt32, _ value: UInt64, now: @autoclosure () -> GuestTime) -> Bool {
        if index == APICModelSpecificRegister.base { return setBase(value, isFromClient: false) }
        if index == APICModelSpecificRegister.tscDeadline {
            setTSCDeadline(value, now: now())
            return true
        }
        guard isX2APICEnabled, APICModelSpecificRegister.x2APIC.contains(index) else { return false }
        let offset = (index & 0xFF) << 4
        if offset == APICRegister.command {
            commandHigh = UInt32(truncatingIfNeeded: value >> 32)
            writeCommand(low: UInt32(truncatingIfNeeded: value), destination: commandHigh)
            return true
        }
        guard value >> 32 == 0 else { return false }
        let low = UInt32(truncatingIfNeeded: value)
        switch offset {
        case APICRegister.endOfInterrupt, APICRegister.errorStatus:
            guard low == 0 else { return false }
        case APICRegister.taskPriority:
            guard low <= 0xFF else { return false }
        case APICRegister.selfInterrupt:
            guard low <= 0xFF else { return false }
            // Bits 31–8 are the ICR's "fixed, edge, to the sender".
            send(
                InterruptMessage(
                    destination: initialID, shorthand: .sender, vector: UInt8(truncatingIfNeeded: low)))
            return true
        default:
            break
        }
        return setRegister(offset, low, now: now())
    }

    /// Changes IA32_APIC_BASE: address, mode and the bootstrap flag.
    ///
    /// Guests may go disabled → xAPIC → x2APIC → disabled and back from xAPIC to disabled; clients may set any valid mode.
    /// - Returns: false for reserved bits or a forbidden change of mode: general protection.
    /// > Concurrency: the owner.
    public func setBase(_ value: UInt64, isFromClient: Bool) -> Bool {
        guard APICBase.isValid(value, hasX2APIC: supportsX2APIC, physicalAddressBits: physicalAddressBits)
        else { return false }
        let mode = APICBase.enable | APICBase.x2APIC
        let old = base & mode
        let new = value & mode
        if !isFromClient {
            if old == mode, new == APICBase.enable { return false }
            if old == 0, new == mode { return false }
        }
        base = value
        if new == 0, old != 0 {
            setPowerUpRegisters()
            host.armTimer(deadlineNanoseconds: nil)
        }
        // Both a re-enabled APIC and one that left x2APIC mode show the identifier they were created with.
        if new == APICBase.enable, old != APICBase.enable { xAPICID = UInt8(truncatingIfNeeded: initialID) }
        publishRouting()
        return true
    }

    // MARK: Registers

    /// The value of the register at `offset`, a multiple of 16; nil if there is none.
    func register(_ offset: UInt32, now: @autoclosure () -> GuestTime) -> UInt32? {
        switch offset {
        case APICRegister.id:
            return isX2APICEnabled ? initialID : UInt32(xAPICID) << 24
        case APICRegister.version:
            return Self.version
        case APICRegister.taskPriority:
            return UInt32(taskPriorityRegister)
        case APICRegister.processorPriority:
            return UInt32(processorPriority)
        case APICRegister.arbitrationPriority, APICRegister.remoteRead, APICRegister.endOfInterrupt:
            return 0
        case APICRegister.logicalDestination:
            return isX2APICEnabled ? x2APICLogicalID : UInt32(logicalID) << 24
        case APICRegister.destinationFormat:
            return destinationFormat
        case APICRegister.spurious:
            return spurious
        case APICRegister.inService..<APICRegister.triggerMode:
            return inService[register: Self.index(offset)]
        case APICRegister.triggerMode..<APICRegister.request:
            return triggers[register: Self.index(offset)]
        case APICRegister.request..<APICRegister.errorStatus:
            return requests[register: Self.index(offset)]
        case APICRegister.errorStatus:
            return errorStatus
        case APICRegister.command:
            return commandLow
        case APICRegister.commandHigh:
            return commandHigh
        case APICRegister.localVectorTable..<APICRegister.initialCount:
            return Self.localInterrupt(at: offset).map { localVectors[$0] }
        case APICRegister.initialCount:
            return initialCount
        case APICRegister.currentCount:
            return currentCount(at: now())
        case APICRegister.divideConfiguration:
            return divideConfiguration
        default:
            return nil
        }
    }

    /// Writes a register that xAPIC and x2APIC mode treat alike; false if there is none at `offset` or it is read-only.
    func setRegister(_ offset: UInt32, _ value: UInt32, now: @autoclosure () -> GuestTime) -> Bool {
        switch offset {
        case APICRegister.taskPriority:
            taskPriorityRegister = UInt8(truncatingIfNeeded: value)
            updateProcessorPriority()
        case APICRegister.endOfInterrupt:
            endOfInterrupt()
        case APICRegister.spurious:
            setSpurious(value)
        case APICRegister.errorStatus:
            errorStatus = errors.exchange(0, ordering: .relaxed)
            signalledErrors = 0
        case APICRegister.localVectorTable..<APICRegister.initialCount:
            guard let source = Self.localInterrupt(at: offset) else { return false }
            setLocalVector(source, value)
        case APICRegister.initialCount:
            setInitialCount(value, now: now())
        case APICRegister.divideConfiguration:
            setDivideConfiguration(value, now: now())
        default:
            return false
        }
        return true
    }

    /// Version 0x14 with six entries in the local vector table.
    static let version: UInt32 = 0x14 | 5 << 16

    static func index(_ offset: UInt32) -> Int { Int(truncatingIfNeeded: offset >> 4 & 7) }

    static func localInterrupt(at offset: UInt32) -> LocalInterrupt? {
        LocalInterrupt(rawValue: Int(truncatingIfNeeded: (offset &- APICRegister.localVectorTable) >> 4))
    }

    private func setSpurious(_ value: UInt32) {
        spurious = value & (SpuriousRegister.vector | SpuriousRegister.softwareEnable | SpuriousRegister.focusDisable)
        if spurious & SpuriousRegister.softwareEnable == 0 {
            for source in LocalInterrupt.allCases { localVectors[source] |= LocalVectorEntry.masked }
        }
        publishRouting()
    }

    private func setLocalVector(_ source: LocalInterrupt, _ value: UInt32) {
        var entry = value & writableBits(of: source)
        if spurious & SpuriousRegister.softwareEnable == 0 { entry |= LocalVectorEntry.masked }
        let oldMode = timerMode
        localVectors[source] = entry
        switch source {
        case .timer: timerModeDidChange(from: oldMode)
        case .lint0: publishRouting()
        default: break
        }
    }

    func writableBits(of source: LocalInterrupt) -> UInt32 {
        let common = LocalVectorEntry.vector | LocalVectorEntry.masked
        switch source {
        case .timer:
            return common | LocalVectorEntry.timerPeriodic
                | (supportsTSCDeadline ? LocalVectorEntry.timerTSCDeadline : 0)
        case .thermal, .performance:
            return common | LocalVectorEntry.deliveryMode
        case .lint0, .lint1:
            return common | LocalVectorEntry.deliveryMode | LocalVectorEntry.polarity | LocalVectorEntry.levelTriggered
        case .error:
            return common
        }
    }

    // MARK: Interrupt command

    /// All but bit 12 (delivery status: always idle). Reserved bits are kept, as KVM does.
    static let commandWritable: UInt32 = ~(1 << 12)

    private func writeCommand(low: UInt32, destination: UInt32) {
        commandLow = low & Self.commandWritable
        guard let mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: low >> 8) & 7) else { return }
        // Only INIT knows levels; the other modes are edges, whatever these two bits say.
        let isLevel = mode == .initialize && low & 1 << 15 != 0
        send(
            InterruptMessage(
                destination: destination,
                destinationMode: low & 1 << 11 != 0 ? .logical : .physical,
                shorthand: DestinationShorthand(rawValue: UInt8(truncatingIfNeeded: low >> 18) & 3) ?? .none,
                deliveryMode: mode,
                vector: UInt8(truncatingIfNeeded: low),
                isLevelTriggered: isLevel,
                isAsserted: !isLevel || low & 1 << 14 != 0))
    }

    private func send(_ message: InterruptMessage) {
        switch message.deliveryMode {
        case .fixed, .lowestPriority:
            guard message.vector >= 16 else {
                _ = recordErrors(APICError.sendIllegalVector)
                return
            }
        case .unhalt, .external:
            // Reserved in the command register, or nobody would listen.
            return
        case .smi, .nmi, .initialize, .startup:
            break
        }
        host.send(message)
    }
}
