import Glibc

/// What the command line asks for.
struct Options {
    static let usage = """
        usage: bench --martlet FILE --kernel FILE --initramfs FILE --workloads FILE
                     [--qemu FILE] [--runs N] [--figures NAME,…] [--results FILE]

        Runs each figure natively, on Martlet and on QEMU (TCG), interleaved, and prints the medians and their ratios.
        --runs      how often everything runs (default 7)
        --figures   only these: workloads, and 'boot', 'threads', 'memory' (default: all)
        --results   also write the tables to this file
        """

    var installation: Installation
    var runs = 7
    var figures: [Figure] = Figure.all
    var measuresBoot = true
    var measuresThreads = true
    var measuresMemory = true
    var results: String?

    /// Reads the arguments after the program's name.
    ///
    /// - Throws: ``BenchmarkError`` for an option that is unknown, malformed or missing.
    init(_ arguments: [String]) throws {
        var values: [String: String] = [:]
        var rest = arguments[...]
        while let name = rest.popFirst() {
            guard
                ["martlet", "kernel", "initramfs", "workloads", "qemu", "runs", "figures", "results"]
                    .contains(where: { name == "--\($0)" }), let value = rest.popFirst()
            else { throw BenchmarkError("unexpected '\(name)'\n\(Self.usage)") }
            values[name] = value
        }
        func file(_ name: String) throws -> String {
            guard let path = values[name] else { throw BenchmarkError("\(name) is missing\n\(Self.usage)") }
            guard access(path, R_OK) == 0 else { throw BenchmarkError("\(name) \(path): \(errorText(errno))") }
            return path
        }
        installation = Installation(
            martlet: try file("--martlet"), qemu: values["--qemu"] ?? "qemu-system-x86_64",
            kernel: try file("--kernel"),
            initramfs: try file("--initramfs"), workloads: try file("--workloads"))
        if let text = values["--runs"] {
            guard let number = Int(text), number >= 1 else {
                throw BenchmarkError("--runs is '\(text)', expected a number from 1")
            }
            runs = number
        }
        if let text = values["--figures"] {
            var names = Set(text.split(separator: ",").map(String.init))
            figures = Figure.all.filter { names.remove($0.name) != nil }
            measuresBoot = names.remove("boot") != nil
            measuresThreads = names.remove("threads") != nil
            measuresMemory = names.remove("memory") != nil
            guard names.isEmpty else {
                let known = Figure.all.map(\.name) + ["boot", "threads", "memory"]
                throw BenchmarkError(
                    "--figures: no figure '\(names.sorted().joined(separator: "', '"))'; there are \(known.joined(separator: ", "))"
                )
            }
        }
        results = values["--results"]
    }
}
