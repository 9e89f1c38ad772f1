import Synchronization

/// NMI, INIT, SIPI and un-halt: events without a vector in the request register.
struct LocalAPICSignals: OptionSet, Sendable {
    let rawValue: UInt32

    static let initialize = Self(rawValue: 1 << 0)
    static let startup = Self(rawValue: 1 << 1)
    static let nmi = Self(rawValue: 1 << 2)
    static let unhalt = Self(rawValue: 1 << 3)

    /// The vector of the last SIPI lies in bits 15–8.
    static let startupVectorShift: UInt32 = 8
    static let startupVectorMask: UInt32 = 0xFF00
}

extension LocalAPIC {
    // MARK: Posting, from any thread

    /// Makes a non-maskable interrupt pending; one at most waits.
    public func postNMI() { post(.nmi) }

    /// Makes an INIT pending. A SIPI that came before it is forgotten.
    public func postInitialize() {
        changeSignals { ($0 & ~LocalAPICSignals.startup.rawValue) | LocalAPICSignals.initialize.rawValue }
        host.kick()
    }

    /// Makes a SIPI pending, which starts a waiting processor at real-mode address `vector << 12`.
    public func postStartup(vector: UInt8) {
        changeSignals {
            ($0 & ~LocalAPICSignals.startupVectorMask) | LocalAPICSignals.startup.rawValue
                | UInt32(vector) << LocalAPICSignals.startupVectorShift
        }
        host.kick()
    }

    /// Wakes the owner from HLT without an interrupt (the hypercall `KVM_HC_KICK_CPU`).
    public func postUnhalt() { post(.unhalt) }

    func post(_ signal: LocalAPICSignals) {
        // ORDERING: sequentially consistent, so that it is ordered with the owner's "I sleep" store as the kick's own
        // check of that store is.
        let old = signals.bitwiseOr(signal.rawValue, ordering: .sequentiallyConsistent).oldValue
        if old & signal.rawValue == 0 { host.kick() }
    }

    private func changeSignals(_ change: (UInt32) -> UInt32) {
        var old = signals.load(ordering: .relaxed)
        while true {
            // ORDERING: as in `post(_:)`.
            let result = signals.compareExchange(
                expected: old, desired: change(old), ordering: .sequentiallyConsistent)
            if result.exchanged { return }
            old = result.original
        }
    }

    // MARK: Taking, by the owner

    /// Whether an NMI, INIT, SIPI or un-halt waits.
    public var hasPendingSignals: Bool {
        // ORDERING: acquire, pairs with the posters.
        signals.load(ordering: .acquiring) & ~LocalAPICSignals.startupVectorMask != 0
    }

    public var hasPendingNMI: Bool { isPending(.nmi) }

    public var hasPendingInitialize: Bool { isPending(.initialize) }

    /// The vector of the SIPI that waits.
    public var pendingStartupVector: UInt8? {
        // ORDERING: acquire, pairs with the posters.
        startupVector(in: signals.load(ordering: .acquiring))
    }

    /// Takes the pending NMI away, to deliver it; false if there was none.
    public func takeNMI() -> Bool { withdraw(.nmi) != 0 }

    /// Takes the pending INIT away; the owner then calls ``resetForInitialize()``.
    public func takeInitialize() -> Bool { withdraw(.initialize) != 0 }

    /// Takes the pending SIPI away and returns its vector. A processor that does not wait for it drops it.
    public func takeStartup() -> UInt8? { startupVector(in: withdraw(.startup)) }

    /// Takes the pending un-halt away.
    public func takeUnhalt() -> Bool { withdraw(.unhalt) != 0 }

    private func isPending(_ signal: LocalAPICSignals) -> Bool {
        // ORDERING: acquire, pairs with the posters.
        signals.load(ordering: .acquiring) & signal.rawValue != 0
    }

    private func startupVector(in word: UInt32) -> UInt8? {
        guard word & LocalAPICSignals.startup.rawValue != 0 else { return nil }
        return UInt8(truncatingIfNeeded: word >> LocalAPICSignals.startupVectorShift)
    }

    /// Clears bits; returns those that were set, and with them the SIPI vector.
    @discardableResult
    func withdraw(_ set: LocalAPICSignals) -> UInt32 {
        // ORDERING: acquire, pairs with the posters; what they wrote before is seen by whoever handles the event.
        let old = signals.bitwiseAnd(~set.rawValue, ordering: .acquiringAndReleasing).oldValue
        return old & set.rawValue == 0 ? 0 : old
    }
}
