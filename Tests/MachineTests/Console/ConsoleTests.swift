import Glibc
import Machine
import Synchronization
import SystemPackage
import Testing

/// A pseudo-terminal: the user's side, and the side a program runs on.
private final class Pseudoterminal {
    let user: FileDescriptor
    let program: FileDescriptor

    init() throws {
        var (user, program): (CInt, CInt) = (-1, -1)
        guard openpty(&user, &program, nil, nil, nil) == 0 else { throw Errno(rawValue: errno) }
        self.user = FileDescriptor(rawValue: user)
        self.program = FileDescriptor(rawValue: program)
    }

    deinit {
        try? user.close()
        try? program.close()
    }

    var mode: termios {
        var mode = termios()
        tcgetattr(program.rawValue, &mode)
        return mode
    }

    var isRaw: Bool { mode.c_lflag & tcflag_t(ICANON | ECHO | ISIG) == 0 }

    func type(_ text: String) throws { _ = try user.writeAll(Array(text.utf8)) }

    func read(count: Int) throws -> String {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 256)
        while bytes.count < count {
            let count = try buffer.withUnsafeMutableBytes { try user.read(into: $0) }
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Bytes that a fake guest received.
private final class Received: Sendable {
    private let bytes = Mutex<[UInt8]>([])

    var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }

    func add(_ new: some Sequence<UInt8>) { bytes.withLock { $0 += new } }
}

@Suite(.serialized) struct ConsoleTests {
    /// A guest that echoes in capitals, on a terminal.
    @Test func aTerminalIsRawWhileTheGuestRuns() throws {
        let terminal = try Pseudoterminal()
        let console = try Console(input: terminal.program, output: terminal.program, handlesSignals: false)
        let received = Received()
        let before = terminal.mode
        // What is typed before arrives as the terminal's old mode has changed it.
        try terminal.type("ls\n")
        // The kernel takes its time.
        #expect(try terminal.read(count: 4) == "ls\r\n")
        let end = console.run { bytes in
            #expect(terminal.isRaw)
            let isFirst = received.text.isEmpty
            received.add(bytes)
            for byte in bytes { console.output.append(byte >= 0x61 ? byte - 0x20 : byte) }
            // Ctrl-C, Enter, Ctrl-A a, Ctrl-A Ctrl-A, an unknown command, then leave.
            if isFirst { try? terminal.type("\u{3}\r\u{1}a\u{1}\u{1}\u{1}qz") }
            if received.text.hasSuffix("z") { try? terminal.type("\u{1}xlost") }
            return bytes.count
        }
        #expect(end == .left)
        #expect(received.text == "ls\n\u{3}\r\u{1}\u{1}z")
        #expect(terminal.mode.c_lflag == before.c_lflag)
        #expect(terminal.mode.c_iflag == before.c_iflag)
        // The raw mode echoed nothing, so the rest is the guest's.
        #expect(try terminal.read(count: 4).utf8.starts(with: "LS\n\u{3}".utf8))
    }

    @Test func stoppingRestoresTheTerminalAndWritesWhatIsLeft() throws {
        let terminal = try Pseudoterminal()
        let console = try Console(input: terminal.program, output: terminal.program, handlesSignals: false)
        for byte in "bye".utf8 { console.output.append(byte) }
        console.stop()
        #expect(console.run { $0.count } == .stopped)
        #expect(!terminal.isRaw)
        #expect(try terminal.read(count: 3) == "bye")
    }

    @Test func aPipeIsTransparent() throws {
        let pipes = try ConsolePipes()
        let console = try pipes.console()
        let received = Received()
        try pipes.send("a\u{1}x\u{3}\u{0}b\n")
        let end = console.run { bytes in
            received.add(bytes)
            if received.text.hasSuffix("\n") { console.stop() }
            return bytes.count
        }
        #expect(end == .stopped)
        #expect(received.text == "a\u{1}x\u{3}\u{0}b\n")
    }

    /// A port that takes three bytes at a time and says later that there is room again.
    @Test func refusedInputIsOfferedAgainInOrder() throws {
        let pipes = try ConsolePipes()
        let console = try pipes.console()
        let received = Received()
        try pipes.send("0123456789")
        let end = console.run { bytes in
            let taken = bytes.prefix(3)
            received.add(taken)
            if received.text.utf8.count == 10 { console.stop() } else { console.wake() }
            return taken.count
        }
        #expect(end == .stopped)
        #expect(received.text == "0123456789")
    }

    @Test func theEndOfInputEndsNothing() throws {
        let (readEnd, writeEnd) = try FileDescriptor.pipe()
        try writeEnd.close()
        let pipes = try ConsolePipes()
        let output = try FileDescriptor.open("/dev/null", .writeOnly)
        let console = try Console(input: readEnd, output: output, handlesSignals: false)
        var stopper = pthread_t()
        // Long after the end has been noticed in any case that ends the run wrongly.
        pthread_create(
            &stopper, nil,
            { console in
                usleep(50_000)
                Unmanaged<Console>.fromOpaque(console!).takeUnretainedValue().stop()
                return nil
            }, Unmanaged.passUnretained(console).toOpaque())
        #expect(console.run { $0.count } == .stopped)
        pthread_join(stopper, nil)
        try readEnd.close()
        try output.close()
        withExtendedLifetime(pipes) {}
    }

    @Test func closedDescriptors() throws {
        let closed = FileDescriptor(rawValue: 9_999)
        #expect(throws: Errno.badFileDescriptor) {
            try Console(input: .standardInput, output: closed, handlesSignals: false)
        }
        // A closed input is input at its end.
        let pipes = try ConsolePipes()
        let output = try FileDescriptor.open("/dev/null", .writeOnly)
        let console = try Console(input: closed, output: output, handlesSignals: false)
        console.stop()
        #expect(console.run { $0.count } == .stopped)
        try output.close()
        withExtendedLifetime(pipes) {}
    }

    @Test func errorsOfTheOutputEndTheRun() throws {
        let full = try FileDescriptor.open("/dev/full", .writeOnly)
        let console = try Console(
            input: FileDescriptor(rawValue: 9_999), output: full, handlesSignals: false)
        console.output.append(0x78)
        #expect(console.run { $0.count } == .failed(.noSpace))
        try full.close()
    }
}
