/// What a machine's core looks like from inside, for people and their tools.
///
/// A snapshot part by part: each is consistent in itself, the whole need not be.
public struct MachineInspection: Codable, Equatable, Sendable {
    public var addressSpaces: [AddressSpace]
    public var vcpus: [VCPU]
    /// Those of higher levels first.
    public var shadowPages: [ShadowPage]
    public var gracePeriods: [GracePeriods]
    public var statistics: [String: UInt64]

    public init(
        addressSpaces: [AddressSpace], vcpus: [VCPU], shadowPages: [ShadowPage], gracePeriods: [GracePeriods],
        statistics: [String: UInt64]
    ) {
        self.addressSpaces = addressSpaces
        self.vcpus = vcpus
        self.shadowPages = shadowPages
        self.gracePeriods = gracePeriods
        self.statistics = statistics
    }

    /// The memory slots of one guest physical address space.
    public struct AddressSpace: Codable, Equatable, Sendable {
        public var number: Int
        /// Changes with each change of the slots.
        public var generation: UInt64
        /// Which of `sets` readers use.
        public var activeSet: Int
        /// Both sets, in the order of guest addresses. They hold the same slots unless a change is in progress.
        public var sets: [[Slot]]

        public init(number: Int, generation: UInt64, activeSet: Int, sets: [[Slot]]) {
            self.number = number
            self.generation = generation
            self.activeSet = activeSet
            self.sets = sets
        }
    }

    public struct Slot: Codable, Equatable, Sendable {
        public var id: UInt16
        /// In bytes.
        public var guestAddress: UInt64
        public var byteCount: UInt64
        public var hostAddress: UInt64
        public var isReadOnly: Bool
        public var isLogged: Bool
        /// On its way out.
        public var isInvalid: Bool

        public init(
            id: UInt16, guestAddress: UInt64, byteCount: UInt64, hostAddress: UInt64, isReadOnly: Bool, isLogged: Bool,
            isInvalid: Bool
        ) {
            self.id = id
            self.guestAddress = guestAddress
            self.byteCount = byteCount
            self.hostAddress = hostAddress
            self.isReadOnly = isReadOnly
            self.isLogged = isLogged
            self.isInvalid = isInvalid
        }
    }

    /// A place of the vCPU table.
    public struct VCPU: Codable, Equatable, Sendable {
        public var index: Int
        public var id: UInt32
        public var state: State
        public var statistics: [String: UInt64]

        public enum State: String, Codable, Sendable {
            /// It executes guest code.
            case guest
            /// It sleeps until an interrupt.
            case halted
            /// The client, or the core on its behalf, does something else.
            case host
            /// It is unplugged.
            case parked
        }

        public init(index: Int, id: UInt32, state: State, statistics: [String: UInt64]) {
            self.index = index
            self.id = id
            self.state = state
            self.statistics = statistics
        }
    }

    /// A page of the shadow page tables.
    public struct ShadowPage: Codable, Equatable, Sendable {
        /// 1 for a page whose entries map 4 KiB each, up to 4.
        public var level: Int
        /// The frame of the guest's table; of a direct page the first it maps.
        public var frame: UInt64
        /// All that makes it different from other pages of its frame, as a number.
        public var role: UInt32
        /// It shadows no table.
        public var isDirect: Bool
        /// An address space starts from it.
        public var isRoot: Bool
        /// Stores to the guest's table are caught.
        public var isTracked: Bool
        public var entries: [ShadowEntry]

        public init(
            level: Int, frame: UInt64, role: UInt32, isDirect: Bool, isRoot: Bool, isTracked: Bool,
            entries: [ShadowEntry]
        ) {
            self.level = level
            self.frame = frame
            self.role = role
            self.isDirect = isDirect
            self.isRoot = isRoot
            self.isTracked = isTracked
            self.entries = entries
        }
    }

    /// An entry of a shadow page that is not empty.
    public struct ShadowEntry: Codable, Equatable, Sendable {
        public var index: Int
        public var kind: Kind
        /// The frame of the next page, or the first that the entry maps.
        public var frame: UInt64
        /// Of the next page; nil for others.
        public var role: UInt32?

        public enum Kind: String, Codable, Sendable {
            case page, memory, device
        }

        public init(index: Int, kind: Kind, frame: UInt64, role: UInt32? = nil) {
            self.index = index
            self.kind = kind
            self.frame = frame
            self.role = role
        }
    }

    /// The readers and the garbage of one RCU domain.
    public struct GracePeriods: Codable, Equatable, Sendable {
        /// What it protects.
        public var name: String
        /// The number of grace periods that have begun.
        public var begun: UInt64
        /// Readers inside a section now.
        public var activeReaders: Int
        /// How many grace periods have begun since the oldest reader's section did; 0 if there is none.
        public var oldestReaderAge: UInt64
        /// Callbacks that wait for a grace period.
        public var pendingCallbacks: Int

        public init(
            name: String, begun: UInt64, activeReaders: Int, oldestReaderAge: UInt64, pendingCallbacks: Int
        ) {
            self.name = name
            self.begun = begun
            self.activeReaders = activeReaders
            self.oldestReaderAge = oldestReaderAge
            self.pendingCallbacks = pendingCallbacks
        }
    }
}

extension VirtualMachine {
    /// What the machine's core looks like from inside; nil if the backend does not tell.
    /// > Concurrency: any thread, while vCPUs run.
    public func inspect() -> MachineInspection? { backend.inspect(descriptor) }
}
