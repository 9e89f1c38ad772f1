import Host

/// Times of single operations, which are too different from each other for a mean: median and 99th percentile.
struct SampleTable {
    struct Row {
        let name: String
        let samples: [Double]
    }

    let title: String
    /// What samples are divided by.
    let unit: Double
    let rows: [Row]

    func report() {
        print("\n| \(title) | median | 99 of 100 below |\n|---|---|---|")
        for row in rows {
            let sorted = row.samples.sorted()
            let median = sorted[sorted.count / 2] / unit
            let high = sorted[min(sorted.count - 1, sorted.count * 99 / 100)] / unit
            print("| \(row.name) | \(Measure.text(median)) | \(Measure.text(high)) |")
        }
    }

    /// Nanoseconds of each of many calls.
    ///
    /// - Parameter prepare: called before each.
    static func measure(_ prepare: () -> Void, _ body: () -> Void) -> [Double] {
        (0..<400).map { _ in
            prepare()
            let start = MonotonicClock.nanoseconds()
            body()
            return Double(MonotonicClock.nanoseconds() - start)
        }
    }
}
