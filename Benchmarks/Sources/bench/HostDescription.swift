import Glibc

/// The machine that the benchmarks run on.
enum HostDescription {
    /// One sentence with the processor, its count and the load.
    static var line: String {
        let model =
            (contents(of: "/proc/cpuinfo") ?? "").split(separator: "\n")
            .first { $0.hasPrefix("model name") }
            .flatMap { $0.split(separator: ":").last }
            .map { $0.drop { $0 == " " } } ?? "unknown processor"
        let load = (contents(of: "/proc/loadavg") ?? "").split(separator: " ").first ?? "unknown"
        return "Host: \(sysconf(Int32(_SC_NPROCESSORS_ONLN))) × \(model); load average at the end \(load).\n"
    }
}
