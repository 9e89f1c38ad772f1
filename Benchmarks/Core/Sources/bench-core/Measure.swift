import Glibc
import Host

/// One thing to measure.
struct Case {
    let name: String
    /// How many operations one call of `body` performs.
    let operations: Int
    /// Returns something that depends on all it has done.
    let body: () -> UInt64
}

/// Cases that are compared with the first of them.
struct Group {
    let title: String
    let cases: [Case]
}

/// Medians of interleaved runs, each well below a time slice, so that on a busy machine most are not interrupted.
struct Measure {
    let rounds: Int
    /// Where results go, so that no work is left out.
    nonisolated(unsafe) static var sink: UInt64 = 0

    /// Runs all cases in each round, from another first one each time, and prints the group's table.
    ///
    /// A ratio is the median of the rounds' ratios, so that a load that comes and goes weighs on both sides.
    func report(_ group: Group) {
        var times = [[Double]](repeating: [], count: group.cases.count)
        for round in -1..<rounds {
            for offset in group.cases.indices {
                let index = (offset + max(round, 0)) % group.cases.count
                let time = Self.time(group.cases[index])
                // The first round warms up.
                if round >= 0 { times[index].append(time) }
            }
        }
        print("\n| \(group.title) | ns | of the first |\n|---|---|---|")
        for (index, one) in group.cases.enumerated() {
            let ratios = zip(times[index], times[0]).map { $0 / $1 }
            print("| \(one.name) | \(Self.text(Self.median(times[index]))) | \(Self.text(Self.median(ratios))) |")
        }
    }

    private static func time(_ one: Case) -> Double {
        let start = MonotonicClock.nanoseconds()
        sink &+= one.body()
        return Double(MonotonicClock.nanoseconds() - start) / Double(one.operations)
    }

    private static func median(_ values: [Double]) -> Double {
        values.sorted()[values.count / 2]
    }

    static func text(_ value: Double) -> String {
        let hundredths = Int((value * 100).rounded())
        return "\(hundredths / 100)." + (hundredths % 100 < 10 ? "0" : "") + "\(hundredths % 100)"
    }
}
