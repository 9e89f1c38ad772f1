/// Why an instruction did not complete.
///
/// Functions that act for a guest instruction throw this with a typed `throws`: the value travels in registers, and
/// nothing is allocated. The instruction has then changed no guest state that would keep it from being executed again.
public enum GuestFault: Error, Equatable, Sendable {
    /// An exception to be delivered to the guest.
    case exception(GuestException)
    /// The instruction needs the client (port or memory-mapped I/O); the request is in the processor's pending exit. It
    /// is executed again from its start once the client has answered.
    case needsClient
    /// A triple fault.
    case shutdown
    /// INT3, which the client's debugger wants instead of the guest.
    case breakpoint
    /// There is no memory where the instruction is fetched from.
    case notExecutable
    /// The host could not provide guest memory: the client has unmapped, protected or truncated it. The access was to this
    /// linear address, or to a table on the way to it; 0 if it is not known.
    case hostMemory(UInt64)
}

/// An exception of the guest's processor.
///
/// > Source: APM volume 2, chapter 8.
public struct GuestException: Equatable, Sendable {
    public var vector: UInt8
    /// The error code that is pushed, for the vectors that have one.
    public var errorCode: UInt32?
    /// CR2 for a page fault, DR6 bits for a debug exception, otherwise 0.
    public var payload: UInt64

    @inlinable public init(vector: UInt8, errorCode: UInt32? = nil, payload: UInt64 = 0) {
        self.vector = vector
        self.errorCode = errorCode
        self.payload = payload
    }

    /// A page fault for a reserved bit in an entry of a page table.
    public var isReservedBitFault: Bool { vector == 14 && (errorCode ?? 0) & 1 << 3 != 0 }

    @inlinable public static var divideError: Self { Self(vector: 0) }
    @inlinable public static func debug(_ dr6: UInt64) -> Self { Self(vector: 1, payload: dr6) }
    @inlinable public static var breakpoint: Self { Self(vector: 3) }
    @inlinable public static var overflow: Self { Self(vector: 4) }
    @inlinable public static var boundRange: Self { Self(vector: 5) }
    @inlinable public static var invalidOpcode: Self { Self(vector: 6) }
    @inlinable public static var deviceNotAvailable: Self { Self(vector: 7) }
    @inlinable public static var doubleFault: Self { Self(vector: 8, errorCode: 0) }
    @inlinable public static func invalidTSS(_ code: UInt32) -> Self { Self(vector: 10, errorCode: code) }
    @inlinable public static func segmentNotPresent(_ code: UInt32) -> Self { Self(vector: 11, errorCode: code) }
    @inlinable public static func stack(_ code: UInt32 = 0) -> Self { Self(vector: 12, errorCode: code) }
    @inlinable public static func generalProtection(_ code: UInt32 = 0) -> Self { Self(vector: 13, errorCode: code) }
    @inlinable public static func pageFault(address: UInt64, code: UInt32) -> Self {
        Self(vector: 14, errorCode: code, payload: address)
    }
    @inlinable public static var floatingPoint: Self { Self(vector: 16) }
    @inlinable public static var alignmentCheck: Self { Self(vector: 17, errorCode: 0) }
    @inlinable public static var simdFloatingPoint: Self { Self(vector: 19) }
}

extension GuestFault {
    @inlinable public static var invalidOpcode: Self { .exception(.invalidOpcode) }
    @inlinable public static func generalProtection(_ code: UInt32 = 0) -> Self { .exception(.generalProtection(code)) }
}
