import Glibc

/// Measures Martlet against the host itself and against QEMU.
@main
enum Bench {
    static func main() {
        do {
            try measure(Options(Array(CommandLine.arguments.dropFirst())))
        } catch {
            tell("\(error)")
            exit(2)
        }
    }

    private static func measure(_ options: Options) throws {
        var runs: [Run] = []
        for number in 1...options.runs {
            runs.append(try Run(options) { tell("run \(number) of \(options.runs): \($0)") })
        }
        let report = Report(runs, options)
        print(report.markdown)
        if let path = options.results {
            guard let file = fopen(path, "w") else { throw BenchmarkError("cannot write \(path): \(errorText(errno))") }
            fputs(report.markdown, file)
            guard fclose(file) == 0 else { throw BenchmarkError("cannot write \(path): \(errorText(errno))") }
        }
        for problem in report.problems { tell(problem) }
        if !report.problems.isEmpty { exit(1) }
    }

    /// Prints a message to standard error; the tables alone go to standard output.
    private static func tell(_ message: String) {
        let bytes = Array("martlet bench: \(message)\n".utf8)
        _ = write(STDERR_FILENO, bytes, bytes.count)
    }
}
