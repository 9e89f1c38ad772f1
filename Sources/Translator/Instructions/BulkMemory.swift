import CHost
import Glibc

/// String operations on runs of plain memory, with the result of doing one element after the other.
///
/// Elements have 1, 2, 4 or 8 bytes and need no alignment. A pointer names the element that comes first in time; with
/// `backwards` the others lie below it. The memory may be changed by others meanwhile: each element counts as read
/// once. ``move(from:to:count:elementByteCount:backwards:)`` and ``fill(_:with:count:elementByteCount:backwards:)`` work on guest
/// memory, which the client may take away; what compares works on copies.
package enum BulkMemory {
    /// MOVS: copies `count` elements, of a page at most, from `source` to `target`, which may overlap.
    /// - Returns: false if some of the memory is missing; elements may have been copied then.
    package static func move(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int, elementByteCount: Int,
        backwards: Bool
    ) -> Bool {
        let byteCount = count * elementByteCount
        if backwards {
            let sourceEnd = source + elementByteCount
            let targetEnd = target + elementByteCount
            let distance = sourceEnd - UnsafeRawPointer(targetEnd)
            if distance >= byteCount || distance <= -byteCount {
                return (targetEnd - byteCount).copyGuestBytes(from: sourceEnd - byteCount, byteCount: byteCount)
            }
            if distance <= 0 {
                return moveThroughCopy(from: sourceEnd - byteCount, to: targetEnd - byteCount, byteCount)
            }
            if distance >= elementByteCount {
                // The target is filled with repetitions of the `distance` bytes at the source's end. What has been
                // written so far is a whole number of them, so the periodic run to copy from grows each time.
                var done = 0
                while done < byteCount {
                    let length = min(distance + done, byteCount - done)
                    guard (targetEnd - done - length).copyGuestBytes(from: sourceEnd - length, byteCount: length) else {
                        return false
                    }
                    done += length
                }
                return true
            }
            return moveSingly(from: source, to: target, count: count, elementByteCount: elementByteCount, step: -1)
        }
        let distance = UnsafeRawPointer(target) - source
        if distance <= 0 || distance >= byteCount { return target.copyGuestBytes(from: source, byteCount: byteCount) }
        if distance >= elementByteCount {
            var done = 0
            while done < byteCount {
                let length = min(distance + done, byteCount - done)
                guard (target + done).copyGuestBytes(from: source, byteCount: length) else { return false }
                done += length
            }
            return true
        }
        return moveSingly(from: source, to: target, count: count, elementByteCount: elementByteCount, step: 1)
    }

    /// Copies bytes to a target that overlaps a source below it.
    private static func moveThroughCopy(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, _ byteCount: Int
    ) -> Bool {
        withUnsafeTemporaryAllocation(byteCount: byteCount, alignment: 32) { buffer in
            // SAFETY: the runs are not empty, so the buffer has an address.
            let copy = buffer.baseAddress.unsafelyUnwrapped
            return copy.copyGuestBytes(from: source, byteCount: byteCount)
                && target.copyGuestBytes(from: copy, byteCount: byteCount)
        }
    }

    private static func moveSingly(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int, elementByteCount: Int,
        step: Int
    ) -> Bool {
        (0..<count).allSatisfy { i in
            let offset = i * step * elementByteCount
            return (target + offset).copyGuestBytes(from: source + offset, byteCount: elementByteCount)
        }
    }

    /// STOS: writes the low bytes of `value` to `count` elements.
    /// - Returns: as ``move(from:to:count:elementByteCount:backwards:)``.
    package static func fill(
        _ target: UnsafeMutableRawPointer, with value: UInt64, count: Int, elementByteCount: Int, backwards: Bool
    ) -> Bool {
        let byteCount = count * elementByteCount
        let start = backwards ? target + elementByteCount - byteCount : target
        let pattern: UInt64 =
            switch elementByteCount {
            case 1: (value & 0xFF) &* 0x0101_0101_0101_0101
            case 2: (value & 0xFFFF) &* 0x0001_0001_0001_0001
            case 4: (value & 0xFFFF_FFFF) &* 0x0000_0001_0000_0001
            default: value
            }
        return martlet_guarded_fill(start, UInt(pattern), byteCount) == 0
    }

    /// What a comparing operation saw.
    package struct Comparison: Equatable, Sendable {
        /// The number of elements looked at, at least 1.
        package var count: Int
        /// The last two values compared.
        package var first: UInt64
        package var second: UInt64

        package init(count: Int, first: UInt64, second: UInt64) {
            self.count = count
            self.first = first
            self.second = second
        }
    }

    /// SCAS: compares `value` with up to `count` (at least 1) elements, and ends behind the first that is equal
    /// (`untilEqual`) or different.
    package static func scan(
        _ target: UnsafeRawPointer, for value: UInt64, count: Int, elementByteCount: Int, backwards: Bool,
        untilEqual: Bool
    ) -> Comparison {
        if untilEqual && !backwards && elementByteCount == 1 {
            if let found = memchr(target, Int32(value & 0xFF), count) {
                return Comparison(count: UnsafeRawPointer(found) - target + 1, first: value, second: value)
            }
            // The last byte was seen to differ; it may have changed since, and flags must agree with what was seen.
            let last = load(target + (count - 1), 1)
            if last != value { return Comparison(count: count, first: value, second: last) }
            return Comparison(count: count, first: value, second: value)
        }
        let step = backwards ? -elementByteCount : elementByteCount
        var element: UInt64 = 0
        for i in 0..<count {
            element = load(target + i * step, elementByteCount)
            if (element == value) == untilEqual {
                return Comparison(count: i + 1, first: value, second: element)
            }
        }
        return Comparison(count: count, first: value, second: element)
    }

    /// CMPS: compares up to `count` (at least 1) pairs, and ends behind the first that is equal (`untilEqual`) or
    /// different.
    package static func compare(
        _ first: UnsafeRawPointer, _ second: UnsafeRawPointer, count: Int, elementByteCount: Int, backwards: Bool,
        untilEqual: Bool
    ) -> Comparison {
        if !untilEqual && !backwards && count > 8 && memcmp(first, second, count * elementByteCount) == 0 {
            let last = load(first + (count - 1) * elementByteCount, elementByteCount)
            return Comparison(count: count, first: last, second: last)
        }
        let step = backwards ? -elementByteCount : elementByteCount
        var a: UInt64 = 0
        var b: UInt64 = 0
        for i in 0..<count {
            a = load(first + i * step, elementByteCount)
            b = load(second + i * step, elementByteCount)
            if (a == b) == untilEqual { return Comparison(count: i + 1, first: a, second: b) }
        }
        return Comparison(count: count, first: a, second: b)
    }

    /// An element of the core's own memory, zero-extended.
    @inline(__always)
    package static func load(_ pointer: UnsafeRawPointer, _ byteCount: Int) -> UInt64 {
        switch byteCount {
        case 1: UInt64(pointer.load(as: UInt8.self))
        case 2: UInt64(pointer.loadUnaligned(as: UInt16.self))
        case 4: UInt64(pointer.loadUnaligned(as: UInt32.self))
        default: pointer.loadUnaligned(as: UInt64.self)
        }
    }

    /// Stores the low bytes of `value` to the core's own memory.
    @inline(__always)
    package static func store(_ value: UInt64, _ pointer: UnsafeMutableRawPointer, _ byteCount: Int) {
        switch byteCount {
        case 1: pointer.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
        case 2: pointer.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        case 4: pointer.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        default: pointer.storeBytes(of: value, as: UInt64.self)
        }
    }
}
