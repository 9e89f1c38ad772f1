import Glibc
import Machine
import Synchronization
import SystemPackage

/// A console between two pipes, and a thread that reads what comes out.
final class ConsolePipes: @unchecked Sendable {
    private let input: (readEnd: FileDescriptor, writeEnd: FileDescriptor)
    private let output: (readEnd: FileDescriptor, writeEnd: FileDescriptor)
    private let text = Mutex<[UInt8]>([])
    private var reader = pthread_t()
    private var isReading = false
    private var isWriterOpen = true

    init() throws {
        // A closed pipe is an error to report, not the end of the tests.
        signal(SIGPIPE, SIG_IGN)
        input = try FileDescriptor.pipe()
        output = try FileDescriptor.pipe()
    }

    deinit {
        _ = try? received()
        try? input.readEnd.close()
        try? input.writeEnd.close()
        try? output.readEnd.close()
    }

    func console() throws -> Console {
        startReading()
        return try Console(input: input.readEnd, output: output.writeEnd, handlesSignals: false)
    }

    /// Types into the console.
    func send(_ text: String) throws {
        if !text.isEmpty { _ = try input.writeEnd.writeAll(Array(text.utf8)) }
    }

    /// Everything that came out, once the console is done.
    func received() throws -> String {
        if isWriterOpen {
            isWriterOpen = false
            try output.writeEnd.close()
        }
        if isReading {
            isReading = false
            pthread_join(reader, nil)
        }
        return text.withLock { String(decoding: $0, as: UTF8.self) }
    }

    /// Goes away as a reader does that has seen enough.
    func closeReader() {
        if isReading {
            pthread_cancel(reader)
            pthread_join(reader, nil)
            isReading = false
        }
        let null = open("/dev/null", O_RDONLY)
        dup2(null, output.readEnd.rawValue)
        close(null)
    }

    private func startReading() {
        isReading = true
        let context = Unmanaged.passUnretained(self).toOpaque()
        pthread_create(
            &reader, nil,
            { context in
                let pipes = Unmanaged<ConsolePipes>.fromOpaque(context!).takeUnretainedValue()
                pipes.readAll()
                return nil
            }, context)
    }

    private func readAll() {
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = read(output.readEnd.rawValue, &buffer, buffer.count)
            guard count > 0 else { return }
            text.withLock { $0 += buffer[..<count] }
        }
    }
}
