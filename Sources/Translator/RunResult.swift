/// Why ``Processor/run()`` returned.
public enum RunResult: Equatable, Sendable {
    /// The attention flag was raised, or an interrupt that had to wait can now be delivered.
    case attention
    /// The instruction at RIP needs the client's answer; it is executed again by the next `run()`.
    case needsClient(ClientRequest)
    /// HLT was executed; RIP is behind it.
    case halted
    /// Triple fault.
    case shutdown
    /// What the client's debugger waits for: vector 3 for an INT3, which is at RIP, or 1 for all that a debug exception
    /// reports, with its DR6.
    case debug(vector: UInt8, dr6: UInt64)
    /// The host could not provide guest memory (`EFAULT`); the address is that of ``GuestFault/hostMemory(_:)``. The
    /// instruction at RIP is executed again by the next `run()`, or the event in `system.pendingEvent` delivered.
    case hostMemory(UInt64)
    /// The instruction at RIP cannot be executed (`KVM_EXIT_INTERNAL_ERROR`, emulation failure).
    case emulationFailure
}

/// An access for the client. Reads of devices are answered through ``Processor/answerClientRead(_:)``.
public enum ClientRequest: Equatable, Sendable {
    case portIn(port: UInt16, byteCount: Int)
    /// `count` elements of a string instruction, answered through ``Processor/answerClientReads(count:_:)``.
    case portInString(port: UInt16, byteCount: Int, count: Int)
    case portOut(port: UInt16, byteCount: Int, value: UInt32)
    case mmioRead(address: UInt64, byteCount: Int)
    case mmioWrite(address: UInt64, byteCount: Int, value: UInt64)
    /// Answered through ``Processor/answerClientMSR(_:isRefused:)``, as is a write.
    case msrRead(index: UInt32, MSRRefusal)
    case msrWrite(index: UInt32, value: UInt64, MSRRefusal)
}
