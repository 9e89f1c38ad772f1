import Glibc
import TestSupport
import Testing

/// The same bare guests on Martlet's core and on QEMU's translator, for what user space cannot execute natively.
///
/// Each guest prints one line for each check. Lines that differ must be in ``AcceptedDifference/all``, and with the version
/// of QEMU that it was made for, every entry there must be needed.
@Suite(
    .serialized, .timeLimit(.minutes(10)),
    .enabled(if: GuestAssembler.isAvailable, Comment(rawValue: GuestAssembler.missing)),
    .enabled(if: BareGuestRunner.path != nil, Comment(rawValue: BareGuestRunner.missing)))
struct BareGuestTests {
    @Test(
        .enabled(if: QEMU.isAvailable, Comment(rawValue: QEMU.missing)), arguments: BareGuest.all)
    func sameAsQEMU(guest: BareGuest) throws {
        let scratch = ScratchDirectory()
        let kernel = try guest.kernel(in: scratch)
        let martlet = try BareGuestRunner.start(kernel, cpus: guest.cpus)
        let qemu = try QEMU.start(kernel, cpus: guest.cpus)
        #expect(
            martlet.wait() == .exited(guest.ending.martletStatus),
            "\(martlet.outputText.suffix(500))\(martlet.errorText)")
        #expect(qemu.wait() == .exited(guest.ending.qemuStatus), "\(qemu.outputText.suffix(500))\(qemu.errorText)")
        let differences = Difference.between(martlet: martlet.outputText, qemu: qemu.outputText)
            .filter { !$0.isLeftToTheManual }
        let accepted = AcceptedDifference.all.filter { $0.guest == guest.name }
        for difference in differences where !accepted.contains(where: { $0.covers(difference) }) {
            Issue.record("\(guest.name): \(difference)")
        }
        // Other versions of QEMU have other faults.
        for part in accepted.flatMap({ $0.unused(by: differences) })
        where QEMU.version == AcceptedDifference.qemuVersion {
            Issue.record("\(guest.name): no difference any more: '\(part)'")
        }
        print(
            "\(guest.testDescription): \(martlet.output.occurrences(of: "\n")) lines, \(differences.count) accepted differences"
        )
    }
}

/// One of the guests in `Guests`.
struct BareGuest: CustomTestStringConvertible, Sendable {
    enum Ending: Sendable {
        /// It says so.
        case finished
        /// Its processor shuts down.
        case shutdown

        var martletStatus: Int32 { self == .finished ? 0 : 3 }
        /// QEMU's debug exit has status 1; a shutdown resets, which ends it.
        var qemuStatus: Int32 { self == .finished ? 1 : 0 }
    }

    var name: String
    var cpus = 1
    /// The source's symbol VARIANT.
    var variant = 0
    var ending = Ending.finished

    var testDescription: String { ending == .shutdown ? "\(name) \(variant)" : name }

    static let all: [BareGuest] =
        [
            .init(name: "paging"), .init(name: "legacy"), .init(name: "tlb"), .init(name: "exceptions"),
            .init(name: "debug"), .init(name: "control"), .init(name: "segments"), .init(name: "transfers"),
            .init(name: "protected"), .init(name: "tasks"), .init(name: "real"), .init(name: "modes"),
            .init(name: "selfmod"), .init(name: "interrupts"), .init(name: "smp", cpus: 2)
        ] + [0, 1, 2, 3, 4, 5, 10, 11, 12].map { .init(name: "shutdown", variant: $0, ending: .shutdown) }

    static let directory = {
        let file = #filePath
        return file[..<(file.lastIndex(of: "/") ?? file.startIndex)] + "/Guests"
    }()

    func kernel(in scratch: ScratchDirectory) throws -> String {
        let source = try #require(ScratchDirectory.contents(of: "\(Self.directory)/\(name).s"))
        return try GuestAssembler.kernel(
            String(decoding: source, as: UTF8.self), name: name, in: scratch, includes: String(Self.directory),
            definitions: ["VARIANT": variant])
    }
}

/// The program that runs bare guests on the core.
enum BareGuestRunner {
    /// Beside the command.
    static let path: String? = {
        guard let command = MartletCommand.path, let slash = command.lastIndex(of: "/") else { return nil }
        let path = String(command[..<slash]) + "/BareGuest"
        return access(path, X_OK) == 0 ? path : nil
    }()

    static let missing = "needs the runner of bare guests beside the martlet command: swift build --build-tests"

    static func start(_ kernel: String, cpus: Int, seconds: Int = 60) throws -> ChildProcess {
        let program = try #require(path)
        return try ChildProcess([program, kernel, "\(cpus)", "\(seconds)"])
    }
}

/// QEMU's translator, which stands for the manual where the host's processor cannot be asked.
enum QEMU {
    static let isAvailable = access(program, X_OK) == 0
    static let missing = "needs qemu-system-x86_64 (Debian package qemu-system-x86)"

    private static var program: String { "/usr/bin/qemu-system-x86_64" }

    /// Its version up to the second point.
    static let version: String = {
        guard let child = try? ChildProcess([program, "--version"]), child.wait() == .exited(0),
            let word = child.outputText.split(separator: " ").first(where: { $0.first?.isNumber == true })
        else { return "" }
        return word.split(separator: ".").prefix(2).joined(separator: ".")
    }()

    static func start(_ kernel: String, cpus: Int) throws -> ChildProcess {
        // The makers' processors differ, and Martlet's is the host's.
        let information = ScratchDirectory.contents(of: "/proc/cpuinfo") ?? []
        let vendor = information.occurrences(of: "AuthenticAMD") > 0 ? "AuthenticAMD" : "GenuineIntel"
        return try ChildProcess([
            program, "-accel", "tcg", "-cpu", "max,vendor=\(vendor)", "-M", "q35", "-m", "64", "-smp", "\(cpus)",
            "-nodefaults", "-display", "none", "-debugcon", "stdio", "-no-reboot", "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", kernel
        ])
    }
}

/// Two lines that should be the same.
struct Difference: CustomStringConvertible {
    var martlet: String
    var qemu: String

    var description: String { "Martlet '\(martlet)', QEMU '\(qemu)'" }

    /// A check that QEMU was not asked for, and that ended on Martlet as the guest demands.
    var isLeftToTheManual: Bool {
        let (qemuEnd, martletEnd) = (" left to the manual", " as expected")
        return qemu.hasSuffix(qemuEnd) && martlet.hasSuffix(martletEnd)
            && qemu.dropLast(qemuEnd.count) == martlet.dropLast(martletEnd.count)
    }

    static func between(martlet: String, qemu: String) -> [Difference] {
        let left = martlet.split(separator: "\n").map(String.init)
        let right = qemu.split(separator: "\n").map(String.init)
        var differences: [Difference] = []
        for index in 0..<max(left.count, right.count) {
            let pair = Difference(
                martlet: index < left.count ? left[index] : "(nothing)",
                qemu: index < right.count ? right[index] : "(nothing)")
            if pair.martlet != pair.qemu { differences.append(pair) }
        }
        return differences
    }
}
