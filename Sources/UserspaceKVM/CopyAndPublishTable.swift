import RCU
import SystemPackage

// The table as one immutable block of memory, replaced as a whole.
//
// Invariants:
// 1. A published block is never changed: header and elements are written before the pointer is (release), and a reader
//    loads the pointer once (acquire) and takes count and elements from that block.
// 2. The writer frees the block it replaced by a callback after a grace period, and never waits.
// 3. Elements are retained once, by the table, until it is deinitialised. Blocks hold them unretained, so readers count no
//    references.
// 4. Room grows with the count, not with the maximum.

/// The head of a block; `count` element references follow it.
struct VCPUTableBlock {
    var count: Int

    /// The references behind the head of the block at `block`.
    static func elements(of block: UnsafeMutablePointer<VCPUTableBlock>) -> UnsafeMutablePointer<UnsafeRawPointer> {
        UnsafeMutableRawPointer(block + 1).assumingMemoryBound(to: UnsafeRawPointer.self)
    }

    /// Memory for a block of `count` elements, not initialised.
    static func allocate(count: Int) -> UnsafeMutablePointer<VCPUTableBlock> {
        let byteCount = MemoryLayout<VCPUTableBlock>.stride + count * MemoryLayout<UnsafeRawPointer>.stride
        let block = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 16)
            .bindMemory(to: VCPUTableBlock.self, capacity: 1)
        block.pointee.count = count
        return block
    }
}

/// A vCPU table that copies itself for each new element.
public final class CopyAndPublishTable<Element: VCPUTableElement>: VCPUTable {
    private let current: RCUPointer<VCPUTableBlock>
    private let maximumCount: Int
    private let maximumID: UInt32

    /// - Parameters:
    ///   - maximumCount: how many elements there may be.
    ///   - maximumID: the first id that is too large.
    public init(maximumCount: Int, maximumID: UInt32) {
        self.maximumCount = maximumCount
        self.maximumID = maximumID
        current = RCUPointer(VCPUTableBlock.allocate(count: 0))
    }

    deinit {
        // SAFETY: nobody reads any more; each element was retained once by `append`.
        guard let block = current.load() else { return }
        let elements = VCPUTableBlock.elements(of: block)
        for index in 0..<block.pointee.count { Unmanaged<Element>.fromOpaque(elements[index]).release() }
        UnsafeMutableRawPointer(block).deallocate()
    }

    public var count: Int { read { block in block.pointee.count } }

    public func withElement(at index: Int, _ body: (Element) -> Void) {
        read { block in
            guard index >= 0, index < block.pointee.count else { return }
            body(element(block, index))
        }
    }

    public func withElement(id: UInt32, _ body: (Element) -> Void) {
        read { block in
            if let index = find(id: id, in: block) { body(element(block, index)) }
        }
    }

    public func forEach(_ body: (Element) -> Bool) {
        read { block in
            for index in 0..<block.pointee.count where !body(element(block, index)) { return }
        }
    }

    public func append(id: UInt32, _ make: (_ index: Int) throws(Errno) -> Element) throws(Errno) -> Element {
        guard let old = current.load() else { preconditionFailure("a vCPU table without a block") }
        let index = old.pointee.count
        guard id < maximumID, index < maximumCount else { throw .invalidArgument }
        guard find(id: id, in: old) == nil else { throw .fileExists }
        let new = try make(index)
        let block = VCPUTableBlock.allocate(count: index + 1)
        let elements = VCPUTableBlock.elements(of: block)
        elements.initialize(from: VCPUTableBlock.elements(of: old), count: index)
        (elements + index).initialize(to: UnsafeRawPointer(Unmanaged.passRetained(new).toOpaque()))
        current.publish(block)
        ThreadReader.domain.call(UnsafeMutableRawPointer(old)) { $0.deallocate() }
        return new
    }

    private func find(id: UInt32, in block: UnsafeMutablePointer<VCPUTableBlock>) -> Int? {
        let count = block.pointee.count
        if id < count, element(block, Int(id)).id == id { return Int(id) }
        return (0..<count).first { element(block, $0).id == id }
    }

    private func element(_ block: UnsafeMutablePointer<VCPUTableBlock>, _ index: Int) -> Element {
        // SAFETY: `index` is below the block's count, and the table keeps the element alive.
        Unmanaged<Element>.fromOpaque(VCPUTableBlock.elements(of: block)[index])._withUnsafeGuaranteedRef { $0 }
    }

    private func read<Result>(_ body: (UnsafeMutablePointer<VCPUTableBlock>) -> Result) -> Result {
        ThreadReader.withReadSection {
            guard let block = current.load() else { preconditionFailure("a vCPU table without a block") }
            return body(block)
        }
    }
}
