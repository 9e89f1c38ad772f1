import Addressing
import SystemPackage

/// The regions and address spaces that change together, and the transactions in which they do.
///
/// Changes of regions take effect when the outermost transaction commits: then each address space renders its new flat
/// view, publishes it, and tells its listeners how it differs.
///
///     let topology = MemoryTopology()
///     let root = topology.makeContainer("system", byteCount: 1 << 64)
///     let space = AddressSpace("memory", root: root)
///     try topology.transaction {
///         try root.add(ram, at: 0)
///         try root.add(flash, at: 0xFFF0_0000, priority: 1)
///     }
///
/// > Concurrency: one writer at a time, as a rule the holder of a lock of the machine. Listeners change nothing.
public final class MemoryTopology: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: used by one writer at a time.

    /// How to take each change of the open transaction back, earliest first.
    private var undo: [() -> Void] = []
    /// For each open transaction the number of changes made before it.
    private var marks: [Int] = []
    private var isUpdating = false
    private var spaces: [WeakSpace] = []

    private struct WeakSpace { weak var space: AddressSpace? }

    public init() {}

    func register(_ space: AddressSpace) {
        spaces.removeAll { $0.space == nil }
        spaces.append(WeakSpace(space: space))
    }

    // MARK: Regions

    /// A region that shows its subregions.
    /// - Parameter byteCount: 1…2^64, as for all regions.
    public func makeContainer(_ name: String, byteCount: UInt128) -> MemoryRegion {
        MemoryRegion(name, .container, byteCount: byteCount, topology: self)
    }

    /// Memory that the guest reads, writes and executes.
    /// - Parameters:
    ///   - host: `byteCount` bytes, mapped until the region is in no address space any more.
    ///   - owner: kept as long as the region.
    public func makeRAM(
        _ name: String, host: HostVirtualAddress, byteCount: UInt64, owner: (any AnyObject & Sendable)? = nil
    ) -> MemoryRegion {
        MemoryRegion(
            name, .memory(host: host, writes: nil), byteCount: UInt128(byteCount), topology: self, owner: owner)
    }

    /// Memory that the guest reads and executes.
    /// - Parameter writes: takes the guest's writes; if nil they are lost.
    public func makeROM(
        _ name: String, host: HostVirtualAddress, byteCount: UInt64, writes: (any MemoryDevice)? = nil,
        owner: (any AnyObject & Sendable)? = nil
    ) -> MemoryRegion {
        MemoryRegion(
            name, .memory(host: host, writes: writes), byteCount: UInt128(byteCount), isReadOnly: true, topology: self,
            owner: owner)
    }

    /// Registers of a device.
    public func makeDevice(_ name: String, _ device: any MemoryDevice, byteCount: UInt128) -> MemoryRegion {
        MemoryRegion(name, .device(device), byteCount: byteCount, topology: self)
    }

    /// A window onto `target`, whether or not that is in a container itself.
    /// - Parameters:
    ///   - target: a region of this topology.
    ///   - offset: where in `target` the window begins; what lies behind the target's end is not seen.
    public func makeAlias(
        _ name: String, of target: MemoryRegion, offset: UInt64 = 0, byteCount: UInt128
    ) -> MemoryRegion {
        precondition(target.topology === self, "an alias of a region of another topology")
        return MemoryRegion(name, .alias(target: target, offset: offset), byteCount: byteCount, topology: self)
    }

    // MARK: Transactions

    var isInTransaction: Bool { !marks.isEmpty || isUpdating }

    /// Opens a transaction, inside another if there is one.
    public func begin() {
        precondition(!isUpdating, "a listener changes what it is told about")
        marks.append(undo.count)
    }

    /// Ends the transaction. The outermost one makes its changes visible.
    ///
    /// When it returns, nobody uses the earlier flat views any more, nor regions that only they referred to.
    /// - Throws: the first error of a listener. Then all changes of the transaction are taken back: regions are as they
    ///   were when it began, readers have the earlier flat view, and listeners that had taken the new one over are told of
    ///   the way back. A listener that cannot go back keeps what it could restore.
    /// > Concurrency: not inside a read section of `ThreadRCU`.
    public func commit() throws(Errno) {
        precondition(!marks.isEmpty, "a commit without a transaction")
        marks.removeLast()
        guard marks.isEmpty, !undo.isEmpty else { return }
        isUpdating = true
        defer { isUpdating = false }
        var updated: [AddressSpace] = []
        do throws(Errno) {
            for entry in spaces {
                guard let space = entry.space else { continue }
                if try space.update() { updated.append(space) }
            }
        } catch {
            for space in updated.reversed() { space.revert() }
            AddressSpace.retireViews(of: spaces.compactMap(\.space))
            takeBack(to: 0)
            throw error
        }
        AddressSpace.retireViews(of: updated)
        undo.removeAll()
    }

    /// Ends the transaction and takes its changes back.
    public func cancel() {
        precondition(!marks.isEmpty, "an end without a transaction")
        takeBack(to: marks.removeLast())
    }

    /// Runs `body` in a transaction, which is cancelled if `body` throws.
    public func transaction<Result>(_ body: () throws(Errno) -> Result) throws(Errno) -> Result {
        begin()
        let result: Result
        do throws(Errno) {
            result = try body()
        } catch {
            cancel()
            throw error
        }
        try commit()
        return result
    }

    /// A change of a region, in a transaction.
    /// - Parameter apply: makes the change and returns what takes it back.
    func change(_ apply: () -> () -> Void) throws(Errno) {
        begin()
        undo.append(apply())
        try commit()
    }

    private func takeBack(to count: Int) {
        while undo.count > count { undo.removeLast()() }
    }
}
