import SystemPackage

/// How one flat view differs from another, found in one pass over both.
struct FlatViewDifference {
    private enum Change {
        case add(FlatRange)
        case keep(FlatRange, changesDirtyLogging: Bool)
    }

    /// By address, as both are.
    private var deleted: [FlatRange] = []
    private var changes: [Change] = []

    init(from old: FlatView, to new: FlatView) {
        var oldIndex = 0
        var newIndex = 0
        while oldIndex < old.ranges.count || newIndex < new.ranges.count {
            let gone = oldIndex < old.ranges.count ? old.ranges[oldIndex] : nil
            let come = newIndex < new.ranges.count ? new.ranges[newIndex] : nil
            if let gone, let come, gone.hasSameMapping(as: come) {
                changes.append(.keep(come, changesDirtyLogging: gone.logsDirtyPages != come.logsDirtyPages))
                oldIndex += 1
                newIndex += 1
            } else if let gone, come.map({ gone.addresses.start <= $0.addresses.start }) ?? true {
                deleted.append(gone)
                oldIndex += 1
            } else if let come {
                changes.append(.add(come))
                newIndex += 1
            }
        }
    }

    /// Tells `listener` all of it.
    func tell(_ listener: any MemoryListener) throws(Errno) {
        listener.begin()
        for range in deleted { listener.delete(range) }
        for change in changes {
            switch change {
            case .add(let range): listener.add(range)
            case .keep(let range, let changesDirtyLogging):
                listener.keep(range, changesDirtyLogging: changesDirtyLogging)
            }
        }
        try listener.commit()
    }
}
