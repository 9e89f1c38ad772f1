/// The size of the smallest page, in bytes.
@inlinable public var pageSize: UInt64 { 4096 }

/// The number of address bits below a page frame.
@inlinable public var pageShift: UInt64 { 12 }

/// An address in the guest's physical address space (gpa).
public struct GuestPhysicalAddress: Hashable, Comparable, Sendable {
    public var value: UInt64

    @inlinable public init(_ value: UInt64) { self.value = value }

    /// The frame that holds this address.
    @inlinable public var frame: GuestFrameNumber { GuestFrameNumber(value >> pageShift) }

    /// The distance from the start of the frame, in bytes.
    @inlinable public var offsetInPage: UInt64 { value & (pageSize - 1) }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }

    /// The address `distance` bytes further on, modulo 2^64.
    @inlinable public static func + (a: Self, distance: UInt64) -> Self { Self(a.value &+ distance) }
}

/// The number of a 4 KiB page in the guest's physical address space (gfn).
public struct GuestFrameNumber: Hashable, Comparable, Sendable {
    public var value: UInt64

    @inlinable public init(_ value: UInt64) { self.value = value }

    /// The address of the frame's first byte.
    @inlinable public var address: GuestPhysicalAddress { GuestPhysicalAddress(value << pageShift) }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }

    /// The frame `count` frames further on.
    @inlinable public static func + (a: Self, count: UInt64) -> Self { Self(a.value &+ count) }
}

/// A linear address as the guest's paging sees it (gva).
public struct GuestVirtualAddress: Hashable, Comparable, Sendable {
    public var value: UInt64

    @inlinable public init(_ value: UInt64) { self.value = value }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
}

/// An address in this process (hva).
public struct HostVirtualAddress: Hashable, Comparable, Sendable {
    public var value: UInt

    @inlinable public init(_ value: UInt) { self.value = value }

    /// The address as a pointer; nil for address 0.
    @inlinable public var pointer: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: value) }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
}
