import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage
import Testing
import UserspaceKVM

/// An `eventfd` of a test, as a client has it.
final class TestEvent: Sendable {
    let descriptor: OwnedDescriptor

    init(initial: UInt32 = 0, nonBlocking: Bool = true) throws {
        descriptor = try OwnedDescriptor.eventCounter(initial: initial, nonBlocking: nonBlocking)
    }

    var rawValue: Int32 { descriptor.rawValue }

    func signal() { EventDescriptor.signal(rawValue) }

    /// How often it was signalled since the last call.
    func take() -> UInt64 {
        var value: UInt64 = 0
        return read(rawValue, &value, 8) == 8 ? value : 0
    }

    /// Waits until it is signalled; false if that takes more than ten seconds.
    func isSignalled() -> Bool {
        var poll = pollfd(fd: rawValue, events: Int16(POLLIN), revents: 0)
        return Glibc.poll(&poll, 1, 10_000) == 1
    }
}

/// Writes of guests that signal event descriptors (`KVM_IOEVENTFD`).
@Suite struct IOEventTests {
    /// mov al,5 ; out 0x60,al ; mov ax,0x0607 ; out 0x60,ax ; out 0x10,al ; jmp $
    private static let portWriter: [UInt8] = [
        0xB0, 0x05, 0xE6, 0x60, 0xB8, 0x07, 0x06, 0xE7, 0x60, 0xE6, 0x10, 0xEB, 0xFE
    ]
    /// In 64-bit mode: mov dword [0x300000],7 ; mov byte [0x300000],7 ; mov qword [0x300000],7 ; out 0x10,al ; jmp $
    private static let memoryWriter: [UInt8] = [
        0xC7, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0x07, 0x00, 0x00, 0x00,
        0xC6, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0x07,
        0x48, 0xC7, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0x07, 0x00, 0x00, 0x00,
        0xE6, 0x10, 0xEB, 0xFE
    ]
    private static let address: UInt64 = 0x30_0000

    private func memoryMachine() throws -> SmallMachine {
        let small = try SmallMachine(code: Self.memoryWriter)
        try small.enter64BitMode()
        return small
    }

