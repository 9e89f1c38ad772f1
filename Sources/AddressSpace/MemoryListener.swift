import SystemPackage

/// Is told how the flat view of an address space changes.
///
/// One change is `begin`, then a `delete` for each range that goes, lowest first, then, lowest first, an `add` for each
/// range that comes and a `keep` for each that stays, and last `commit`. A range of which anything but dirty logging
/// changes goes and comes again. A listener holds what it needs of a range from `add` to `delete`.
///
/// > Concurrency: the topology's writer.
public protocol MemoryListener: AnyObject {
    func begin()

    /// `range` was added by an earlier change.
    func delete(_ range: FlatRange)

    func add(_ range: FlatRange)

    /// The range stays.
    /// - Parameter changesDirtyLogging: its logging is now what `range` says, and was not before.
    func keep(_ range: FlatRange, changesDirtyLogging: Bool)

    /// Makes the change effective.
    ///
    /// - Throws: if that is not possible. The listener has then gone back, as far as it could, to what was before `begin`,
    ///   and will not be told so.
    func commit() throws(Errno)
}
