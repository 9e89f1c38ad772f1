import Glibc

/// String operations on runs of plain memory, with the result of doing one element after the other.
///
/// Elements have 1, 2, 4 or 8 bytes and need no alignment. A pointer names the element that comes first in time; with
/// `backwards` the others lie below it. The memory may be changed by others meanwhile: each element counts as read
/// once.
package enum BulkMemory {
    /// MOVS: copies `count` elements from `source` to `target`, which may overlap.
    package static func move(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int, elementByteCount: Int,
        backwards: Bool
    ) {
        let byteCount = count * elementByteCount
        if backwards {
            let sourceEnd = source + elementByteCount
            let targetEnd = target + elementByteCount
            let distance = sourceEnd - UnsafeRawPointer(targetEnd)
            if distance <= 0 || distance >= byteCount {
                memmove(targetEnd - byteCount, sourceEnd - byteCount, byteCount)
            } else if distance >= elementByteCount {
                // The target is filled with repetitions of the `distance` bytes at the source's end. What has been
                // written so far is a whole number of them, so the periodic run to copy from grows each time.
                var done = 0
                while done < byteCount {
                    let length = min(distance + done, byteCount - done)
                    memcpy(targetEnd - done - length, sourceEnd - length, length)
                    done += length
                }
            } else {
                moveSingly(from: source, to: target, count: count, elementByteCount: elementByteCount, step: -1)
            }
        } else {
            let distance = UnsafeRawPointer(target) - source
            if distance <= 0 || distance >= byteCount {
                memmove(target, source, byteCount)
            } else if distance >= elementByteCount {
                var done = 0
                while done < byteCount {
                    let length = min(distance + done, byteCount - done)
                    memcpy(target + done, source, length)
                    done += length
                }
            } else {
                moveSingly(from: source, to: target, count: count, elementByteCount: elementByteCount, step: 1)
            }
        }
    }

    private static func moveSingly(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int, elementByteCount: Int,
        step: Int
    ) {
        for i in 0..<count {
            let offset = i * step * elementByteCount
            store(load(source + offset, elementByteCount), target + offset, elementByteCount)
        }
    }

    /// STOS: writes the low bytes of `value` to `count` elements.
    package static func fill(
        _ target: UnsafeMutableRawPointer, with value: UInt64, count: Int, elementByteCount: Int, backwards: Bool
    ) {
        if count == 0 { return }
        let byteCount = count * elementByteCount
        let start = backwards ? target + elementByteCount - byteCount : target
        let byte = UInt8(truncatingIfNeeded: value)
        let mask: UInt64 = ~0 >> UInt64(64 - elementByteCount * 8)
        let repeated = UInt64(byte) &* 0x0101_0101_0101_0101
        if (value ^ repeated) & mask == 0 {
            memset(start, Int32(byte), byteCount)
            return
        }
        store(value, start, elementByteCount)
        var done = elementByteCount
        while done < byteCount {
            let length = min(done, byteCount - done)
            memcpy(start + done, start, length)
            done += length
        }
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

    /// An element, zero-extended.
    @inline(__always)
    package static func load(_ pointer: UnsafeRawPointer, _ byteCount: Int) -> UInt64 {
        switch byteCount {
        case 1: UInt64(pointer.load(as: UInt8.self))
        case 2: UInt64(pointer.loadUnaligned(as: UInt16.self))
        case 4: UInt64(pointer.loadUnaligned(as: UInt32.self))
        default: pointer.loadUnaligned(as: UInt64.self)
        }
    }

    /// Stores the low bytes of `value`.
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
