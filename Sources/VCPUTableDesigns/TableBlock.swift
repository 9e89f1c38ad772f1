import RCU
import Synchronization
import SystemPackage
import VCPUTables

/// A table in one block of memory that is replaced by a larger one when it is full: this head, then the slots.
@usableFromInline
struct TableBlock: ~Copyable {
    /// How many slots readers see. Only grows.
    @usableFromInline let count = Atomic<Int>(0)
    let capacity: Int
    /// Who holds the block besides readers in a read section: the table while it is current, and readers that cache it.
    let users = Atomic<Int>(1)

    init(capacity: Int) { self.capacity = capacity }

    @usableFromInline typealias Pointer = UnsafeMutablePointer<TableBlock>

    @inlinable @inline(__always)
    static func run<Element>(_ block: Pointer, of _: Element.Type) -> VCPUSlotRun<Element> {
        VCPUSlotRun(UnsafeMutableRawPointer(block + 1))
    }

    /// A block of `capacity` slots, the first of which are those of `old`.
    static func allocate(capacity: Int, copying old: Pointer?, _ memory: TableMemory) throws(Errno) -> Pointer {
        let slotByteCount = MemoryLayout<UInt>.size
        let raw = try memory.allocate(byteCount: MemoryLayout<TableBlock>.stride + capacity * slotByteCount)
        let block = raw.bindMemory(to: TableBlock.self, capacity: 1)
        block.initialize(to: TableBlock(capacity: capacity))
        if let old {
            let count = old.pointee.count.load(ordering: .relaxed)
            let words = UnsafeMutableRawPointer(old + 1).assumingMemoryBound(to: Atomic<UInt>.self)
            let newWords = UnsafeMutableRawPointer(block + 1).assumingMemoryBound(to: Atomic<UInt>.self)
            for index in 0..<count {
                newWords[index].store(words[index].load(ordering: .relaxed), ordering: .relaxed)
            }
            block.pointee.count.store(count, ordering: .relaxed)
        }
        return block
    }

    /// Frees the block after a grace period.
    static func retire(_ block: Pointer, _ memory: TableMemory) {
        let address = UInt(bitPattern: block)
        ThreadRCU.domain.call {
            // SAFETY: the address is the block's, which nobody reaches any more.
            if let memoryOfBlock = UnsafeMutableRawPointer(bitPattern: address) { memory.free(memoryOfBlock) }
        }
    }
}

/// How a table that must be copied grows.
public enum TableGrowth: Sendable {
    /// A copy for each new element.
    case byOne
    /// A copy when the table is full, with twice the room.
    case doubling

    func capacity(for count: Int, maximum: Int) -> Int {
        switch self {
        case .byOne: return count
        case .doubling:
            var capacity = 4
            while capacity < count { capacity *= 2 }
            return min(capacity, maximum)
        }
    }
}