    /// A store of 16 bytes is two accesses: the event is signalled once, though the client has to make the second.
    @Test func aPartOfAWideStoreIsMadeOnce() throws {
        // movups [0x300000],xmm0 ; out 0x10,al
        let small = try SmallMachine(code: [0x0F, 0x11, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0xE6, 0x10])
        try small.enter64BitMode { $0.cr4 |= 0x200 }
        let event = try TestEvent()
        try small.machine.addIOEvent(
            IOEvent(address: Self.address, byteCount: 8, isPort: false), descriptor: event.rawValue)
        guard case .mmio(let access) = try small.vcpu.run() else {
            Issue.record("no exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(access.isWrite && access.address == Self.address + 8 && access.byteCount == 8)
        guard case .io = try small.vcpu.run() else {
            Issue.record("no port exit: \(small.vcpu.runArea.exit)")
            return
        }
        #expect(event.take() == 1)
    }

    /// Runs to the write to port 0x10 and counts what left the core before.
    private func exitCount(_ small: SmallMachine) throws -> Int {
        for count in 0..<10 {
            if case .io(let access) = try small.vcpu.run(), access.port == 0x10 { return count }
        }
        Issue.record("the guest did not end")
        return -1
    }

    @Test func capabilities() throws {
        let machine = try SmallMachine().machine
        #expect(try machine.checkExtension(.ioEvents) == 1)
        #expect(try machine.checkExtension(.ioEventNoLength) == 1)
        #expect(try machine.checkExtension(.ioEventAnyLength) == 1)
    }

    @Test(arguments: [false, true]) func ports(hasIRQChip: Bool) throws {
        let small = try SmallMachine(code: Self.portWriter, hasIRQChip: hasIRQChip)
        let (bytes, words) = (try TestEvent(), try TestEvent())
        try small.machine.addIOEvent(IOEvent(address: 0x60, byteCount: 1, isPort: true), descriptor: bytes.rawValue)
        try small.machine.addIOEvent(
            IOEvent(address: 0x60, byteCount: 2, isPort: true, value: 0x607), descriptor: words.rawValue)
        #expect(try exitCount(small) == 0)
        #expect(bytes.take() == 1)
        #expect(words.take() == 1)
    }

    @Test func portsWithOtherValues() throws {
        let small = try SmallMachine(code: Self.portWriter)
        let event = try TestEvent()
        try small.machine.addIOEvent(
            IOEvent(address: 0x60, byteCount: 1, isPort: true, value: 6), descriptor: event.rawValue)
        try small.machine.addIOEvent(
            IOEvent(address: 0x60, byteCount: 1, isPort: false), descriptor: event.rawValue)
        #expect(try exitCount(small) == 2)
        #expect(event.take() == 0)
    }

    @Test func memory() throws {
        let small = try memoryMachine()
        let (event, other) = (try TestEvent(), try TestEvent())
        try small.machine.addIOEvent(IOEvent(address: Self.address, byteCount: 4), descriptor: event.rawValue)
        try small.machine.addIOEvent(IOEvent(address: Self.address, byteCount: 8, value: 7), descriptor: event.rawValue)
        try small.machine.addIOEvent(IOEvent(address: Self.address + 4, byteCount: 0), descriptor: other.rawValue)
        #expect(try exitCount(small) == 1)
        #expect(event.take() == 2)
        #expect(other.take() == 0)
    }

    @Test func anyLength() throws {
        let small = try memoryMachine()
        let event = try TestEvent()
        try small.machine.addIOEvent(IOEvent(address: Self.address, byteCount: 0), descriptor: event.rawValue)
        #expect(try exitCount(small) == 0)
        #expect(event.take() == 3)
    }

    /// The client may close its descriptor; one of its duplicates removes the event.
    @Test func descriptorsAreDuplicated() throws {
        let small = try memoryMachine()
        let event = try TestEvent()
        let trigger = IOEvent(address: Self.address, byteCount: 4)
        do {
            let copy = try event.descriptor.duplicate()
            try small.machine.addIOEvent(trigger, descriptor: copy.rawValue)
        }
        #expect(try exitCount(small) == 2)
        #expect(event.take() == 1)
        try small.machine.removeIOEvent(trigger, descriptor: event.rawValue)
        #expect(throws: Errno.noSuchFileOrDirectory) {
            try small.machine.removeIOEvent(trigger, descriptor: event.rawValue)
        }
    }

    @Test func duplicates() throws {
        let machine = try SmallMachine().machine
        let event = try TestEvent()
        func add(_ event: IOEvent) throws -> Bool {
            let descriptor = try TestEvent()
            do {
                try machine.addIOEvent(event, descriptor: descriptor.rawValue)
            } catch Errno.fileExists {
                return false
            }
            return true
        }
        try machine.addIOEvent(IOEvent(address: 0x1000, byteCount: 2, value: 5), descriptor: event.rawValue)
        #expect(try !add(IOEvent(address: 0x1000, byteCount: 2, value: 5)))
        #expect(try !add(IOEvent(address: 0x1000, byteCount: 2)))
        #expect(try !add(IOEvent(address: 0x1000, byteCount: 0)))
        #expect(try add(IOEvent(address: 0x1000, byteCount: 2, value: 6)))
        #expect(try add(IOEvent(address: 0x1000, byteCount: 4)))
        #expect(try add(IOEvent(address: 0x1001, byteCount: 0)))
        #expect(try add(IOEvent(address: 0x1000, byteCount: 0, isPort: true)))
    }

    private func call(_ small: SmallMachine, _ change: (inout kvm_ioeventfd) -> Void) -> Errno? {
        var request = kvm_ioeventfd()
        request.addr = 0x1000
        request.len = 4
        change(&request)
        do {
            try withUnsafeMutablePointer(to: &request) { (pointer) throws(Errno) in
                _ = try small.backend.ioctl(
                    small.machine.descriptor, KVMRequest.setIOEvent.rawValue, UInt(bitPattern: pointer))
            }
        } catch {
            return error
        }
        return nil
    }

    @Test func errors() throws {
        let small = try SmallMachine()
        let event = try TestEvent()
        #expect(call(small) { $0.fd = -1 } == .badFileDescriptor)
        #expect(call(small) { $0.fd = 19_999 } == .badFileDescriptor)
        let file = try OwnedDescriptor.open(path: "/dev/null")
        #expect(call(small) { $0.fd = file.rawValue } == .invalidArgument)
        #expect(call(small) { ($0.fd, $0.len) = (event.rawValue, 3) } == .invalidArgument)
        #expect(call(small) { ($0.fd, $0.len) = (event.rawValue, 16) } == .invalidArgument)
        #expect(call(small) { ($0.fd, $0.flags) = (event.rawValue, 1 << 5) } == .invalidArgument)
        #expect(call(small) { ($0.fd, $0.addr) = (event.rawValue, .max - 2) } == .invalidArgument)
        #expect(call(small) { ($0.fd, $0.len, $0.flags) = (event.rawValue, 0, 1) } == .invalidArgument)
        // A range may end at 2^64 − 1. What is wrong is found before the descriptor is looked at.
        #expect(call(small) { ($0.fd, $0.addr) = (event.rawValue, .max - 4) } == nil)
        #expect(call(small) { ($0.fd, $0.len) = (-1, 3) } == .invalidArgument)
        // A removal only compares.
        #expect(call(small) { ($0.fd, $0.len, $0.flags) = (event.rawValue, 3, 1 << 2) } == .noSuchFileOrDirectory)
        #expect(call(small) { ($0.fd, $0.flags) = (-1, 1 << 2) } == .badFileDescriptor)
        #expect(throws: Errno.badAddress) {
            try small.backend.ioctl(small.machine.descriptor, KVMRequest.setIOEvent.rawValue, 16)
        }
    }

