import X86

// The forms in which the cache keeps what has to be remembered about translated code: there is much of it.

/// What the cache knows about a block.
struct CompactBlock {
    private var key: UInt64
    /// Distance from the start of the code buffer.
    private var place: UInt32
    var byteCount: UInt32
    var firstPoint: Int32
    var pointCount: UInt16
    private var mode: UInt8
    private(set) var form: BlockTranslator.Form

    private static var validBit: UInt64 { 1 << 63 }
    private static var spanBit: UInt64 { 1 << 62 }

    /// - Parameter start: the executable address of the buffer.
    init(_ block: TranslationCache.Block, byteCount: Int, firstPoint: Int, pointCount: Int, start: UInt64) {
        key = block.physical | Self.validBit | (block.secondPage == TranslationCache.Block.noPage ? 0 : Self.spanBit)
        place = UInt32(block.address &- start)
        self.byteCount = UInt32(byteCount)
        self.firstPoint = Int32(firstPoint)
        self.pointCount = UInt16(pointCount)
        mode = block.modeNumber
        form = block.form
    }

    var physical: UInt64 { key & (Self.spanBit - 1) }
    var modeNumber: UInt8 { mode }
    var spansPages: Bool { key & Self.spanBit != 0 }
    var isValid: Bool { key & Self.validBit != 0 }

    mutating func invalidate() { key &= ~Self.validBit }

    func address(start: UInt64) -> UInt64 { start &+ UInt64(place) }
}

/// A ``BlockRecords/Point``, relative to its block.
struct CompactPoint {
    private var bits: UInt32

    /// - Parameter start: the address of the block.
    init(_ point: BlockRecords.Point, start: UInt64) {
        let distance = point.address &- start
        precondition(distance < 1 << 19 && point.guestOffset < 1 << 13, "a block is longer than its records can tell")
        bits = UInt32(distance) << 13 | UInt32(point.guestOffset)
    }

    /// Distance from the start of the block.
    var distance: UInt64 { UInt64(bits >> 13) }
    var guestOffset: UInt16 { UInt16(bits & 0x1FFF) }
}

/// A ``BlockRecords/LinkSite``, relative to the code buffer.
struct CompactLinkSite {
    private var place: UInt32
    private var targetOffset: UInt16
    private var form: BlockTranslator.Form

    /// - Parameter start: the executable address of the buffer.
    init(_ site: BlockRecords.LinkSite, start: UInt64) {
        place = UInt32(site.place &- start)
        targetOffset = site.targetOffset
        form = site.form
    }

    func site(start: UInt64) -> BlockRecords.LinkSite {
        BlockRecords.LinkSite(place: start &+ UInt64(place), targetOffset: targetOffset, form: form)
    }
}

/// A place in translated code that leaves to Swift, and the number of what is executed there.
struct InstructionSite {
    var number: Int32
    /// Offset of the instruction from the page base.
    var offset: UInt16
}

/// The instructions that are executed in Swift, each kept once however often it occurs.
///
/// > Concurrency: as ``ChunkedArray``; the numbers are read and written under the owner's lock. A class, because a reader
/// without the lock must not touch what the lock guards.
final class InstructionTable {
    /// All that the decoder makes of bytes depends on these.
    private struct Key: Hashable {
        var bytes0: UInt64
        var bytes1: UInt64
        var rest: UInt64
    }

    private let instructions = ChunkedArray<SwiftInstruction>(capacity: 1 << 19)
    private var numbers: [Key: Int32] = [:]

    func pointer(at number: Int32) -> UnsafeMutablePointer<SwiftInstruction> { instructions.pointer(at: Int(number)) }

    /// The number of `instruction`, which was decoded in code of size `codeSize`.
    func number(of instruction: SwiftInstruction, _ codeSize: Decoder.CodeSize) -> Int32 {
        let i = instruction.decoded
        let key = Key(
            bytes0: i.bytes.0, bytes1: i.bytes.1,
            rest: UInt64(codeSize.rawValue) | UInt64(i.length) << 8 | UInt64(i.opcode) << 16
                | UInt64(i.mnemonic.rawValue) << 32)
        if let known = numbers[key] { return known }
        let number = Int32(instructions.count)
        instructions.append(instruction)
        numbers[key] = number
        return number
    }

    func removeAll() {
        instructions.removeAll()
        numbers.removeAll()
    }
}
