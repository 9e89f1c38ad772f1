import Glibc

/// What one workload told, and what the host's clock says about it.
struct Measurement {
    let nanosecondsPerOperation: Double
    let checksum: String
    /// Elapsed nanoseconds between the two marks, by the clock of the machine that ran the workload.
    let claimedElapsed: UInt64
    /// The same by the host's clock.
    let hostElapsed: UInt64

    /// How far the clocks disagree, as a part of the greater time.
    var clockError: Double {
        let (smaller, greater) = (min(claimedElapsed, hostElapsed), max(claimedElapsed, hostElapsed))
        return greater == 0 ? 0 : 1 - Double(smaller) / Double(greater)
    }
}

/// What one process, native or a whole virtual machine, told.
struct Session {
    var measurements: [String: Measurement] = [:]
    /// From the start of the process to the workloads' first word.
    var readyNanoseconds: UInt64?
    /// Everything that makes its results doubtful.
    var problems: [String] = []

    private var openMarks: [String: UInt64] = [:]

    /// Starts `arguments` and reads what the workloads print until the process ends.
    init(_ arguments: [String], environment: [String] = [], timeoutSeconds: UInt64) throws {
        var child = try Child(arguments, environment: environment)
        let deadline = child.start + timeoutSeconds * 1_000_000_000
        var lastLines: [String] = []
        while let line = child.nextLine(until: deadline) {
            lastLines = lastLines.suffix(4) + [line.text]
            note(line, since: child.start)
        }
        let end = child.wait(until: deadline)
        if end != .exited(0) {
            problems.append("ended with \(end), its last lines being \(lastLines)")
        }
        for name in openMarks.keys.sorted() { problems.append("\(name) did not finish") }
    }

    private mutating func note(_ line: Child.Line, since start: UInt64) {
        // The kernel may have left half a line of its own in front.
        guard let mark = line.text.firstIndex(of: "@") else { return }
        let words = line.text[mark...].split(separator: " ")
        switch words.first {
        case "@ready":
            readyNanoseconds = readyNanoseconds ?? line.arrival - start
        case "@begin" where words.count == 2:
            openMarks[String(words[1])] = line.arrival
        case "@end" where words.count == 5:
            guard let begun = openMarks.removeValue(forKey: String(words[1])), let figure = Double(words[2]),
                let claimed = UInt64(words[4])
            else {
                problems.append("unexpected line: \(line.text)")
                return
            }
            measurements[String(words[1])] = Measurement(
                nanosecondsPerOperation: figure, checksum: String(words[3]), claimedElapsed: claimed,
                hostElapsed: line.arrival - begun)
        case "@failed":
            problems.append(String(line.text[mark...].dropFirst("@failed ".count)))
        default:
            break
        }
    }
}
