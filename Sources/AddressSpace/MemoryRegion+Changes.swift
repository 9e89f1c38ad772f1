import SystemPackage

// Each change is a transaction of its own unless one is open; its errors are those of `MemoryTopology.commit` besides its
// own. A change that throws has changed nothing.
extension MemoryRegion {
    /// Puts `region` into this one.
    ///
    /// - Parameter offset: from this region's start; what sticks out is not seen.
    /// - Throws: `Errno.resourceBusy` if `region` is in a container already (use an alias), `Errno.invalidArgument` for a
    ///   region of another topology or an alias as container, `Errno.tooManySymbolicLinkLevels` if this region could be
    ///   reached from `region`.
    /// - Complexity: linear in the paths that begin at `region`.
    /// > Concurrency: the topology's writer.
    public func add(_ region: MemoryRegion, at offset: UInt64, priority: Int32 = 0) throws(Errno) {
        guard region.container == nil else { throw .resourceBusy }
        if case .alias = content { throw .invalidArgument }
        guard region.topology === topology else { throw .invalidArgument }
        guard !region.reaches(self) else { throw .tooManySymbolicLinkLevels }
        try topology.change {
            let (oldOffset, oldPriority) = (region.offset, region.priority)
            region.offset = offset
            region.priority = priority
            region.container = self
            let place = subregions.firstIndex { $0.priority <= priority } ?? subregions.count
            subregions.insert(region, at: place)
            return { [self] in
                subregions.removeAll { $0 === region }
                (region.offset, region.priority, region.container) = (oldOffset, oldPriority, nil)
            }
        }
    }

    /// Takes `region` out of this one.
    ///
    /// - Throws: `Errno.invalidArgument` if it is not there.
    /// > Concurrency: the topology's writer.
    public func remove(_ region: MemoryRegion) throws(Errno) {
        guard let place = subregions.firstIndex(where: { $0 === region }) else { throw .invalidArgument }
        try topology.change {
            subregions.remove(at: place)
            region.container = nil
            return { [self] in
                subregions.insert(region, at: place)
                region.container = self
            }
        }
    }

    /// Moves the region inside its container.
    /// > Concurrency: the topology's writer.
    public func move(to offset: UInt64) throws(Errno) { try set(\.offset, offset) }

    /// Makes the region and all it contains come or go.
    /// > Concurrency: the topology's writer.
    public func setEnabled(_ isEnabled: Bool) throws(Errno) { try set(\.isEnabled, isEnabled) }

    /// Lets the guest write to memory seen through this region, or not.
    /// > Concurrency: the topology's writer.
    public func setReadOnly(_ isReadOnly: Bool) throws(Errno) { try set(\.isReadOnly, isReadOnly) }

    /// Changes the size.
    ///
    /// - Parameter byteCount: 0 to hide the region.
    /// - Throws: `Errno.invalidArgument` if memory would be larger than what the host has mapped, or anything than 2^64.
    /// > Concurrency: the topology's writer.
    public func resize(to byteCount: UInt128) throws(Errno) {
        guard byteCount <= (host == nil ? 1 << 64 : capacity) else { throw .invalidArgument }
        try set(\.byteCount, byteCount)
    }

    /// Starts or ends the recording of written pages.
    ///
    /// - Throws: `Errno.invalidArgument` if the region is not memory, `Errno.noMemory`.
    /// > Concurrency: the topology's writer.
    public func setDirtyLogging(_ isOn: Bool) throws(Errno) {
        try makeDirtyRecord()
        try set(\.logsDirtyPages, isOn)
    }

    private func set<Value: Equatable>(
        _ property: ReferenceWritableKeyPath<MemoryRegion, Value>, _ value: Value
    ) throws(Errno) {
        let old = self[keyPath: property]
        guard value != old else { return }
        try topology.change {
            self[keyPath: property] = value
            return { [self] in self[keyPath: property] = old }
        }
    }

    /// Whether `other` is this region, or is seen through it.
    private func reaches(_ other: MemoryRegion) -> Bool {
        if self === other { return true }
        if case .alias(let target, _) = content, target.reaches(other) { return true }
        return subregions.contains { $0.reaches(other) }
    }
}
