import Synchronization

/// The register page as clients save and load it: the 64 registers at multiples of 16 bytes.
///
/// The corresponding C structure is `kvm_lapic_state`.
public struct LocalAPICState: Equatable, Sendable {
    public static let byteCount = 1024

    private var registers: [UInt32]

    /// All zero.
    public init() { registers = Array(repeating: 0, count: Self.byteCount / 16) }

    /// The registers of a client's page; bytes that `page` lacks count as 0.
    public init(page: UnsafeRawBufferPointer) {
        self.init()
        for index in registers.indices where index * 16 + 4 <= page.count {
            registers[index] = UInt32(littleEndian: page.loadUnaligned(fromByteOffset: index * 16, as: UInt32.self))
        }
    }

    /// Fills a client's page, the reserved bytes with 0.
    public func copy(to page: UnsafeMutableRawBufferPointer) {
        for index in page.indices { page[index] = 0 }
        for index in registers.indices where index * 16 + 4 <= page.count {
            page.storeBytes(of: registers[index].littleEndian, toByteOffset: index * 16, as: UInt32.self)
        }
    }

    /// The register at `offset`, of which bits 9–4 count.
    public subscript(offset: UInt32) -> UInt32 {
        get { registers[Int(truncatingIfNeeded: offset >> 4 & 63)] }
        set { registers[Int(truncatingIfNeeded: offset >> 4 & 63)] = newValue }
    }
}

extension LocalAPIC {
    /// The registers for a client (`KVM_GET_LAPIC`).
    ///
    /// - Parameter hasExtendedID: the client knows identifiers of 32 bits (`KVM_X2APIC_API_USE_32BIT_IDS`).
    /// > Concurrency: the owner.
    public func saveState(hasExtendedID: Bool, now: GuestTime) -> LocalAPICState {
        if isDirty.load(ordering: .relaxed) { synchronize() }
        var state = LocalAPICState()
        var offset: UInt32 = 0
        while offset < UInt32(LocalAPICState.byteCount) {
            state[offset] = register(offset, now: now) ?? 0
            offset += 16
        }
        if isX2APICEnabled, !hasExtendedID { state[APICRegister.id] = initialID << 24 }
        return state
    }

    /// Takes over a client's registers (`KVM_SET_LAPIC`). The mode is that of ``base``, which is set before.
    ///
    /// - Returns: false, with nothing changed, if the page contradicts the x2APIC ID.
    /// > Concurrency: the owner. Interrupts posted meanwhile may be lost.
    public func loadState(_ state: LocalAPICState, hasExtendedID: Bool, now: GuestTime) -> Bool {
        if isX2APICEnabled {
            let id = hasExtendedID ? state[APICRegister.id] : state[APICRegister.id] >> 24
            guard id == (hasExtendedID ? initialID : initialID & 0xFF) else { return false }
        } else {
            xAPICID = UInt8(truncatingIfNeeded: state[APICRegister.id] >> 24)
            logicalID = UInt8(truncatingIfNeeded: state[APICRegister.logicalDestination] >> 24)
        }
        destinationFormat = state[APICRegister.destinationFormat] | 0x0FFF_FFFF
        taskPriorityRegister = UInt8(truncatingIfNeeded: state[APICRegister.taskPriority])
        errorStatus = state[APICRegister.errorStatus] & 0xFF
        commandLow = state[APICRegister.command] & Self.commandWritable
        commandHigh = state[APICRegister.commandHigh]
        _ = setRegister(APICRegister.spurious, state[APICRegister.spurious], now: now)
        let oldMode = timerMode
        for source in LocalInterrupt.allCases {
            // Not as a guest's write: LINT0 of a boot processor is unmasked in a disabled APIC.
            let offset = APICRegister.localVectorTable + UInt32(source.rawValue) << 4
            localVectors[source] = state[offset] & writableBits(of: source)
        }
        timerModeDidChange(from: oldMode)
        divideConfiguration = state[APICRegister.divideConfiguration] & 0xB
        if timerMode != .tscDeadline {
            initialCount = state[APICRegister.initialCount]
            updatePeriod()
            let count = state[APICRegister.currentCount]
            startTimer(count: count == 0 && timerMode == .periodic ? initialCount : count, now: now)
        }
        var requested = VectorSet()
        var levels = VectorSet()
        for index in 0..<8 {
            let offset = UInt32(index) << 4
            inService[register: index] = state[APICRegister.inService + offset]
            levels[register: index] = state[APICRegister.triggerMode + offset]
            requested[register: index] = state[APICRegister.request + offset]
        }
        triggers.assign(levels)
        requests.assign(requested)
        updateProcessorPriority()
        publishRouting()
        if markDirty() { host.kick() }
        return true
    }
}
