import Glibc
import Testing

/// Random sequences of user instructions on the host's processor and through the translator.
///
/// `MARTLET_CPU_SEQUENCES` sets their number, `MARTLET_SEED` the seed, `MARTLET_CPU_FAILURES` how many failures are
/// described before the test gives up.
@Suite(.serialized) struct DifferentialTests {
    private static func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }

    private func run(isNarrow: Bool) throws {
        // The same sequences each time unless asked; long runs name other seeds.
        let seed = Self.number("MARTLET_SEED") ?? 1
        let count = Self.number("MARTLET_CPU_SEQUENCES") ?? 3000
        print("\(isNarrow ? "32" : "64")-bit sequences: \(count), seed \(seed)")
        let limit = Self.number("MARTLET_CPU_FAILURES") ?? 5
        let summary = try DifferentialRun(seed: seed, isNarrow: isNarrow).run(
            count: Int(count), maximumFailures: Int(limit))
        for failure in summary.failures { Issue.record("\(failure)") }
        // Most sequences end without a fault: otherwise little is compared.
        #expect(summary.faultCount < summary.caseCount / 2)
        #expect(summary.caseCount > 0)
    }

    @Test func sequencesOf64BitCode() throws { try run(isNarrow: false) }

    @Test func sequencesOf32BitCode() throws { try run(isNarrow: true) }
}
