import CHost
import Glibc
import SystemPackage

/// A set of descriptors, and one thread that waits for any of them to become readable.
///
/// > Concurrency: every member may be used from any thread.
public final class DescriptorPoller: Sendable {
    private let shared: PollerState
    private let thread: HostThread

    /// Starts the thread.
    ///
    /// - Parameters:
    ///   - name: the thread's; at most 15 bytes are kept.
    ///   - isReadable: called on the thread with the token of a descriptor, again and again while the descriptor is readable.
    ///     The descriptor may have been removed since.
    /// - Throws: `Errno.tooManyOpenFiles`, `Errno.resourceTemporarilyUnavailable` if there is no thread left.
    public init(name: String, isReadable: @escaping @Sendable (_ token: UInt64) -> Void) throws(Errno) {
        let shared = try PollerState()
        self.shared = shared
        thread = try HostThread(name: name) { shared.run(isReadable) }
    }

    /// Adds a descriptor, which is removed before it is closed.
    ///
    /// - Parameter token: any number but the largest.
    /// - Throws: `Errno.fileExists` if it is in the set, `Errno.operationNotPermitted` if its file cannot be waited for,
    ///   `Errno.noSpace` (`ENOSPC`), `Errno.noMemory`.
    public func add(_ descriptor: Int32, token: UInt64) throws(Errno) {
        precondition(token != PollerState.stopToken, "a token that means something else")
        let error = martlet_epoll_add(shared.set.rawValue, descriptor, token)
        guard error == 0 else { throw Errno(rawValue: error) }
    }

    /// Removes a descriptor. One that somebody else has closed is in the set no more.
    public func remove(_ descriptor: Int32) { _ = martlet_epoll_remove(shared.set.rawValue, descriptor) }

    /// Ends the thread.
    /// > Concurrency: once, not on the thread itself.
    public func stop() {
        EventDescriptor.signal(shared.stopEvent.rawValue)
        thread.join()
    }
}

/// What the thread uses; it lives as long as the thread.
private final class PollerState: Sendable {
    static let stopToken = UInt64.max

    let set: OwnedDescriptor
    let stopEvent: OwnedDescriptor

    init() throws(Errno) {
        let descriptor = martlet_epoll_create()
        guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
        set = OwnedDescriptor(owning: descriptor)
        stopEvent = try OwnedDescriptor.eventCounter()
        let error = martlet_epoll_add(set.rawValue, stopEvent.rawValue, Self.stopToken)
        guard error == 0 else { throw Errno(rawValue: error) }
    }

    func run(_ isReadable: (UInt64) -> Void) {
        while true {
            var token: UInt64 = 0
            // A debugger's signals reach this thread. Any other error tells that somebody has closed the set.
            let error = martlet_epoll_wait(set.rawValue, &token)
            if error == EINTR { continue }
            guard error == 0 else { return }
            if token == Self.stopToken { return }
            isReadable(token)
        }
    }
}
