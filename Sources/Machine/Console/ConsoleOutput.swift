import Host

/// What the guest has sent and the console has not written yet.
///
/// vCPU threads append, the console's thread takes. When the buffer is full, vCPU threads wait: a reader that is slower
/// than the guest slows the guest down instead of losing its output.
public final class ConsoleOutput: Sendable {
    private struct State {
        var bytes: [UInt8] = []
        /// Nobody takes bytes any more; appending neither keeps nor waits.
        var isClosed = false
    }

    private let state = Locked(State())
    /// Counts what made room; full writers sleep on it.
    private let room = FutexWord()
    private let bytesArrived: @Sendable () -> Void

    /// The size at which appending waits.
    static var capacity: Int { 65536 }

    /// - Parameter bytesArrived: called when an empty buffer has become non-empty.
    init(bytesArrived: @escaping @Sendable () -> Void) { self.bytesArrived = bytesArrived }

    /// Appends a byte, waiting for room if there is none.
    /// > Concurrency: any thread but the console's.
    public func append(_ byte: UInt8) {
        while true {
            // ORDERING: acquire pairs with the release in `announceRoom`. Read before the state, so that room made after
            // the look at it ends the sleep at once.
            let seen = room.atomic.pointee.load(ordering: .acquiring)
            let (isDone, wasEmpty) = state.withLock { state -> (Bool, Bool) in
                if state.isClosed { return (true, false) }
                guard state.bytes.count < Self.capacity else { return (false, false) }
                state.bytes.append(byte)
                return (true, state.bytes.count == 1)
            }
            if wasEmpty { bytesArrived() }
            if isDone { return }
            room.wait(while: seen)
        }
    }

    /// Everything there is, in place of `buffer`, whose storage is used again.
    func takeAll(into buffer: inout [UInt8]) {
        buffer.removeAll(keepingCapacity: true)
        state.withLock { swap(&$0.bytes, &buffer) }
        announceRoom()
    }

    /// Stops keeping bytes and lets waiting writers go, for good.
    func close() {
        state.withLock { $0.isClosed = true }
        announceRoom()
    }

    private func announceRoom() {
        // ORDERING: release pairs with the acquire in `append`.
        room.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        room.wake()
    }
}
