import CHost
import Glibc
import Host
import Synchronization
import SystemPackage

/// The user's end of the guest's serial port: input from one descriptor, output to another.
///
/// If the input is a terminal it is switched to raw mode while ``run(deliver:)`` runs, and Ctrl-A commands are obeyed;
/// otherwise every byte goes through unchanged. The end of input ends nothing.
///
/// > Concurrency: ``run(deliver:)`` belongs to the main thread; ``wake()``, ``stop()`` and ``output`` to any.
public final class Console: @unchecked Sendable {
    /// Why ``run(deliver:)`` returned.
    public enum End: Equatable, Sendable {
        /// ``stop()`` was called; what the guest sent before has been written.
        case stopped
        /// The user typed Ctrl-A x.
        case left
        /// SIGINT, SIGTERM or SIGHUP arrived.
        case signal(Int32)
        /// Nobody reads the output any more.
        case outputClosed
        case failed(Errno)
    }

    public let output: ConsoleOutput

    private let inputDescriptor: FileDescriptor
    private let outputDescriptor: FileDescriptor
    private let wakeCounter: WakeCounter
    private let isStopRequested = Atomic(false)

    // The state of the main thread.
    private var filter = EscapeFilter()
    /// Input that the guest's port has refused so far.
    private var undelivered: [UInt8] = []
    private var isInputAtEnd = false
    /// Taken from ``output``; written up to `writtenCount`.
    private var outgoing: [UInt8] = []
    private var writtenCount = 0

    /// How long output may gather before it is written, so that a line is one write rather than a hundred.
    private static var gatheringMilliseconds: CInt { 1 }

    /// - Parameter handlesSignals: take over the process's signals, for good. To be done before anything else handles
    ///   crash signals, which may then pass on to the console's handlers.
    /// - Throws: `Errno.badFileDescriptor` if `output` is closed or cannot be written, otherwise what creating an event counter throws.
    public init(
        input: FileDescriptor = .standardInput, output: FileDescriptor = .standardOutput, handlesSignals: Bool
    ) throws(Errno) {
        let mode = fcntl(output.rawValue, F_GETFL)
        guard mode >= 0, mode & O_ACCMODE != O_RDONLY else { throw .badFileDescriptor }
        inputDescriptor = input
        outputDescriptor = output
        isInputAtEnd = fcntl(input.rawValue, F_GETFD) < 0
        let counter = WakeCounter(try OwnedDescriptor.eventCounter())
        wakeCounter = counter
        self.output = ConsoleOutput { counter.add() }
        if handlesSignals { ProcessSignals.install(wakeDescriptor: counter.rawValue) }
    }

    /// Makes ``run(deliver:)`` offer refused input again.
    public func wake() { wakeCounter.add() }

    /// Makes the current ``run(deliver:)``, or the next one, return once the output so far is written.
    public func stop() {
        // ORDERING: release pairs with the acquire in `run`: the output that came before is seen.
        isStopRequested.store(true, ordering: .releasing)
        wakeCounter.add()
    }

    /// Carries bytes both ways until something ends that.
    ///
    /// - Parameter deliver: gives input to the guest and returns how many bytes it took. When it has refused some, it is
    ///   called again after ``wake()``.
    public func run(deliver: ([UInt8]) -> Int) -> End {
        let terminal: Terminal?
        do {
            terminal = try Terminal(inputDescriptor)
        } catch {
            return .failed(error)
        }
        defer {
            writeWhatFits()
            terminal?.restore()
        }
        while true {
            if let signal = ProcessSignals.terminationRequest { return .signal(signal) }
            // ORDERING: acquire pairs with the release in `stop`.
            let isStopping = isStopRequested.load(ordering: .acquiring)
            // Each time round: the wake-up for what has arrived meanwhile may have come during a write.
            takeOutput()
            if isStopping, outgoing.isEmpty {
                isStopRequested.store(false, ordering: .relaxed)
                return .stopped
            }
            offerInput(to: deliver)
            if let end = step(isInteractive: terminal != nil) { return end }
        }
    }

