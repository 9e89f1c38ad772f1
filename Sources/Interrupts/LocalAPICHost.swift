/// What surrounds a local APIC: the vCPU that owns it.
public protocol LocalAPICHost: AnyObject, Sendable {
    /// Makes the owner look at its APIC soon: raise attention, wake it if it is halted.
    ///
    /// > Concurrency: any thread, also with interrupt controller locks held; must not call back into them.
    func kick()

    /// Makes a system management interrupt pending, and the owner look for it soon.
    ///
    /// > Concurrency: as for ``kick()``.
    func postSystemManagementInterrupt()

    /// Puts a message of the owner's command register on the bus.
    /// > Concurrency: the owner.
    func send(_ message: InterruptMessage)

    /// Tells the IOAPICs that the service of a level-triggered interrupt ended.
    /// > Concurrency: the owner.
    func broadcastEndOfInterrupt(vector: UInt8)

    /// Asks for ``LocalAPIC/serviceTimer(now:)`` at that monotonic time or soon after; nil takes the wish back.
    /// > Concurrency: the owner.
    func armTimer(deadlineNanoseconds: UInt64?)
}

/// The local vector table's entries. The raw value is the entry's index in the page, from offset 0x320 on.
public enum LocalInterrupt: Int, CaseIterable, Sendable {
    case timer = 0
    case thermal = 1
    case performance = 2
    case lint0 = 3
    case lint1 = 4
    case error = 5
}

/// What became of an interrupt that reached an interrupt controller.
public enum Acceptance: Sendable {
    /// Masked, disabled or unknown.
    case ignored
    /// The same interrupt was pending already.
    case coalesced
    case delivered
}
