import FoundationEssentials
import Glibc
import Host
import SystemPackage

/// Tells whoever connects to this process's ``InspectionSocket`` what its guest looks like from inside.
///
/// A connection asks nothing: it gets the answer, as JSON, and is closed. Nothing here stops the guest.
final class InspectionServer: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: what changes is behind the mutex.

    /// What is inspected; changes when the guest reboots, nil in between.
    let source = Locked<(@Sendable () -> BoardInspection)?>(nil)
    private let socket: OwnedDescriptor
    private let process = getpid()
    private let thread = Locked<HostThread?>(nil)

    /// Begins to answer.
    ///
    /// - Throws: if there is no place for a socket, or no thread.
    init() throws(Errno) {
        socket = try InspectionSocket.listen()
        let started = try HostThread(name: "inspection", stackSize: 256 << 10) { [unowned self] in work() }
        thread.withLock { $0 = started }
    }

    /// Stops answering, and removes the socket.
    func stop() {
        InspectionSocket.remove(process)
        // Ends `accept`.
        shutdown(socket.rawValue, Int32(SHUT_RDWR))
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }

    private func work() {
        while true {
            let descriptor = accept(socket.rawValue, nil, nil)
            guard descriptor >= 0 else {
                // Whoever wanted something may have gone already; the process may be short of descriptors for a while.
                if [EINTR, ECONNABORTED, EMFILE, ENFILE, ENOMEM].contains(errno) {
                    usleep(10_000)
                    continue
                }
                return
            }
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            answer(OwnedDescriptor(owning: descriptor))
        }
    }

    private func answer(_ connection: borrowing OwnedDescriptor) {
        // Who does not read may not keep the others waiting for ever.
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(connection.rawValue, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        guard let inspection = source.withLock({ $0 })?() else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        guard let text = try? encoder.encode(inspection) else { return }
        var bytes = [UInt8](text)
        bytes.append(UInt8(ascii: "\n"))
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                send(connection.rawValue, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            sent += count
        }
    }
}
