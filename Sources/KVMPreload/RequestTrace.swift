import CHost
import Glibc
import Host
import KVMInterface
import SystemPackage

/// The file to which `martlet kvm --log` writes what the client asks for: a line for each request.
///
///     0.012345 thread 4711 fd 14 vcpu 2: KVM_RUN(0x0) = 0 KVM_EXIT_IO: write port 0x3f8, 1 byte; 12.3 µs
///
/// > Concurrency: any thread; a line is one write.
final class RequestTrace: Sendable {
    private let file: OwnedDescriptor
    private let start = MonotonicClock.nanoseconds()

    /// nil, with a message, if the file cannot be written.
    init?(path: String) {
        do {
            file = try OwnedDescriptor.open(path: path, flags: O_WRONLY | O_CREAT | O_APPEND)
        } catch {
            Warning.print("cannot write the log \(path): \(error)")
            return nil
        }
    }

    func record(
        _ file: ClientFile, _ descriptor: Int32, _ request: UInt32, _ argument: UInt, _ result: Int32,
        _ exit: VCPUExitDescription?, nanoseconds: UInt64
    ) {
        let name = RequestName.of(request) ?? "request 0x" + String(request, radix: 16)
        var line = "fd \(descriptor) \(Self.describe(file)): \(name)(\(Self.describe(argument, of: request)))"
        line += " = \(Self.describe(result))"
        if let exit { line += " \(exit.text)" }
        write(line + "; \(Self.describe(nanoseconds: nanoseconds))")
    }

    /// A call that is no request.
    func record(_ name: String, _ file: ClientFile?, _ argument: String, _ result: String) {
        let object = file.map { Self.describe($0) + ": " } ?? ""
        write("\(object)\(name)(\(argument))" + (result.isEmpty ? "" : " = \(result)"))
    }

    private func write(_ text: String) {
        let microseconds = (MonotonicClock.nanoseconds() &- start) / 1000
        let fraction = String(1_000_000 + microseconds % 1_000_000).dropFirst()
        var line = "\(microseconds / 1_000_000).\(fraction) thread \(martlet_gettid()) \(text)\n"
        line.withUTF8 { bytes in _ = try? file.write(UnsafeRawBufferPointer(bytes)) }
    }

    // MARK: Descriptions

    static func describe(_ result: Int32) -> String {
        result < 0 ? "-1 (\(Errno(rawValue: -result)))" : String(result)
    }

    private static func describe(_ file: ClientFile) -> String {
        switch file.kind {
        case .system, .inheritedSystem: "kvm"
        case .machine: "machine \(file.descriptor.rawValue)"
        case .vcpu: "vcpu \(file.descriptor.rawValue)"
        case .statistics: "statistics \(file.descriptor.rawValue)"
        case .foreign: "of another process"
        }
    }

    /// The argument, and what it points to where that is short.
    private static func describe(_ argument: UInt, of request: UInt32) -> String {
        let number = "0x" + String(argument, radix: 16)
        switch KVMRequest(rawValue: request) {
        case .setUserMemoryRegion:
            var region = kvm_userspace_memory_region()
            guard copy(argument, to: &region) else { break }
            return "slot 0x\(hex(region.slot)), flags \(region.flags), guest 0x\(hex(region.guest_phys_addr)), "
                + "0x\(hex(region.memory_size)) bytes at 0x\(hex(region.userspace_addr))"
        case .enableCapability:
            var capability = kvm_enable_cap()
            guard copy(argument, to: &capability) else { break }
            return "capability \(capability.cap), flags \(capability.flags), 0x\(hex(capability.args.0))"
        case .irqLine, .irqLineStatus:
            var line = kvm_irq_level()
            guard copy(argument, to: &line) else { break }
            return "line \(line.irq), level \(line.level)"
        case .checkExtension: return String(argument)
        default: break
        }
        return number
    }

    private static func hex<T: BinaryInteger>(_ value: T) -> String { String(value, radix: 16) }

    /// Copies a structure that may not be there any more.
    private static func copy<T>(_ address: UInt, to value: inout T) -> Bool {
        guard let source = UnsafeRawPointer(bitPattern: address) else { return false }
        return withUnsafeMutableBytes(of: &value) { martlet_guarded_copy($0.baseAddress!, source, $0.count) == 0 }
    }

    private static func describe(nanoseconds: UInt64) -> String {
        let tenths = nanoseconds / 100
        return "\(tenths / 10).\(tenths % 10) µs"
    }
}

/// Why a `KVM_RUN` returned.
struct VCPUExitDescription {
    let reason: UInt32
    let text: String

    init(_ area: UnsafeMutableRawBufferPointer) {
        let run = RunArea(area).run
        reason = run.pointee.exit_reason
        let name = ExitName.of(reason)
        switch Int32(truncatingIfNeeded: reason) {
        case KVM_EXIT_IO:
            let io = run.pointee.io
            let verb = io.direction == UInt8(KVM_EXIT_IO_OUT) ? "write" : "read"
            text = "\(name): \(verb) port 0x\(String(io.port, radix: 16)), \(io.size) × \(io.count) bytes"
        case KVM_EXIT_MMIO:
            let mmio = run.pointee.mmio
            let verb = mmio.is_write != 0 ? "write" : "read"
            text = "\(name): \(verb) 0x\(String(mmio.phys_addr, radix: 16)), \(mmio.len) bytes"
        case KVM_EXIT_INTERNAL_ERROR: text = "\(name): \(run.pointee.internal.suberror)"
        default: text = name
        }
    }
}

/// A line for the user on the client's standard error.
enum Warning {
    static func print(_ text: String) {
        var line = "martlet: \(text)\n"
        line.withUTF8 { bytes in _ = Glibc.write(STDERR_FILENO, bytes.baseAddress, bytes.count) }
    }
}
