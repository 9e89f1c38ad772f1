import X86

// The forms in which the cache keeps what has to be remembered about translated code: there is much of it.

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
/// > Concurrency: as ``ChunkedArray``.
struct InstructionTable {
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
    mutating func number(of instruction: SwiftInstruction, _ codeSize: Decoder.CodeSize) -> Int32 {
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

    mutating func removeAll() {
        instructions.removeAll()
        numbers.removeAll()
    }
}
