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
    /// Guest memory at this guest physical address could not be accessed on the host (`EFAULT`).
    case hostMemory(UInt64)
    /// The instruction at RIP cannot be executed (`KVM_EXIT_INTERNAL_ERROR`, emulation failure).
    case emulationFailure
}

/// A device access for the client. Reads are answered through ``Processor/answerClientRead(_:)``.
public enum ClientRequest: Equatable, Sendable {
    case portIn(port: UInt16, byteCount: Int)
    case portOut(port: UInt16, byteCount: Int, value: UInt32)
    case mmioRead(address: UInt64, byteCount: Int)
    case mmioWrite(address: UInt64, byteCount: Int, value: UInt64)
}
