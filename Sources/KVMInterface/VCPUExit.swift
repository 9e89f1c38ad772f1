/// Why `KVM_RUN` returned.
public enum VCPUExit {
    /// Port input or output; the answer to input is written to ``PortAccess/data``. `KVM_EXIT_IO`.
    case io(PortAccess)
    /// An access outside memory; the answer to a read is written to ``MMIOAccess/data``. `KVM_EXIT_MMIO`.
    case mmio(MMIOAccess)
    /// HLT without an in-kernel local APIC. `KVM_EXIT_HLT`.
    case hlt
    /// Triple fault. `KVM_EXIT_SHUTDOWN`.
    case shutdown
    /// `KVM_EXIT_SYSTEM_EVENT`.
    case systemEvent(type: UInt32, data: UInt64)
    /// `KVM_EXIT_INTERNAL_ERROR`.
    case internalError(suberror: UInt32, data: [UInt64])
    /// `KVM_EXIT_FAIL_ENTRY`.
    case failEntry(reason: UInt64, cpu: UInt32)
    /// A signal is pending, or ``VCPU/immediateExit`` was set: `EINTR`.
    case interrupted
    /// An interrupt can be injected now. `KVM_EXIT_IRQ_WINDOW_OPEN`.
    case irqWindowOpen
    /// A level-triggered interrupt of the client's IOAPIC has ended. `KVM_EXIT_IOAPIC_EOI`.
    case endOfInterrupt(vector: UInt8)
    /// Any other `KVM_EXIT_…`.
    case unknown(UInt32)
}

/// A port access of the guest.
public struct PortAccess {
    public let port: UInt16
    public let isWrite: Bool
    /// The size of one transfer: 1, 2 or 4.
    public let byteCount: Int
    /// How many transfers `data` holds, one behind the other.
    public let count: Int
    /// In the run area; valid until the next run of this vCPU.
    public let data: UnsafeMutableRawBufferPointer

    /// The first transfer as a number.
    public var value: UInt32 {
        get { UInt32(truncatingIfNeeded: littleEndianValue(of: data, byteCount: byteCount)) }
        nonmutating set { storeLittleEndian(UInt64(newValue), to: data, byteCount: byteCount) }
    }
}

/// An access of the guest to an address without memory.
public struct MMIOAccess {
    public let address: UInt64
    public let isWrite: Bool
    /// 1…8.
    public let byteCount: Int
    /// `byteCount` bytes in the run area; valid until the next run of this vCPU.
    public let data: UnsafeMutableRawBufferPointer

    public var value: UInt64 {
        get { littleEndianValue(of: data, byteCount: byteCount) }
        nonmutating set { storeLittleEndian(newValue, to: data, byteCount: byteCount) }
    }
}

private func littleEndianValue(of data: UnsafeMutableRawBufferPointer, byteCount: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in (0..<min(byteCount, data.count, 8)).reversed() { value = value << 8 | UInt64(data[index]) }
    return value
}

private func storeLittleEndian(_ value: UInt64, to data: UnsafeMutableRawBufferPointer, byteCount: Int) {
    for index in 0..<min(byteCount, data.count, 8) {
        data[index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
    }
}
