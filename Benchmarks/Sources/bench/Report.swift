/// The tables, as Markdown.
///
/// Each figure is the median of all runs, and each ratio the median of the ratios in each run, so that a load that comes and
/// goes weighs on both sides.
struct Report {
    let options: Options
    let runs: [Run]
    /// What makes the results doubtful or wrong; empty if all is well.
    private(set) var problems: [String] = []

    /// Clocks that disagree by more are reported.
    private static let allowedClockError = 0.05

    init(_ runs: [Run], _ options: Options) {
        self.runs = runs
        self.options = options
        for (index, run) in runs.enumerated() {
            problems += run.problems.map { "run \(index + 1): \($0)" }
            for engine in Engine.allCases {
                for session in [run.single[engine], run.double[engine]].compactMap({ $0 }) {
                    problems += session.problems.map { "run \(index + 1), \(engine.title): \($0)" }
                }
            }
            problems += (run.guestUnpacks?.problems ?? []).map { "run \(index + 1), Martlet, guest unpacks: \($0)" }
        }
        checkCompleteness()
        checkChecksums()
    }

    private mutating func checkCompleteness() {
        for (index, run) in runs.enumerated() {
            for (engine, session) in run.single {
                let expected = options.figures.filter { engine != .native || $0.runsNatively }
                for figure in expected where session.measurements[figure.name] == nil {
                    problems.append("run \(index + 1), \(engine.title): no figure for \(figure.name)")
                }
            }
        }
    }

    /// Every engine must compute the same.
    private mutating func checkChecksums() {
        for name in options.figures.map(\.name) + ["one-thread", "two-threads"] {
            var engines: [String: Set<String>] = [:]
            for run in runs {
                for engine in Engine.allCases {
                    guard let measurement = Self.measurement(name, engine, run) else { continue }
                    engines[measurement.checksum, default: []].insert(engine.title)
                }
            }
            guard engines.count > 1 else { continue }
            let text = engines.sorted { $0.key < $1.key }
                .map { "\($0.key) (\($0.value.sorted().joined(separator: ", ")))" }
            problems.append("WRONG RESULT: \(name) gives \(text.joined(separator: ", "))")
        }
    }

    private static func measurement(_ name: String, _ engine: Engine, _ run: Run) -> Measurement? {
        (run.single[engine]?.measurements[name]) ?? (run.double[engine]?.measurements[name])
    }

    // MARK: Text

    /// All tables and notes.
    var markdown: String {
        [
            options.figures.isEmpty ? nil : workloadTable,
            options.measuresThreads ? threadTable : nil,
            options.measuresBoot ? bootTable : nil,
            options.measuresMemory ? memoryTable : nil,
            notes
        ].compactMap { $0 }.joined(separator: "\n")
    }

    private var workloadTable: String {
        var text = """
            | figure | native | Martlet | QEMU | Martlet ÷ native | QEMU ÷ native | at most |
            |---|---:|---:|---:|---:|---:|---|

            """
        for figure in options.figures {
            let values = Engine.allCases.map { engine in
                median { Self.measurement(figure.name, engine, $0)?.nanosecondsPerOperation }
            }
            let ratios = [Engine.martlet, .qemu].map { engine in
                median { run in
                    quotient(
                        Self.measurement(figure.name, engine, run)?.nanosecondsPerOperation,
                        Self.measurement(figure.name, .native, run)?.nanosecondsPerOperation)
                }
            }
            let aim =
                switch figure.aim {
                case .native(let times): "\(Self.number(times)) × native"
                case .qemu: "QEMU"
                case .nanoseconds(let limit): Self.duration(limit)
                case .none: ""
                }
            text += "| \(figure.title) | \(values.map(Self.duration).joined(separator: " | ")) | "
            text += "\(ratios.map(Self.number).joined(separator: " | ")) | \(aim) |\n"
        }
        return text
    }

    private var threadTable: String {
        let ratios = Engine.allCases.map { engine in
            median { run in
                quotient(
                    Self.measurement("two-threads", engine, run)?.nanosecondsPerOperation,
                    Self.measurement("one-thread", engine, run)?.nanosecondsPerOperation)
            }
        }
        return """
            | two processors | native | Martlet | QEMU | at most |
            |---|---:|---:|---:|---|
            | two threads' time ÷ one thread's | \(ratios.map(Self.number).joined(separator: " | ")) | 1.2 |

            """
    }

