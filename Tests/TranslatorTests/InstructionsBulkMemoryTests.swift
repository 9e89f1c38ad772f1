import TestSupport
import Testing
import Translator

/// String operations on plain memory against one element after the other.
@Suite struct InstructionsBulkMemoryTests {
    private static let sizes = [1, 2, 4, 8]

    private static func load(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> UInt64 {
        (0..<size).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64($1 * 8) }
    }

    private static func store(_ bytes: inout [UInt8], _ offset: Int, _ size: Int, _ value: UInt64) {
        for i in 0..<size { bytes[offset + i] = UInt8(truncatingIfNeeded: value >> UInt64(i * 8)) }
    }

    @Test func movesLikeSingleElements() {
        let seed = UInt64.random(in: 0 ... .max)
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<4000 {
            let size = Self.sizes.randomElement(using: &generator)!
            let backwards = Bool.random(using: &generator)
            let count = Int.random(in: 1...60, using: &generator)
            // Source and target lie close together, so that most runs overlap.
            let reach = count * size
            let source = 1200 + Int.random(in: 0..<40, using: &generator)
            let target = source + Int.random(in: -reach - 3...reach + 3, using: &generator)
            let image = Image(byteCount: 2400)
            for i in 0..<2400 {
                image.base.storeBytes(of: UInt8.random(in: 0...255, using: &generator), toByteOffset: i, as: UInt8.self)
            }
            var expected = image.bytes
            for i in 0..<count {
                let offset = backwards ? -i * size : i * size
                Self.store(&expected, target + offset, size, Self.load(expected, source + offset, size))
            }
            let isMoved = BulkMemory.move(
                from: image.base + source, to: image.base + target, count: count, elementByteCount: size,
                backwards: backwards)
            #expect(isMoved)
            #expect(
                image.bytes == expected,
                "seed \(seed): size \(size) count \(count) distance \(target - source) backwards \(backwards)")
        }
    }

    @Test func replicatesAByteForwards() {
        let image = Image(byteCount: 100)
        image.base.storeBytes(of: 0xAB, as: UInt8.self)
        let isMoved = BulkMemory.move(
            from: image.base, to: image.base + 1, count: 98, elementByteCount: 1, backwards: false)
        #expect(isMoved)
        #expect(image.bytes == Array(repeating: 0xAB, count: 99) + [0])
    }

    @Test func fillsLikeSingleElements() {
        let seed = UInt64.random(in: 0 ... .max)
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<2000 {
            let size = Self.sizes.randomElement(using: &generator)!
            let backwards = Bool.random(using: &generator)
            let count = Int.random(in: 1...70, using: &generator)
            let target = 600 + Int.random(in: 0..<9, using: &generator)
            let value = [0, 0x4242_4242_4242_4242, generator.next()].randomElement(using: &generator)!
            let image = Image(byteCount: 1200, filledWith: 0x11)
            var expected = image.bytes
            for i in 0..<count { Self.store(&expected, target + (backwards ? -i : i) * size, size, value) }
            let isFilled = BulkMemory.fill(
                image.base + target, with: value, count: count, elementByteCount: size, backwards: backwards)
            #expect(isFilled)
            #expect(image.bytes == expected, "seed \(seed): size \(size) count \(count) backwards \(backwards)")
        }
    }

    @Test func scansAndComparesLikeSingleElements() {
        let seed = UInt64.random(in: 0 ... .max)
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<4000 {
            let size = Self.sizes.randomElement(using: &generator)!
            let backwards = Bool.random(using: &generator)
            let untilEqual = Bool.random(using: &generator)
            let count = Int.random(in: 1...40, using: &generator)
            let image = Image(byteCount: 1200)
            // Bytes are mostly equal, so that runs end anywhere.
            for i in 0..<1200 where Int.random(in: 0..<60, using: &generator) == 0 {
                image.base.storeBytes(of: 1, toByteOffset: i, as: UInt8.self)
            }
            let bytes = image.bytes
            let value = untilEqual ? 1 : UInt64(0)
            var expected = BulkMemory.Comparison(count: 0, first: 0, second: 0)
            for i in 0..<count {
                let element = Self.load(bytes, 400 + (backwards ? -i : i) * size, size)
                expected = .init(count: i + 1, first: value, second: element)
                if (element == value) == untilEqual { break }
            }
            let scanned = BulkMemory.scan(
                image.base + 400, for: value, count: count, elementByteCount: size, backwards: backwards,
                untilEqual: untilEqual)
            #expect(scanned == expected, "seed \(seed)")
            for i in 0..<count {
                let offset = (backwards ? -i : i) * size
                expected = .init(
                    count: i + 1, first: Self.load(bytes, 400 + offset, size),
                    second: Self.load(bytes, 801 + offset, size))
                if (expected.first == expected.second) == untilEqual { break }
            }
            let compared = BulkMemory.compare(
                image.base + 400, image.base + 801, count: count, elementByteCount: size, backwards: backwards,
                untilEqual: untilEqual)
            #expect(compared == expected, "seed \(seed)")
        }
    }

    @Test func findsRunsInAPage() {
        let seed = UInt64.random(in: 0 ... .max)
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<4000 {
            let addressByteCount = [2, 4, 8].randomElement(using: &generator)!
            let operation = StringOperation(
                elementByteCount: Self.sizes.randomElement(using: &generator)!, addressByteCount: addressByteCount,
                isBackwards: Bool.random(using: &generator))
            let size = UInt64(operation.elementByteCount)
            // Close to a wrap of the index register, at any distance from the page's end.
            let index = (UInt64.random(in: 0..<40, using: &generator) &- 20) & operation.addressMask
            let linear = 0x5000 + UInt64.random(in: 0..<0x1000, using: &generator)
            var expected: UInt64 = 0
            var offset = Int(linear & 0xFFF)
            var position = index
            while offset >= 0 && offset + Int(size) <= 0x1000 {
                expected += 1
                offset += operation.isBackwards ? -Int(size) : Int(size)
                let (next, overflow) =
                    operation.isBackwards
                    ? position.subtractingReportingOverflow(size) : position.addingReportingOverflow(size)
                if overflow || next > operation.addressMask { break }
                position = next
            }
            #expect(operation.elementsInPage(linear: linear, index: index) == expected, "seed \(seed)")
        }
    }
}
