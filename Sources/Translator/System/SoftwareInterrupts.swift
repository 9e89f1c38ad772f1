import X86

// INT n, INT3, INTO, INT1 and BOUND.

extension Processor {
    /// INT n.
    func executeInterrupt(_ i: DecodedInstruction) throws(GuestFault) {
        let vector = UInt8(truncatingIfNeeded: i.operand(0).immediate)
        if isVirtual8086 {
            if try redirectsInterrupt(vector) { return try deliverToVirtual8086(vector, nextRIP(i)) }
            if iopl < 3 { throw .generalProtection() }
        }
        try deliver(PendingEvent(kind: .softwareInterrupt, vector: vector), returningTo: nextRIP(i))
    }

    func executeBreakpoint(_ i: DecodedInstruction) throws(GuestFault) {
        if debugger.catchesBreakpoints { throw .breakpoint }
        try executeSoftwareException(i, vector: 3)
    }

    /// INT3 and INTO.
    func executeSoftwareException(_ i: DecodedInstruction, vector: UInt8) throws(GuestFault) {
        try deliver(PendingEvent(kind: .softwareException, vector: vector), returningTo: nextRIP(i))
    }

    func executeInterruptOnOverflow(_ i: DecodedInstruction) throws(GuestFault) {
        if state.arithmeticFlags & RFlags.overflow != 0 {
            try executeSoftwareException(i, vector: 4)
        } else {
            advance(i)
        }
    }

    /// INT1: a debug exception that no gate's privilege level stops and that leaves DR6 alone.
    func executeDebugTrap(_ i: DecodedInstruction) throws(GuestFault) {
        try deliver(PendingEvent(kind: .exception, vector: 1), returningTo: nextRIP(i))
    }

    /// BOUND: the index in the first operand has to be between two signed values in memory.
    func executeBound(_ i: DecodedInstruction) throws(GuestFault) {
        let byteCount = Int(i.operandWidth) / 8
        let memory = i.operand(1).memory
        let linear = linearAddress(memory, of: i)
        let lower = try readData(linear, byteCount: byteCount, segment: memory.segment)
        let upper = try readData(
            (linear &+ UInt64(byteCount)) & 0xFFFF_FFFF, byteCount: byteCount, segment: memory.segment)
        let index = signed(readRegister(i.operand(0).register), byteCount)
        if index < signed(lower, byteCount) || index > signed(upper, byteCount) { throw .exception(.boundRange) }
        advance(i)
    }

    private func signed(_ value: UInt64, _ byteCount: Int) -> Int64 {
        let shift = Int64(64 - byteCount * 8)
        return (Int64(bitPattern: value) << shift) >> shift
    }

    // MARK: Virtual-8086 mode extensions

    /// Whether CR4.VME and the task state's bitmap send INT `vector` to the virtual-8086 program's own vector table.
    /// > Source: Intel SDM volume 3, section 20.3.3.
    private func redirectsInterrupt(_ vector: UInt8) throws(GuestFault) -> Bool {
        guard system.cr4 & CR4.virtual8086Extensions != 0, system.tr.isWideTaskState else { return false }
        let tr = system.tr
        guard TaskState.ioBitmapBaseOffset + 1 <= tr.limit else { throw .generalProtection() }
        let base = try read(systemAddress(tr.base &+ TaskState.ioBitmapBaseOffset), as: UInt16.self, .system)
        // The interrupt bitmap is the 32 bytes before the I/O bitmap.
        let offset = UInt64(base) &- 32 &+ UInt64(vector >> 3)
        guard offset <= UInt64(tr.limit) else { throw .generalProtection() }
        let bits = try read(systemAddress(tr.base &+ offset), as: UInt8.self, .system)
        return bits & 1 << (vector & 7) == 0
    }

    private func deliverToVirtual8086(_ vector: UInt8, _ rip: UInt64) throws(GuestFault) {
        let target = try read(UInt64(vector) * 4, as: UInt32.self)
        var flags = state.rflags
        // Without I/O privilege the program sees and changes VIF instead of IF.
        let interrupt = iopl < 3 ? RFlags.virtualInterrupt : RFlags.interrupt
        if iopl < 3 {
            flags = flags & ~RFlags.interrupt | RFlags.ioPrivilege
            if state.systemFlags & RFlags.virtualInterrupt != 0 { flags |= RFlags.interrupt }
        }
        try enterRealHandler(target, flags: flags, rip)
        state.systemFlags &= ~(interrupt | RFlags.trap)
        modeDidChange()
    }
}