    private var bootTable: String {
        func row(_ title: String, _ aim: String, _ martlet: (Run) -> Session?) -> String {
            let ours = median { martlet($0)?.readyNanoseconds.map { Double($0) } }
            let theirs = median { $0.single[.qemu]?.readyNanoseconds.map { Double($0) } }
            let ratio = median {
                quotient(
                    martlet($0)?.readyNanoseconds.map { Double($0) },
                    $0.single[.qemu]?.readyNanoseconds.map { Double($0) })
            }
            return "| \(title) | \(Self.duration(ours)) | \(Self.duration(theirs)) | \(Self.number(ratio)) | \(aim) |\n"
        }
        return """
            | from the start of the process to the guest's first command | Martlet | QEMU | Martlet ÷ QEMU | at most |
            |---|---:|---:|---:|---|

            """ + row("boot", "1.0") { $0.single[.martlet] }
                + row("boot, Martlet's guest unpacks its own kernel", "") { $0.guestUnpacks }
    }

    private var memoryTable: String {
        func row(_ title: String, _ aim: String, _ key: KeyPath<ProcessMemory, UInt64>) -> String {
            let values = [Engine.martlet, .qemu].map { engine in
                median { $0.memory[engine].map { Double($0[keyPath: key]) / 1e6 } }
            }
            return "| \(title) | \(values.map { "\(Self.number($0)) MB" }.joined(separator: " | ")) | \(aim) |\n"
        }
        return """
            | memory of a guest with 128 MiB, idle for 10 s | Martlet | QEMU | at most |
            |---|---:|---:|---|

            """ + row("resident (RSS)", "120 MB", \.residentBytes) + row("proportional (PSS)", "", \.proportionalBytes)
    }

    private var notes: String {
        var worst = 0.0
        var disagreements: [String] = []
        for (index, run) in runs.enumerated() {
            for engine in Engine.allCases {
                let all = [run.single[engine], run.double[engine]].compactMap { $0?.measurements }.flatMap { $0 }
                for (name, measurement) in all.sorted(by: { $0.key < $1.key }) {
                    let error = measurement.clockError
                    worst = max(worst, error)
                    guard error > Self.allowedClockError else { continue }
                    disagreements.append(
                        "- run \(index + 1), \(engine.title), \(name): the clock inside says "
                            + "\(Self.duration(Double(measurement.claimedElapsed))), the host's "
                            + "\(Self.duration(Double(measurement.hostElapsed)))\n")
                }
            }
        }
        var text = "Medians of \(runs.count) interleaved runs; a ratio is the median of the ratios in each run. "
        text += "Times are taken inside and checked against the host's clock: "
        text += "they disagree by \(Self.number(worst * 100)) % at most.\n"
        text += HostDescription.line
        if !disagreements.isEmpty { text += "\nClocks that disagree by more than 5 %:\n\n" + disagreements.joined() }
        return text
    }

    // MARK: Numbers

    private func median(_ value: (Run) -> Double?) -> Double? {
        let sorted = runs.compactMap(value).sorted()
        guard !sorted.isEmpty else { return nil }
        let middle = sorted.count / 2
        return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }

    private func quotient(_ numerator: Double?, _ denominator: Double?) -> Double? {
        guard let numerator, let denominator, denominator > 0 else { return nil }
        return numerator / denominator
    }

    /// Three digits of a number, or a dash.
    private static func number(_ value: Double?) -> String {
        guard let value, value.isFinite else { return "–" }
        let decimals = value >= 100 ? 0 : value >= 10 ? 1 : 2
        var scale = 1.0
        for _ in 0..<decimals { scale *= 10 }
        let scaled = Int((value * scale).rounded())
        guard decimals > 0 else { return "\(scaled)" }
        let fraction = String(scaled % Int(scale))
        return "\(scaled / Int(scale)).\(String(repeating: "0", count: decimals - fraction.count))\(fraction)"
    }

    private static func duration(_ nanoseconds: Double?) -> String {
        guard let nanoseconds else { return "–" }
        switch nanoseconds {
        case ..<1000: return "\(number(nanoseconds)) ns"
        case ..<1_000_000: return "\(number(nanoseconds / 1000)) µs"
        case ..<1_000_000_000: return "\(number(nanoseconds / 1_000_000)) ms"
        default: return "\(number(nanoseconds / 1_000_000_000)) s"
        }
    }
}
