import Glibc

/// Measures the core's structures: `bench-core [rcu|vcpus]…`.
@main
enum BenchCore {
    static func main() {
        let rounds = getenv("MARTLET_BENCH_RUNS").flatMap { Int(String(cString: $0)) } ?? 301
        let parts: [(name: String, groups: () -> [Group])] = [
            ("rcu", { RCUCases.groups }),
            ("vcpus", { VCPUTableCases.groups })
        ]
        let names = CommandLine.arguments.dropFirst()
        for name in names where !parts.contains(where: { $0.name == name }) {
            print("bench-core: unknown part '\(name)'; there are \(parts.map(\.name).joined(separator: ", "))")
            exit(2)
        }
        print("Medians of \(rounds) interleaved rounds; ratios are medians of the rounds' ratios.")
        let measure = Measure(rounds: rounds)
        for part in parts where names.isEmpty || names.contains(part.name) {
            for group in part.groups() { measure.report(group) }
        }
        // Never so, but not known when this is compiled.
        if Measure.sink == 1 { print("") }
    }
}
