import CHost

/// Accesses of guest memory by its host address.
///
/// The memory belongs to the client, which may unmap it, protect it, or truncate the file behind it while they are made: then
/// they fail, and the instruction that they are made for ends with ``GuestFault/hostMemory(_:)``.
extension UnsafeRawPointer {
    /// A little-endian integer of 1, 2, 4 or 8 bytes at any alignment; nil if there is no memory.
    @inline(__always)
    func guestValue<T: FixedWidthInteger>(as type: T.Type) -> T? {
        switch MemoryLayout<T>.size {
        case 1:
            var value: UInt8 = 0
            return martlet_guarded_load8(self, &value) ? T(truncatingIfNeeded: value) : nil
        case 2:
            var value: UInt16 = 0
            return martlet_guarded_load16(self, &value) ? T(truncatingIfNeeded: value) : nil
        case 4:
            var value: UInt32 = 0
            return martlet_guarded_load32(self, &value) ? T(truncatingIfNeeded: value) : nil
        case 8:
            var value: UInt64 = 0
            return martlet_guarded_load64(self, &value) ? T(truncatingIfNeeded: value) : nil
        default: preconditionFailure("guest memory has integers of up to 8 bytes")
        }
    }
}

extension UnsafeMutableRawPointer {
    /// As ``UnsafeRawPointer/guestValue(as:)``.
    @inline(__always)
    func guestValue<T: FixedWidthInteger>(as type: T.Type) -> T? { UnsafeRawPointer(self).guestValue(as: type) }

    /// An integer of so many bytes, zero-extended; nil if there is no memory.
    func guestElement(byteCount: Int) -> UInt64? {
        switch byteCount {
        case 1: guestValue(as: UInt8.self).map { UInt64($0) }
        case 2: guestValue(as: UInt16.self).map { UInt64($0) }
        case 4: guestValue(as: UInt32.self).map { UInt64($0) }
        default: guestValue(as: UInt64.self)
        }
    }

    /// Stores an integer of 1, 2, 4 or 8 bytes; false if there is no memory.
    @inline(__always)
    func storeGuestValue<T: FixedWidthInteger>(_ value: T) -> Bool {
        switch MemoryLayout<T>.size {
        case 1: martlet_guarded_store8(self, UInt8(truncatingIfNeeded: value))
        case 2: martlet_guarded_store16(self, UInt16(truncatingIfNeeded: value))
        case 4: martlet_guarded_store32(self, UInt32(truncatingIfNeeded: value))
        case 8: martlet_guarded_store64(self, UInt64(truncatingIfNeeded: value))
        default: preconditionFailure("guest memory has integers of up to 8 bytes")
        }
    }

    /// Replaces a byte by what `change` makes of it, as a LOCK prefix would: nobody else's store comes in between.
    /// - Returns: the old byte; nil if there is no memory.
    package func exchangeGuestByte(_ change: (UInt8) -> UInt8) -> UInt8? {
        while let old = guestValue(as: UInt8.self) {
            let result = martlet_guarded_exchange8(self, old, change(old))
            if result > 0 { return old }
            if result < 0 { break }
        }
        return nil
    }

    /// Copies bytes to guest memory; false if there is none, and some bytes may be written then.
    @inline(__always)
    func copyGuestBytes(from source: UnsafeRawPointer, byteCount: Int) -> Bool {
        martlet_guarded_copy(self, source, byteCount) == 0
    }
}