    /// Lets go of vCPU threads that wait for the output to be read; their output is lost from now on.
    public func closeOutput() { output.close() }

    // MARK: One step

    /// Waits for something to do and does it.
    private func step(isInteractive: Bool) -> End? {
        let hasOutput = writtenCount < outgoing.count
        let wantsInput = !isInputAtEnd && undelivered.isEmpty
        // A descriptor of −1 is skipped.
        var entries = [
            pollfd(fd: wakeCounter.rawValue, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wantsInput ? inputDescriptor.rawValue : -1, events: Int16(POLLIN), revents: 0),
            pollfd(fd: hasOutput ? outputDescriptor.rawValue : -1, events: Int16(POLLOUT), revents: 0)
        ]
        guard poll(&entries, nfds_t(entries.count), -1) >= 0 else {
            return errno == EINTR ? nil : .failed(Errno(rawValue: errno))
        }
        if entries[0].revents != 0 {
            wakeCounter.clear()
            if !hasOutput { gather() }
        }
        if entries[1].revents != 0, let end = readInput(isInteractive: isInteractive) { return end }
        if entries[2].revents != 0, let end = writeOutput() { return end }
        return nil
    }

    /// Waits a moment, less if something urgent happens.
    private func gather() {
        var entry = pollfd(fd: wakeCounter.rawValue, events: Int16(POLLIN), revents: 0)
        _ = poll(&entry, 1, Self.gatheringMilliseconds)
    }

    private func takeOutput() {
        guard writtenCount == outgoing.count else { return }
        writtenCount = 0
        output.takeAll(into: &outgoing)
    }

    private func offerInput(to deliver: ([UInt8]) -> Int) {
        guard !undelivered.isEmpty else { return }
        undelivered.removeFirst(deliver(undelivered))
    }

    private func readInput(isInteractive: Bool) -> End? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(inputDescriptor.rawValue, &buffer, buffer.count)
        guard count > 0 else {
            // The end, or an error: a terminal that hung up reports one. The guest goes on without input.
            if count == 0 || (errno != EINTR && errno != EAGAIN) { isInputAtEnd = true }
            return nil
        }
        guard isInteractive else {
            undelivered += buffer[..<count]
            return nil
        }
        let (bytes, leaves) = filter.filter(buffer[..<count])
        undelivered += bytes
        return leaves ? .left : nil
    }

    /// Writes what there is, as far as that is possible without waiting: somebody wants to leave.
    private func writeWhatFits() {
        while true {
            takeOutput()
            guard writtenCount < outgoing.count else { return }
            var entry = pollfd(fd: outputDescriptor.rawValue, events: Int16(POLLOUT), revents: 0)
            guard poll(&entry, 1, 0) == 1, entry.revents == Int16(POLLOUT), writeOutput() == nil else { return }
        }
    }

    private func writeOutput() -> End? {
        // No more than a pipe takes without blocking once it is ready.
        let count = min(outgoing.count - writtenCount, Int(PIPE_BUF))
        let written = outgoing[writtenCount...].withUnsafeBytes {
            write(outputDescriptor.rawValue, $0.baseAddress, count)
        }
        if written >= 0 {
            writtenCount += written
            return nil
        }
        switch errno {
        case EINTR, EAGAIN: return nil
        case EPIPE: return .outputClosed
        default: return .failed(Errno(rawValue: errno))
        }
    }
}

/// An event counter that threads and signal handlers wake the console with.
private final class WakeCounter: Sendable {
    private let descriptor: OwnedDescriptor

    init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }

    var rawValue: CInt { descriptor.rawValue }

    func add() {
        var one: UInt64 = 1
        // A counter that is full, which is the only failure, wakes as well.
        _ = write(descriptor.rawValue, &one, 8)
    }

    func clear() {
        var value: UInt64 = 0
        _ = read(descriptor.rawValue, &value, 8)
    }
}
