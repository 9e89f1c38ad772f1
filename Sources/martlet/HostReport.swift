import DefaultGuest
import Glibc
import SystemPackage

/// What `martlet doctor` prints.
struct HostReport {
    private(set) var text = ""
    /// Whether everything is there without which no guest runs.
    private(set) var canRun = true

    /// Features by their names in /proc/cpuinfo: required, or used where they are.
    mutating func addProcessor() {
        let information = Self.contents(of: "/proc/cpuinfo")
        let flags = Set(Self.field("flags", in: information).split(separator: " "))
        heading(
            "processor: \(Self.field("model name", in: information)), \(sysconf(CInt(_SC_NPROCESSORS_ONLN))) online")
        for (flag, purpose) in [
            ("bmi2", "flag-free address checks in translated code"), ("avx2", "guest AVX2 instructions")
        ] {
            entry(flag, flags.contains(Substring(flag)) ? "yes" : "missing: required (\(purpose))")
            if !flags.contains(Substring(flag)) { canRun = false }
        }
        entry("fsgsbase", flags.contains("fsgsbase") ? "yes" : "no: entering guest code takes a system call")
        entry("avx512f", flags.contains("avx512f") ? "yes: its registers are preserved" : "no")
    }

    mutating func addPackages() {
        heading("packages")
        for (package, purpose) in [
            ("libzydis4.0", "required: decoder"), ("apt", "for 'martlet guest build'"),
            ("dpkg", "for 'martlet guest build'"), ("tar", "for 'martlet guest build'"),
            ("qemu-system-x86", "for tests and comparisons")
        ] {
            let isInstalled =
                access("/var/lib/dpkg/info/\(package).list", F_OK) == 0
                || access("/var/lib/dpkg/info/\(package):amd64.list", F_OK) == 0
            entry(package, isInstalled ? "yes" : "not installed (\(purpose))")
        }
    }

    /// What guests run on, for each value of `--accel`; /dev/kvm is tried with a tiny guest.
    mutating func addAccelerators() {
        heading("accel")
        for (accelerator, outcome) in Backend.report() { entry(accelerator.rawValue, outcome) }
    }

    mutating func addGuests() {
        heading("default guests")
        guard let cache = try? GuestCache.standard() else {
            entry("cache", "neither XDG_CACHE_HOME nor HOME is set")
            return
        }
        for flavour in GuestFlavour.allCases {
            let kernel = cache.guest(flavour)?.manifest.split(separator: "\n").first
            let command = "martlet guest build --flavour \(flavour.rawValue)"
            entry(flavour.rawValue, kernel.map(String.init) ?? "not built (\(command))")
        }
    }

    private mutating func heading(_ title: String) { text += "\(title)\n" }

    private mutating func entry(_ name: String, _ value: String) {
        text += "    \(name)\(String(repeating: " ", count: max(1, 17 - name.count)))\(value)\n"
    }

    /// The value of the first `name : value` line.
    private static func field(_ name: String, in text: String) -> String {
        for line in text.split(separator: "\n") where line.hasPrefix(name) {
            guard let colon = line.firstIndex(of: ":") else { continue }
            return String(line[line.index(after: colon)...].drop { $0 == " " })
        }
        return "unknown"
    }

    private static func contents(of path: FilePath) -> String {
        guard let descriptor = try? FileDescriptor.open(path, .readOnly, options: .closeOnExec) else { return "" }
        defer { try? descriptor.close() }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while let count = try? buffer.withUnsafeMutableBytes({ try descriptor.read(into: $0) }), count > 0 {
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
