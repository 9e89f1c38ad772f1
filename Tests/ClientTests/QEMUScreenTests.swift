import Glibc
import TestSupport
import Testing

extension QEMUTests {
    /// The guest's console on a VGA adapter, seen through VNC: QEMU sends what the dirty log of its frame buffer tells.
    @Test(arguments: ["q35", "pc"]) func screen(machine: String) throws {
        let directory = QEMU.sharedDirectory()
        let place = "\(directory.path)/vnc"
        let qemu = try QEMU.boot(
            machine, flavour: .standard, kernelArguments: "vga=0x317",
            running: """
                echo 0 > /sys/class/graphics/fbcon/cursor_blink; i=0; \
                while [ $i -lt 100 ]; do echo line $i aaaaaaaaaaaaaaaaaaaaa > /dev/tty1; i=$((i+1)); done; echo DRA''WN; \
                read x; clear > /dev/tty1; echo CLEA''RED; read x
                """,
            options: ["-no-reboot", "-device", "VGA", "-vnc", "unix:\(place)"], input: .pipe, in: directory)
        try #require(qemu.waitForLine("DRAWN"), qemu.account)
        let screen = try #require(RemoteScreen(path: place), qemu.account)
        #expect(screen.width == 1024 && screen.height == 768)
        try #require(screen.update(isIncremental: false), qemu.account)
        try #require(screen.update { $0 > 5000 }, "\(screen.brightCount) pixels are bright")
        qemu.child.send("\n")
        try #require(qemu.waitForLine("CLEARED"), qemu.account)
        // The cursor may stay.
        try #require(screen.update { $0 < 500 }, "\(screen.brightCount) pixels are bright")
        qemu.child.send("\n")
        qemu.expectSuccess()
    }
}

/// The screen of a machine, by the protocol of VNC.
///
/// > Source: RFC 6143.
final class RemoteScreen {
    private let stream: UnixStream
    let width: Int
    let height: Int
    private var isBright: [Bool]

    /// nil if the server says something else than expected.
    init?(path: String) {
        guard let stream = try? UnixStream(path: path), stream.read(exactly: 12) != nil else { return nil }
        stream.write(Array("RFB 003.008\n".utf8))
        // No authentication; its result is four zeros.
        guard let count = stream.read(exactly: 1), stream.read(exactly: Int(count[0])) != nil else { return nil }
        stream.write([1])
        guard stream.read(exactly: 4) == [0, 0, 0, 0] else { return nil }
        // Others may look, too.
        stream.write([1])
        guard let head = stream.read(exactly: 24), head[4] == 32, stream.read(exactly: Int(head[23])) != nil else {
            return nil
        }
        // Raw pixels only.
        stream.write([2, 0, 0, 1, 0, 0, 0, 0])
        self.stream = stream
        (width, height) = (Self.number(head, 0), Self.number(head, 2))
        isBright = [Bool](repeating: false, count: width * height)
    }

    var brightCount: Int { isBright.count { $0 } }

    /// Takes what has changed, until `isDone` says that it is enough.
    /// - Returns: false if nothing came any more.
    func update(until isDone: (Int) -> Bool) -> Bool {
        while !isDone(brightCount) {
            guard update(isIncremental: true) else { return false }
        }
        return true
    }

    func update(isIncremental: Bool) -> Bool {
        stream.write([3, isIncremental ? 1 : 0, 0, 0, 0, 0] + Self.bytes(width) + Self.bytes(height))
        guard let head = stream.read(exactly: 4), head[0] == 0 else { return false }
        return (0..<Self.number(head, 2)).allSatisfy { _ in readRectangle() }
    }

    private func readRectangle() -> Bool {
        guard let head = stream.read(exactly: 12), head[8...] == [0, 0, 0, 0] else { return false }
        let (x, y, columns, rows) = (
            Self.number(head, 0), Self.number(head, 2), Self.number(head, 4), Self.number(head, 6)
        )
        guard x + columns <= width, y + rows <= height, let pixels = stream.read(exactly: columns * rows * 4)
        else { return false }
        for row in 0..<rows {
            for column in 0..<columns {
                isBright[(y + row) * width + x + column] = pixels[(row * columns + column) * 4 + 1] > 0x60
            }
        }
        return true
    }

    private static func number(_ bytes: [UInt8], _ offset: Int) -> Int {
        Int(bytes[offset]) << 8 | Int(bytes[offset + 1])
    }

    private static func bytes(_ number: Int) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 0xFF)] }
}
