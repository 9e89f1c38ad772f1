import AddressSpace
import KVMInterface

/// What a running guest's board looks like from inside, for people and their tools.
public struct BoardInspection: Codable, Equatable, Sendable {
    /// The process that runs it.
    public var process: Int32
    /// How the guest was started.
    public var kernel: String
    /// What the guest sees at which physical address, lowest first.
    public var flatView: [Range]
    /// The machine's core; nil if the accelerator does not tell.
    public var core: MachineInspection?

    /// One range of the flat view.
    public struct Range: Codable, Equatable, Sendable {
        public var region: String
        public var address: UInt64
        /// The last address.
        public var last: UInt64
        /// Where in the region it begins.
        public var offset: UInt64
        /// nil for a device.
        public var hostAddress: UInt64?
        public var isReadOnly: Bool
        public var isLogged: Bool
    }
}

extension BoardInspection.Range {
    init(_ range: FlatRange) {
        self.init(
            region: range.region.name, address: range.addresses.start, last: range.addresses.last,
            offset: range.offset, hostAddress: range.host.map { UInt64($0.value) }, isReadOnly: range.isReadOnly,
            isLogged: range.logsDirtyPages)
    }
}
