import ArgumentParser
import Glibc
import SystemPackage

/// `martlet doctor`: what this machine offers.
struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract:
            "Print what this machine offers: processor features, packages, what /dev/kvm is worth, default guests.",
        discussion: "Exit status: 0 if guests can run here, 1 if something that is required is missing.")

    func run() throws {
        var report = HostReport()
        report.addProcessor()
        report.addPackages()
        report.addAccelerators()
        report.addGuests()
        let status = StandardOutput.write(report.text)
        if status != .success { throw ExitCode(status.rawValue) }
        if !report.canRun { throw ExitCode(ExitStatus.hostFailure.rawValue) }
    }
}