    /// Events come and go while the guest writes: each write either signals or leaves the core, and none does after the
    /// removal.
    @Test func changesWhileAGuestWrites() throws {
        // again: out 0x60,al ; out 0x10,al ; jmp again
        let small = try SmallMachine(code: [0xE6, 0x60, 0xE6, 0x10, 0xEB, 0xFA])
        let vcpu = small.vcpu
        let event = try TestEvent()
        let trigger = IOEvent(address: 0x60, byteCount: 1, isPort: true)
        let exits = CountedExits()
        try withThreads(1) { _ in
            while let exit = try? vcpu.run() {
                if case .interrupted = exit { return }
                if case .io(let access) = exit { exits.add(access.port) }
            }
        } meanwhile: {
            defer { vcpu.requestExit() }
            for round in 0..<200 {
                let neighbour = IOEvent(address: 0x61 + UInt64(round), byteCount: 0, isPort: true)
                try small.machine.addIOEvent(neighbour, descriptor: event.rawValue)
                try small.machine.addIOEvent(trigger, descriptor: event.rawValue)
                if round & 7 == 0 { #expect(event.isSignalled()) }
                try small.machine.removeIOEvent(trigger, descriptor: event.rawValue)
                exits.signalled += event.take()
                #expect(event.take() == 0)
                try small.machine.removeIOEvent(neighbour, descriptor: event.rawValue)
            }
        }
        let (writes, ends) = (exits.count(of: 0x60) + Int(exits.signalled), exits.count(of: 0x10))
        #expect(exits.signalled > 0)
        #expect(writes == ends || writes == ends + 1)
    }
}

/// Counts exits by their ports: one thread writes, and reads come after its end.
private final class CountedExits: @unchecked Sendable {
    private var counts: [UInt16: Int] = [:]
    /// The other thread's.
    var signalled: UInt64 = 0

    func add(_ port: UInt16) { counts[port, default: 0] += 1 }
    func count(of port: UInt16) -> Int { counts[port] ?? 0 }
}
