import Glibc

/// Measures the core's structures: `bench-core [rcu|vcpus|slots|mmu|interrupts|memory]…`.
@main
enum BenchCore {
    static func main() {
        let rounds = getenv("MARTLET_BENCH_RUNS").flatMap { Int(String(cString: $0)) } ?? 301
        let measure = Measure(rounds: rounds)
        // Memory first: what the others have freed would be used again.
        let parts: [(name: String, run: () -> Void)] = [
            ("memory", { MemoryCases.report() }),
            ("rcu", { for group in RCUCases.groups { measure.report(group) } }),
            ("vcpus", { for group in VCPUTableCases.groups { measure.report(group) } }),
            (
                "slots",
                {
                    for group in SlotCases.groups { measure.report(group) }
                    for table in SlotCases.tables { table.report() }
                }
            ),
            ("mmu", { for group in MMUCases.groups { measure.report(group) } }),
            ("interrupts", { InterruptCases.report() })
        ]
        let names = CommandLine.arguments.dropFirst()
        for name in names where !parts.contains(where: { $0.name == name }) {
            print("bench-core: unknown part '\(name)'; there are \(parts.map(\.name).joined(separator: ", "))")
            exit(2)
        }
        print("Medians of \(rounds) interleaved rounds; ratios are medians of the rounds' ratios.")
        for part in parts where names.isEmpty || names.contains(part.name) { part.run() }
        // Never so, but not known when this is compiled.
        if Measure.sink == 1 { print("") }
    }
}
